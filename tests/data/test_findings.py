"""Cache of values per picture: interruption, damage and concurrent writers."""

import errno
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tll_jax.data import findings
from tll_jax.data.findings import cached_findings


def detector_of(brightness):
    """Finder that returns a picture's brightness."""
    return lambda: lambda image: int(brightness(image))


def gray(*levels):
    return [np.full((2, 2, 3), level, np.uint8) for level in levels]


def test_cached_values_are_not_computed_again(tmp_path):
    path = tmp_path / "findings.json"
    first = cached_findings(detector_of(np.max), gray(0, 3, 1), ["a", "b", "c"], path, what="findings")
    assert first == [0, 3, 1]
    assert json.loads(path.read_text()) == {"a": 0, "b": 3, "c": 1}
    # No picture is given for cached values, and a manually edited value is kept.
    path.write_text('{"a": 7, "b": 3}')
    again = cached_findings(detector_of(np.max), [None, None, *gray(2)], ["a", "b", "c"], path, what="findings")
    assert again == [7, 3, 2]


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_values_are_saved_when_detection_is_interrupted(tmp_path, end):
    path = tmp_path / "findings.json"

    def until_the_last(image):
        if image.max() == 9:
            raise end
        return image.max()

    with pytest.raises(end):
        cached_findings(detector_of(until_the_last), gray(*range(10)), "abcdefghij", path, what="findings")
    kept = json.loads(path.read_text())
    assert kept == dict(zip("abcdefghi", range(9), strict=True))


def test_values_are_saved_during_detection(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "FLUSH_EVERY", 5)
    path = tmp_path / "findings.json"

    def waits_for_the_file(image):
        deadline = time.monotonic() + 60
        while image.max() == 40 and not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return image.max() < 40 or path.exists()

    names = [str(number) for number in range(41)]
    assert all(cached_findings(detector_of(waits_for_the_file), gray(*range(41)), names, path, what="findings"))


WHOLE = b'{"a": 0, "b": 3}'
DAMAGED = {
    "cut": WHOLE[:9],
    "empty": b"",
    "zeros": bytes(30),
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "not UTF-8": b'{"a\xff": 1}',
    "nested without end": b"[" * 100_000,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_renamed_and_its_values_are_computed_again(tmp_path, caplog, content):
    path = tmp_path / "findings.json"
    path.write_bytes(content)
    assert cached_findings(detector_of(np.max), gray(0, 3), "ab", path, what="face findings") == [0, 3]
    # A person may have edited it.
    assert (tmp_path / "findings.json.damaged").read_bytes() == content
    (warning,) = caplog.messages
    assert f"the face findings in {path} are damaged: the file is now {path}.damaged" in warning
    assert json.loads(path.read_text()) == {"a": 0, "b": 3}
    path.write_bytes(b"again")
    assert cached_findings(detector_of(np.max), gray(0, 3), "ab", path, what="face findings") == [0, 3]
    assert (tmp_path / "findings.json.damaged").read_bytes() == content
    assert (tmp_path / "findings.json.damaged-2").read_bytes() == b"again"


def test_invalid_values_are_computed_again_and_valid_ones_are_kept(tmp_path, caplog):
    def check(finding):
        if finding not in range(5):
            raise ValueError(f"{finding!r}; it must be from 0 to 4")

    path = tmp_path / "findings.json"
    path.write_text('{"a": -1, "b": 2, "c": null, "d": "x"}')
    found = cached_findings(detector_of(np.max), gray(0, 3, 1), "abc", path, what="findings", check=check)
    assert found == [0, 2, 1]
    assert f"{path}: 3 of the findings cannot be, such as that of a (-1; it must be from 0 to 4)" in caplog.messages[0]
    assert json.loads(path.read_text()) == {"a": 0, "b": 2, "c": 1}


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache", "file/cache"])
def test_if_the_cache_cannot_be_written_values_are_returned_with_one_warning(tmp_path, monkeypatch, caplog, place):
    (tmp_path / "file").touch()
    folder = tmp_path / place
    monkeypatch.setenv("TLL_CACHE", str(folder))
    monkeypatch.setattr(findings, "FLUSH_EVERY", 1)
    for _ in range(2):
        assert cached_findings(detector_of(np.max), gray(0, 3), "ab", folder / "faces.json", what="findings") == [0, 3]
    (warning,) = caplog.messages
    assert f"the cache folder {folder} cannot be used" in warning
    assert "Set TLL_CACHE to a folder that can be written" in warning


def test_a_read_only_cache_is_read(tmp_path, caplog):
    path = tmp_path / "findings.json"
    path.write_bytes(WHOLE)
    # A folder in place of the lock file, which fails like a read-only file system.
    (tmp_path / "findings.json.lock").mkdir()
    assert cached_findings(detector_of(np.max), [None, None], "ab", path, what="findings") == [0, 3]
    assert not caplog.messages


def test_an_unreadable_file_is_not_overwritten(tmp_path, monkeypatch):
    path = tmp_path / "findings.json"
    path.write_bytes(WHOLE)
    monkeypatch.setattr(findings, "read_json", fails_with(errno.EIO))
    assert cached_findings(detector_of(np.max), gray(7, 8), "ab", path, what="findings") == [7, 8]
    assert path.read_bytes() == WHOLE
    assert not list(tmp_path.glob("*.damaged"))


def fails_with(number):
    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    return fail


WRITERS = """
import multiprocessing, sys, time
from pathlib import Path
from tll_jax.data import findings

read, findings.FLUSH_EVERY = findings._read, 30

def slow_read(*given):
    values = read(*given)
    # Without a lock, others would write meanwhile.
    time.sleep(0.05)
    return values

findings._read = slow_read

def write(writer):
    names = [f"{writer}-{number}" for number in range(40)]
    findings.cached_findings(lambda: lambda image: 1, [None] * 40, names, Path(sys.argv[1]), what="findings")

writers = [multiprocessing.get_context("fork").Process(target=write, args=(number,)) for number in range(4)]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
print([writer.exitcode for writer in writers])
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "findings.json"
    # Forked from a process without threads, which this one with JAX is not.
    ran = subprocess.run([sys.executable, "-c", WRITERS, path], capture_output=True, text=True, check=True)
    assert ran.stdout == "[0, 0, 0, 0]\n"
    assert sorted(json.loads(path.read_text())) == sorted(f"{writer}-{n}" for writer in range(4) for n in range(40))

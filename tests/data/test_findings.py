"""What is found in pictures is looked for once, and kept also when that is cut short."""

import json
import time

import numpy as np
import pytest

from tll_jax.data import findings
from tll_jax.data.findings import find_once


def detector_of(brightness):
    """Finds how bright a picture is."""
    return lambda: lambda image: int(brightness(image))


def gray(*levels):
    return [np.full((2, 2, 3), level, np.uint8) for level in levels]


def test_what_was_found_once_is_not_looked_for_again(tmp_path):
    path = tmp_path / "findings.json"
    first = find_once(detector_of(np.max), gray(0, 3, 1), ["a", "b", "c"], path, what="findings")
    assert first == [0, 3, 1]
    assert json.loads(path.read_text()) == {"a": 0, "b": 3, "c": 1}
    # No picture is at hand for what is known, and a number edited by hand stands.
    path.write_text('{"a": 7, "b": 3}')
    again = find_once(detector_of(np.max), [None, None, *gray(2)], ["a", "b", "c"], path, what="findings")
    assert again == [7, 3, 2]


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_what_was_found_is_kept_when_detection_is_cut_short(tmp_path, end):
    path = tmp_path / "findings.json"

    def until_the_last(image):
        if image.max() == 9:
            raise end
        return image.max()

    with pytest.raises(end):
        find_once(detector_of(until_the_last), gray(*range(10)), "abcdefghij", path, what="findings")
    kept = json.loads(path.read_text())
    assert kept == dict(zip("abcdefghi", range(9), strict=True))


def test_findings_are_written_while_detection_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "FLUSH_EVERY", 5)
    path = tmp_path / "findings.json"

    def waits_for_the_file(image):
        deadline = time.monotonic() + 60
        while image.max() == 40 and not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return image.max() < 40 or path.exists()

    names = [str(number) for number in range(41)]
    assert all(find_once(detector_of(waits_for_the_file), gray(*range(41)), names, path, what="findings"))

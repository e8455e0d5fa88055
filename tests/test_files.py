"""Atomic writing, file names of ids, and errors that name damaged files."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tll_jax import files
from tll_jax.errors import DamagedFile, FileProblem
from tll_jax.files import (
    check_writable,
    csv_cell,
    file_name,
    identity_of,
    locked,
    read_arrays,
    read_json,
    remove_partials,
    replacing,
    text_of_cell,
    write_arrays,
    write_json,
    write_whole,
)

# Any text, with surrogates, by which Python represents undecodable bytes of file names.
IDS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    )
)
HOSTILE = [
    *("", ".", "..", "...", "../../x", "/absolute", "a/b", "a\\b", "a ", "a.", " a", ".hidden", "-rf", "~", "a~b", "%"),
    *("%2E", "a%", "con", "CON", "nul.png", "a\nb", "a\tb", "\x07", "a\0b", "é", "e\u0301", "\udce9", "caf\udce9"),
    *("\u202egnp.exe", "👨\u200d👩\u200d👧", "שלום", "<b>", "=1+1", "|", "a|b", "$x$", "x" * 250, "x" * 251, "é" * 150),
]


def assert_valid(name):
    assert 1 <= len(name.encode("ascii")) <= files.MAX_NAME_BYTES
    assert "/" not in name
    assert name.isprintable()
    assert not name.startswith(".")
    assert not name.endswith((" ", "."))


@given(IDS)
def test_the_name_of_any_id_is_one_valid_part_of_a_path_and_holds_the_id_unless_it_is_long(identity):
    name = file_name(identity)
    assert_valid(name)
    if "~" in name:
        assert len(os.fsencode(identity)) > files.MAX_NAME_BYTES / 3
        with pytest.raises(ValueError, match="the short name of an id"):
            identity_of(name)
    else:
        assert identity_of(name) == identity


def test_ids_with_a_meaning_to_file_systems_have_safe_names(tmp_path):
    names = [file_name(identity) for identity in HOSTILE]
    for name in names:
        assert_valid(name)
        write_whole(tmp_path / "deep" / f"{name}-right.png", name)
    assert len({name.casefold() for name in names}) == len(names) - 1  # con and CON
    assert len(list((tmp_path / "deep").iterdir())) == len(names)
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    # Ids that 0.1.0 could store keep their file names.
    assert [file_name(identity) for identity in ("1f600", "2024-11_a", "x" * 120)] == ["1f600", "2024-11_a", "x" * 120]


@pytest.mark.parametrize(
    ("one", "other"),
    [("a/b", "a%2Fb"), (".", "%2E"), ("", "%"), ("x" * 500 + "a", "x" * 500 + "b"), ("é", "e\u0301"), ("a ", "a%20")],
)
def test_ids_that_differ_only_by_what_quoting_changes_have_different_names(one, other):
    assert file_name(one) != file_name(other)


@given(IDS)
def test_a_cell_of_a_csv_is_no_formula_and_is_read_again(text):
    cell = csv_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    cell.encode()
    assert text_of_cell(cell) == text


def test_cells_are_changed_only_where_they_must_be():
    texts = ["=1", "+1", "-rf", "@a", "\ta", "'=1", "''=1", "a=1", "'a", "", "caf\udce9"]
    cells = ["'=1", "'+1", "'-rf", "'@a", "'\ta", "''=1", "'''=1", "a=1", "'a", "", r"caf\udce9"]
    assert [csv_cell(text) for text in texts] == cells
    assert [text_of_cell(cell) for cell in cells] == texts


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "kept"
    write_whole(path, "old")
    written = replacing(path)
    written.__enter__().write_text("half")
    with pytest.raises(RuntimeError):
        written.gen.throw(RuntimeError())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", ["fsync", "write"])
def test_a_full_disk_is_named_with_the_mend_and_costs_nothing(tmp_path, monkeypatch, at):
    path = tmp_path / "kept.json"
    write_json(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if at == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "open", full)
    with pytest.raises(FileProblem, match=r"kept\.json cannot be written: No space left on device\. Make room there"):
        write_json(path, "new")
    monkeypatch.undo()
    assert read_json(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, "text"),
        lambda path: write_whole(path, np.zeros(10**5)),
        lambda path: write_arrays(path, a=np.zeros(10**5)),
        lambda path: write_arrays(path, compressed=True, a=np.random.default_rng(0).normal(size=10**5)),
    ],
)
def test_a_full_disk_is_distinguished_from_other_errors_for_every_kind_of_content(write):
    with pytest.raises(FileProblem, match="/dev/full cannot be written: No space left on device") as raised:
        write(Path("/dev/full"))
    assert raised.value.errno == errno.ENOSPC
    assert Path("/dev/full").is_char_device()


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    write_whole(link, "through the link")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "through the link"
    write_whole(Path(os.devnull), "gone")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize(
    ("make", "out", "message"),
    [
        (lambda folder: (folder / "out").mkdir(), "out", "It is a folder: give the name of a file"),
        (lambda folder: (folder / "out").touch(), "out/a/b", "A part of the path is a file: give another folder"),
        (lambda folder: None, "x" * 300, "Give a shorter name"),
    ],
)
def test_an_unwritable_path_is_reported_before_and_when_writing(tmp_path, make, out, message):
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for act in (check_writable, lambda path: write_whole(path, "")):
        with pytest.raises(FileProblem, match=message):
            act(tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_checking_a_writable_path_creates_nothing(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder" / "file")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    check_writable(Path("file"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FileProblem, match=r"file cannot be written: Permission denied\. Get permission to write"):
        check_writable(Path("file"))


def test_truncated_json_and_other_content_are_reported_with_the_path(tmp_path):
    path = tmp_path / "marks.json"
    write_json(path, {"key": "ü", "ids": ["caf\udce9", "a\nb"]})
    whole = path.read_bytes()
    assert read_json(path) == {"key": "ü", "ids": ["caf\udce9", "a\nb"]}
    # Its last two bytes are a bracket and a line break; without both it is truncated.
    for content in [*(whole[:end] for end in range(len(whole) - 1)), b"\xff\xfe\0", b"[" * 100_000]:
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=r"marks\.json is damaged \(.*delete it and run the command"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")


def test_truncated_or_changed_arrays_are_reported_with_the_path(tmp_path):
    path = tmp_path / "ranks.npz"
    arrays = {"ids": np.array(["a", "caf\udce9"]), "ranks": np.arange(30)}
    write_arrays(path, compressed=True, **arrays)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedFile, match=r"ranks\.npz is damaged"):
            read_arrays(path)
    rng = np.random.default_rng(0)
    for _ in range(100):
        changed = np.frombuffer(whole, np.uint8).copy()
        changed[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed.tobytes())
        try:
            found = read_arrays(path)
        except DamagedFile:
            continue
        # Changes outside the arrays, such as times, do not matter.
        assert all(np.array_equal(found[name], arrays[name]) for name in found)
    path.write_bytes(whole)
    assert read_arrays(path)["ids"].tolist() == ["a", "caf\udce9"]


def test_arrays_that_would_run_code_when_read_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    for name in ("objects", "array"):
        with pytest.raises(DamagedFile, match=f"{name}.npz is damaged"):
            read_arrays(tmp_path / f"{name}.npz")


def test_what_a_killed_process_left_half_written_is_removed_and_frees_the_folder(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from tll_jax.files import locked, replacing\n"
        f"with locked(Path({str(tmp_path)!r}), identity='one', command='c'), "
        f"replacing(Path({str(tmp_path)!r}) / 'a' / 'file') as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "a").iterdir())) == 1
    with locked(tmp_path, identity="another", command="d"):
        remove_partials(tmp_path)
    assert list((tmp_path / "a").iterdir()) == []

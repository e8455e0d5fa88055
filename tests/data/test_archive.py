"""Archives: folders and zips with loops, names that point elsewhere, damage and missing permissions."""

import io
import os
import pickle
import socket
import struct
import tracemalloc
import unicodedata
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tll_jax.data import archive as archive_module
from tll_jax.data.archive import Archive
from tll_jax.data.folder import ClassFolder, ImageFolder
from tll_jax.data.pair_folders import MatchingFolders, PairsFromTable

DOT = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc`\0\0\0\2\0\1H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82"
)
"""A gray picture of one pixel."""


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(DOT)
    return folder


def write_zip(path, *names, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name in names:
            packed.writestr(name, DOT)
    return path


def test_links_to_folders_are_followed_except_in_loops(tmp_path):
    root = fill(tmp_path / "set", "cats/a.png")
    elsewhere = fill(tmp_path / "elsewhere", "b.png")
    (root / "dogs").symlink_to(elsewhere)
    (root / "cats" / "up").symlink_to(root)
    (root / "cats" / "self").symlink_to(root / "cats")
    # Out of the folder and back into it.
    (elsewhere / "back").symlink_to(root)
    assert Archive(root).names == ["cats/a.png", "dogs/b.png"]


def test_one_folder_linked_twice_is_two_folders(tmp_path):
    root = fill(tmp_path, "data/train/a.png")
    (root / "train").symlink_to(root / "data" / "train")
    assert Archive(root).names == ["data/train/a.png", "train/a.png"]


def test_a_broken_or_circular_link_is_skipped(tmp_path):
    fill(tmp_path, *(f"{index}.png" for index in range(8)))
    (tmp_path / "8.png").symlink_to(tmp_path / "gone")
    (tmp_path / "9.png").symlink_to(tmp_path / "9.png")
    source = ImageFolder(path=str(tmp_path), max_broken_fraction=0.5).open(held_out=frozenset())
    source.digest()
    assert np.array_equal(source[8].image, source[0].image)
    assert [item.name for item in source.skipped] == ["8.png", "9.png"]


def test_a_folder_that_cannot_be_listed_is_left_out_and_named(tmp_path, monkeypatch, caplog):
    fill(tmp_path, "open/a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path):
        # Simulates chmod, which does not restrict root.
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = Archive(tmp_path)
    assert found.names == ["open/a.png"]
    assert [(Path(item.name).name, item.reason) for item in found.left_out] == [
        ("locked", "cannot be listed (Permission denied)")
    ]
    assert caplog.text.count("locked (cannot be listed") == 1


def test_a_file_without_read_permission_is_a_skip(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "b.png", "c.png", "d.png")
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    source = ImageFolder(path=str(tmp_path), max_broken_fraction=0.25).open(held_out=frozenset())
    assert source[1].image.shape == (1, 1, 3)
    assert [item.name for item in source.skipped] == ["b.png"]
    assert "Permission denied" in source.skipped[0].reason


def test_names_that_point_out_of_a_zip_are_left_out_and_named(tmp_path, caplog):
    path = write_zip(tmp_path / "a.zip", "../evil.png", "in/../../evil.png", "/etc/evil.png", "in/good.png")
    found = Archive(path)
    assert found.names == ["in/good.png"]
    assert [item.name for item in found.left_out] == ["../evil.png", "in/../../evil.png", "/etc/evil.png"]
    assert "../evil.png (the name points out of the zip)" in caplog.text
    assert not (tmp_path.parent / "evil.png").exists()


def test_a_file_that_a_zip_holds_twice_is_listed_once_and_the_later_one_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as packed:
            packed.writestr("a.png", b"later")
    found = Archive(path)
    assert found.names == ["a.png"]
    assert found.read("a.png") == b"later"


def test_an_encrypted_file_in_a_zip_is_a_skip(tmp_path):
    path = write_zip(tmp_path / "a.zip", *(f"{index}.png" for index in range(4)))
    data = bytearray(path.read_bytes())
    # Bit 0 of the flags marks encryption: at byte 6 of a file's header, at byte 8 of its entry in the directory.
    data[data.find(b"PK\3\4") + 6] |= 1
    data[data.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(data))
    source = ImageFolder(path=str(path), max_broken_fraction=0.25).open(held_out=frozenset())
    assert source[0].image.shape == (1, 1, 3)
    assert [item.name for item in source.skipped] == ["0.png"]
    assert "encrypted" in source.skipped[0].reason


def test_zip_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_BYTES", 1000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.png", bytes(1001))
        packed.writestr("b.png", bytes(1000))
    found = Archive(path)
    assert len(found.read("b.png")) == 1000
    with pytest.raises(OSError, match="1,001 bytes; at most 1,000 are read"):
        found.read("a.png")


def test_any_name_is_listed_read_and_hashed(tmp_path):
    names = ["ключ.png", "猫 🐈.png", "line\nbreak.png", 'tab\tquote".png', "no text \udcff\udcfe.png"]
    folder = ImageFolder(path=str(fill(tmp_path / "set", *names))).open(held_out=frozenset())
    assert sorted(folder.names) == sorted(names)
    assert all(folder[index].image.shape == (1, 1, 3) for index in range(len(names)))
    assert len(folder.digest()) == 64
    packed = Archive(write_zip(tmp_path / "a.zip", *names[:4]))
    assert packed.names == sorted(names[:4])
    assert pickle.loads(pickle.dumps(packed)).read(names[2]) == DOT


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for index, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):
            packed.writestr(f"é{index}.png", DOT * 3, method)
    return path.read_bytes()


@settings(max_examples=300)
@given(data=st.data())
def test_a_truncated_or_corrupted_zip_is_refused_or_its_files_are(whole, tmp_path_factory, data):
    damaged = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(bytes(damaged[:end]))
    with suppress(ValueError):
        found = Archive(path)
        for name in found.names:
            with suppress(OSError):
                found.read(name)


def test_pipes_sockets_and_devices_are_left_out_and_never_opened(tmp_path):
    fill(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "socket"))
        found = Archive(tmp_path)
    assert found.names == found.images == ["a.png"]
    assert sorted(found.left_out) == [
        ("link.png", "a named pipe"),
        ("pipe.png", "a named pipe"),
        ("socket", "a socket"),
        ("zero.png", "a device"),
    ]
    with pytest.raises(ValueError, match=r"pipe\.png is no regular file"):
        Archive(tmp_path / "pipe.png")


HIDDEN = (".DS_Store", ".Trash-1000/x.png", ".git/a/b.png", ".ipynb_checkpoints/a-checkpoint.png", "Thumbs.db")
HIDDEN += (
    "cat/._a.png",
    "cat/@eaDir/a.png",
    "$RECYCLE.BIN/a.png",
    "System Volume Information/a.png",
    "lost+found/a.png",
)


@pytest.mark.parametrize("is_zip", [False, True])
def test_hidden_and_service_files_are_ignored_and_listed_once(tmp_path, caplog, is_zip):
    names = [*HIDDEN, "__MACOSX/cat/._a.png", "cat/a.png", "dog/b.png", "dog/c..png"]
    path = write_zip(tmp_path / "a.zip", *names) if is_zip else fill(tmp_path / "set", *names)
    found = Archive(path)
    assert found.names == ["cat/a.png", "dog/b.png", "dog/c..png"]
    tops = ["$RECYCLE.BIN", ".DS_Store", ".Trash-1000", ".git", ".ipynb_checkpoints"]
    tops += ["System Volume Information", "Thumbs.db", "__MACOSX", "cat/._a.png", "cat/@eaDir", "lost+found"]
    assert found.hidden == tops
    assert not caplog.records
    assert ClassFolder(path=str(path)).open(held_out=frozenset()).classes == ["cat", "dog"]


def test_a_hidden_folder_given_as_the_path_is_data(tmp_path):
    assert Archive(fill(tmp_path / ".cache" / "set", "a.png").parent).names == ["set/a.png"]


def zip_entry(name, *, mode=0):
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr = name, mode << 16
    return info


def test_backslashes_and_dots_in_the_names_of_a_zip_are_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("left\\a.png", "left\\in\\b.png", "./right//a.png", "empty\\"):
            packed.writestr(zip_entry(name), DOT if name[-1] == "g" else b"")
        for name in ("C:\\evil.png", "..\\evil.png", "\\\\host\\evil.png"):
            packed.writestr(zip_entry(name), DOT)
        packed.writestr(zip_entry("link.png", mode=0o120777), b"left/a.png")
    found = Archive(tmp_path / "a.zip")
    assert found.names == ["left/a.png", "left/in/b.png", "right/a.png"]
    assert found.read("left/in/b.png") == pickle.loads(pickle.dumps(found)).read("right/a.png") == DOT
    assert found.size("left/a.png") == len(DOT)
    reasons = dict(found.left_out)
    assert reasons.pop("link.png").startswith("a link")
    assert set(reasons.values()) == {"the name points out of the zip"}
    assert len(reasons) == 3
    assert MatchingFolders(path=str(tmp_path / "a.zip"), max_broken_fraction=0.9).open().ids == ["a"]


COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("is_zip", [False, True])
def test_names_match_in_any_unicode_normal_form(tmp_path, is_zip):
    assert COMPOSED != APART
    names = [f"left/{COMPOSED}.png", f"right/{APART}.png", f"{APART}/a.png"]
    path = write_zip(tmp_path / "a.zip", *names) if is_zip else fill(tmp_path / "set", *names)
    pairs = MatchingFolders(path=str(path)).open()
    assert pairs.ids == [COMPOSED]
    assert pairs[0].right.shape == (1, 1, 3)
    for form in (COMPOSED, APART):
        assert len(ImageFolder(path=str(path), subfolder=form).open(held_out=frozenset())) == 1


def test_a_table_finds_pictures_in_any_unicode_form_and_with_windows_separators(tmp_path):
    fill(tmp_path, f"{APART}/a.png", f"in/{COMPOSED}.png")
    (tmp_path / "pairs.csv").write_text(f"id,left,right\n1,{COMPOSED}/a.png,in\\{APART}.png\n")
    assert [entry.right.name for entry in PairsFromTable(path=str(tmp_path)).open().entries] == [f"in/{COMPOSED}.png"]


def test_two_files_with_equal_normalized_names_are_both_listed(tmp_path):
    found = Archive(write_zip(tmp_path / "a.zip", f"{APART}.png", f"{COMPOSED}.png"))
    assert found.names == sorted([f"{APART}.png", f"{COMPOSED}.png"])


def test_unsupported_pictures_are_counted_by_suffix_with_a_remedy(tmp_path, caplog):
    fill(tmp_path, "a.HEIC", "b.heic", "c.dng", "notes.txt")
    assert "not read are 2 .heic, 1 .dng: convert them to JPEG or PNG" in Archive(tmp_path).summary
    assert caplog.text.count("not read are 2 .heic") == 1
    with pytest.raises(ValueError, match=r"holds no images .*2 \.heic, 1 \.dng: convert them"):
        ImageFolder(path=str(tmp_path)).open(held_out=frozenset())


@pytest.mark.parametrize("is_zip", [False, True])
def test_files_without_a_suffix_are_images_where_their_content_is(tmp_path, is_zip):
    fill(tmp_path / "set", "a", "b.jfif", "c.txt", "in/LICENSE", "in/d")
    (tmp_path / "set" / "in" / "LICENSE").write_text("GIF is a word")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("a", "b.jfif", "c.txt", "in/LICENSE", "in/d"):
            packed.write(tmp_path / "set" / name, name)
    found = Archive(tmp_path / "a.zip" if is_zip else tmp_path / "set")
    assert found.images == ["a", "b.jfif", "in/d"]


# A block of bzip2, which takes 40 bytes, is the least that can be unpacked; LZMA takes 8 MB to begin with.
@pytest.mark.parametrize(
    ("method", "size", "room"),
    [(zipfile.ZIP_DEFLATED, 2**25, 2**20), (zipfile.ZIP_BZIP2, 2**26, 96 * 2**20), (zipfile.ZIP_LZMA, 2**25, 2**24)],
)
def test_a_file_that_is_larger_than_its_header_is_not_unpacked(tmp_path, method, size, room):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        packed.writestr("a.png", bytes(size))
        packed.writestr("b.png", DOT * 9999)
    data = bytearray(buffer.getvalue())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = struct.pack("<I", 10)
    (tmp_path / "a.zip").write_bytes(data)
    found = Archive(tmp_path / "a.zip")
    assert found.read("b.png") == DOT * 9999
    tracemalloc.start()
    with pytest.raises(OSError, match="Bad CRC"):
        found.read("a.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < room

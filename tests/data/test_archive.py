"""What folders and zips from the internet hold: loops, names that point elsewhere, damage, locks."""

import os
import pickle
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
from tll_jax.data.folder import ImageFolder

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


def test_links_to_folders_are_followed_but_never_round_in_circles(tmp_path):
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


def test_a_link_to_nothing_or_to_itself_is_a_skip(tmp_path):
    fill(tmp_path, *(f"{index}.png" for index in range(8)))
    (tmp_path / "8.png").symlink_to(tmp_path / "gone")
    (tmp_path / "9.png").symlink_to(tmp_path / "9.png")
    source = ImageFolder(path=str(tmp_path), max_broken_share=0.5).open(held_out=frozenset())
    source.digest()
    assert np.array_equal(source[8].image, source[0].image)
    assert [item.name for item in source.skipped] == ["8.png", "9.png"]


def test_a_folder_that_cannot_be_listed_is_left_out_and_named(tmp_path, monkeypatch, caplog):
    fill(tmp_path, "open/a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path):
        # What chmod would do, were the tests not run as root.
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
    source = ImageFolder(path=str(tmp_path), max_broken_share=0.25).open(held_out=frozenset())
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
    # Bit 0 of the flags says encrypted: at byte 6 of a file's header, at byte 8 of its entry in the directory.
    data[data.find(b"PK\3\4") + 6] |= 1
    data[data.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(data))
    source = ImageFolder(path=str(path), max_broken_share=0.25).open(held_out=frozenset())
    assert source[0].image.shape == (1, 1, 3)
    assert [item.name for item in source.skipped] == ["0.png"]
    assert "encrypted" in source.skipped[0].reason


def test_a_few_bytes_that_unpack_to_any_size_are_not_unpacked(tmp_path, monkeypatch):
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


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_zip_cut_or_changed_anywhere_is_refused_or_its_files_are(whole, tmp_path_factory, data):
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

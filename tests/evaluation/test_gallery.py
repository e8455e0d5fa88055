"""Galleries in the shards of version 0.1: tests/data/shards.zip was written by it, of the first 23 emoji on the left in
shards of seven, three rows a record, embedded by a sum of colors; the tenth was broken."""

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.geometry import Resize
from tll_jax.data.imaging import decode
from tll_jax.errors import DamagedFile, FileProblem
from tll_jax.evaluation import gallery
from tll_jax.evaluation.gallery import open_gallery

SHARDS = Path(__file__).parents[1] / "data" / "shards.zip"
MEND = "copy it whole again, or embed the images anew with tll embed RUN IMAGES --out DIR"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "ROWS_PER_RECORD", 3)
    with zipfile.ZipFile(SHARDS) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "gallery"


def shard(folder, number):
    return folder / f"embeddings-{number:05}-of-00004.array_record"


def ids_and_sums():
    """Ids of the readable pictures, and their sums one picture at a time."""
    archive, found = Archive(ARCHIVE), {}
    weights = 2 * np.arange(1, 17)[:, None, None]
    for number, name in enumerate([name for name in archive.images if name.startswith("left/")][:23]):
        small = Resize(size=16)(np.random.default_rng(0), decode(archive.read(name), name))
        found[f"{'plain' if number % 3 else 'deep/er'}/{Path(name).name}"] = (small / 255 * weights).sum((0, 1))
    names = sorted(found)
    del names[9]
    return names, np.stack([found[name] for name in names])


def test_any_run_of_rows_is_read_and_any_rows_are_named(folder):
    opened, (kept, expected) = open_gallery(folder), ids_and_sums()
    for first in range(23):
        for end in range(first, 23):
            np.testing.assert_allclose(opened[first:end], expected[first:end], rtol=1e-5)
    rows = np.array([[21, 0], [9, 6]])
    assert opened.ids(rows).tolist() == [[kept[21], kept[0]], [kept[9], kept[6]]]
    assert (len(opened), opened[-2:].shape, opened[30:].shape) == (22, (2, 3), (0, 3))
    assert opened.broken == [("plain/0030-fe0f-20e3.webp", "not an image that can be read")]


def test_an_incomplete_gallery_is_refused_with_the_shards_it_lacks(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no gallery\.json"):
        open_gallery(tmp_path / "nothing")
    for number in (0, 2):
        shard(folder, number).unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 2 of 4 shards: 0, 2\: {MEND}"):
        open_gallery(folder)


def test_a_gallery_with_a_shard_of_another_is_refused(folder, tmp_path):
    other = shard(tmp_path / "other", 2).read_bytes()
    shard(folder, 2).write_bytes(other)
    with pytest.raises(ValueError, match=f"is mixed: shards 2 are not of the network.*{MEND}"):
        open_gallery(folder)
    (folder / "embeddings-00002-of-00009.array_record").write_bytes(other)
    with pytest.raises(ValueError, match="also holds embeddings-00002-of-00009"):
        open_gallery(folder)


def damaged(path, change):
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    return path


DAMAGES = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "other": lambda whole: b"no shard" * 10_000,
    "its description": lambda whole: whole[:120] + b"?" + whole[121:],
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_named(folder, caplog, change):
    path = damaged(shard(folder, 2), change)
    with pytest.raises(FileNotFoundError, match="lacks 1 of 4 shards: 2"):
        open_gallery(folder)
    assert f"{path} is damaged: it counts as missing" in caplog.text


def test_damage_after_a_shards_description_is_reported_on_access(folder):
    opened = open_gallery(folder)
    row, name = opened[0:1].tobytes(), opened.ids(range(1))[0].encode()
    path = damaged(shard(folder, 0), lambda whole: whole.replace(row, bytes(len(row))).replace(name, name.upper()))
    for read in (lambda: opened[0:3], lambda: opened.ids(range(3))):
        with pytest.raises(DamagedFile, match=rf"{path} is damaged .*: {MEND}"):
            read()
    assert opened[7:].shape == (15, 3)
    path.unlink()
    with pytest.raises(FileProblem, match=f"{path} cannot be read: No such file"):
        opened[0:3]


def test_an_unreadable_shard_is_not_reported_as_damaged(folder, monkeypatch):
    opening = Path.open

    def fail(path, *arguments, **options):
        if path.suffix == ".array_record":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opening(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(FileProblem, match="cannot be read: Input/output error"):
        open_gallery(folder)


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"command": "x", "num_images": 3, "shard_size": 0}'])
def test_a_damaged_description_is_named(folder, content):
    path = folder / gallery.DESCRIPTION
    path.write_text(content)
    with pytest.raises(DamagedFile, match=rf"{path} is damaged"):
        open_gallery(folder)

"""Pictures for a study's report: complete, of the right pairs, under safe names."""

from types import SimpleNamespace

import numpy as np
import pytest

from tll_jax.data import imaging
from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.imaging import read_image
from tll_jax.data.pairs import Crop, Entry, Pairs
from tll_jax.errors import FileProblem
from tll_jax.study import results
from tll_jax.study.folder import StudyFolder, picture_path
from tll_jax.study.results import write_pictures

IDS = ["../../escaped", "/absolute", "caf\udce9", "x" * 300, "a/b", "a b "]
TEST = IDS[:4]


def open_pairs(*, first):
    names = [name.removeprefix("left/") for name in Archive(ARCHIVE).names if name.startswith("left/")][first:]
    entries = [
        Entry(identity, Crop(f"left/{name}"), Crop(f"right/{name}")) for identity, name in zip(IDS, names, strict=False)
    ]
    # The last two pairs show a face.
    return Pairs(Archive(ARCHIVE), entries, find_faces=lambda images, hashes: np.ravel([[0, 0]] * 4 + [[1, 0]] * 2))


@pytest.fixture
def write(tmp_path):
    """`write(pairs)` writes the pictures into a workdir as the report stage does."""
    study, manifest = SimpleNamespace(split=SimpleNamespace(faces="none")), SimpleNamespace(test=TEST)

    def run(pairs):
        write_pictures(study, SimpleNamespace(workdir=tmp_path / "a" / "study", pairs=pairs), manifest)
        return tmp_path / "a" / "study"

    return run


def test_every_picture_is_in_the_studys_folder_and_found_by_its_id(write, tmp_path):
    pairs = open_pairs(first=0)
    workdir = write(pairs)
    assert len(list(tmp_path.rglob("*.png"))) == len(list((workdir / "images").rglob("*.png"))) == 12
    for position, identity in enumerate(IDS):
        left = read_image(picture_path(workdir, "left", identity, excluded=identity not in TEST))
        np.testing.assert_array_equal(left, imaging.shrink(pairs[position].left, 128))
    (workdir / "results.json").write_text("{}")
    (right,) = [right for left, right in StudyFolder(workdir).excluded_pairs()[:1]]
    np.testing.assert_array_equal(right, imaging.shrink(pairs[4].right, 128))


def test_a_picture_that_was_cut_short_is_written_again_and_no_other(write):
    workdir = write(open_pairs(first=0))
    paths = sorted((workdir / "images").rglob("*.png"))
    contents = [path.read_bytes() for path in paths]
    before = {path: path.stat().st_mtime_ns for path in paths}
    damaged = [b"", contents[1][: len(contents[1]) // 2], contents[2][:-12], None]
    for path, content in zip(paths, damaged, strict=False):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    write(open_pairs(first=0))
    assert [path.read_bytes() for path in paths] == contents
    # Both pictures of the damaged pair are written again, and no others.
    unchanged = [path for path in paths if path.stat().st_mtime_ns == before[path]]
    assert len(unchanged) >= 4


def test_pictures_of_other_pairs_of_equal_ids_are_replaced_even_if_that_was_cut_short(write, monkeypatch):
    first, other = open_pairs(first=0), open_pairs(first=6)
    workdir = write(first)
    kept = []

    def stop_after_three(path, image):
        if len(kept) == 3:
            raise FileProblem("the disk is full")
        kept.append(path)
        imaging.write_image(path, image)

    monkeypatch.setattr(results, "write_image", stop_after_three)
    with pytest.raises(FileProblem):
        write(other)
    monkeypatch.undo()
    # Three pictures are of the other pairs now and must not be taken for those of the first.
    write(first)
    for position, identity in enumerate(TEST):
        shown = read_image(picture_path(workdir, "left", identity))
        np.testing.assert_array_equal(shown, imaging.shrink(first[position].left, 128))


def test_a_study_of_0_1_0_shows_the_excluded_pairs_that_lie_in_its_folder(write):
    workdir = write(open_pairs(first=0))
    (workdir / "images" / "index.json").unlink()
    (workdir / "results.json").write_text("{}")
    assert len(StudyFolder(workdir).excluded_pairs()) == 2

"""Overlap of pairs with training images, by content and by near-duplicate detection on either side."""

import shutil

import pytest

from tests.data.layouts import emoji_pairs, save_numbered
from tll_jax.data.duplicates import NearDuplicates
from tll_jax.data.pair_folders import MatchingFolders
from tll_jax.data.seen import SeenPictures, overlap
from tll_jax.errors import MissingFile


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sets(tmp_path):
    """Pairs 0 to 3 of a study, and four others.

    The others are the study's pair 1 under another name; its left picture of 2 re-encoded, with a new one; two new
    pictures; and a new picture with the study's left picture of 3 on the right.
    """
    known, new = (emoji_pairs(slice(start, 1600, 160))[:4] for start in (400, 480))
    save_numbered(tmp_path / "study", known)
    save_numbered(tmp_path / "others", new)
    study, others = tmp_path / "study", tmp_path / "others"
    for side in ("left", "right"):
        shutil.copy(study / side / "00001.jpg", others / side / "00000.jpg")
    known[2][0].resize((150, 184)).save(others / "left" / "00001.jpg", quality=60)
    shutil.copy(study / "left" / "00003.jpg", others / "right" / "00003.jpg")
    return [MatchingFolders(path=str(path)) for path in (study, others)]


def seen(settings, *ids, open=None):
    pairs = settings.open()
    hashes = [content for index in pairs.indices(ids) for content in pairs.hashes[index]]
    return [SeenPictures(hashes=hashes, open=open or settings.open)]


def gone():
    raise MissingFile("no data at study")


def test_equal_and_similar_pictures_are_found_on_either_side(sets):
    study, others = sets
    found = overlap(others.open(), seen(study, "00001", "00002", "00003"), NearDuplicates())
    assert found.equal.tolist() == [True, False, False, True]
    assert found.similar.tolist() == [False, True, False, False]
    assert found.not_looked_for == ""


def test_pictures_that_were_not_trained_on_do_not_count(sets):
    study, others = sets
    found = overlap(others.open(), seen(study, "00000", "00003"), NearDuplicates())
    assert found.equal.tolist() == [False, False, False, True]
    assert not found.similar.any()
    nothing = overlap(others.open(), [], NearDuplicates())
    assert not nothing.equal.any()
    assert not nothing.similar.any()


def test_if_the_pictures_are_gone_content_alone_is_compared_and_the_reason_is_given(sets):
    study, others = sets
    found = overlap(others.open(), seen(study, "00001", "00002", open=gone), NearDuplicates())
    assert found.equal.tolist() == [True, False, False, False]
    assert not found.similar.any()
    assert "no data at study" in found.not_looked_for


def test_pictures_that_have_changed_since_count_as_gone(sets, tmp_path):
    study, others = sets
    before = seen(study, "00001", "00002")
    shutil.copy(tmp_path / "study/left/00000.jpg", tmp_path / "study/left/00002.jpg")
    assert "changed" in overlap(others.open(), before, NearDuplicates()).not_looked_for


def test_cached_hashes_suffice_if_the_pictures_are_gone(sets):
    study, others = sets
    first = overlap(others.open(), seen(study, "00002"), NearDuplicates())
    again = overlap(others.open(), seen(study, "00002", open=gone), NearDuplicates())
    assert again.similar.tolist() == first.similar.tolist() == [False, True, False, False]
    assert again.not_looked_for == ""


def test_drawings_that_are_all_alike_are_compared_by_content_alone(sets):
    study, others = sets
    found = overlap(others.open(), seen(study, "00001", "00002"), None)
    assert found.equal.tolist() == [True, False, False, False]
    assert not found.similar.any()
    assert "by content alone" in found.not_looked_for

"""Comparisons leave out the pairs that their systems have learned from, and model files know which those are."""

import json
import shutil

import numpy as np
import pytest

from tests.configs import tiny
from tests.data.layouts import emoji_pairs, save_numbered
from tests.report.test_comparison import write_study
from tll_jax import serialize
from tll_jax.data.duplicates import NearDuplicates
from tll_jax.data.pair_folders import MatchingFolders
from tll_jax.data.seen import overlap_of_images
from tll_jax.data.splits import Manifest
from tll_jax.model_files import write_model_file
from tll_jax.report.comparison import write_comparison
from tll_jax.study.folder import StudyFolder
from tll_jax.study.learned import learned_by_study, learned_from, seen_test_pairs

IDS = [f"{number:05}" for number in range(6)]
TEST = IDS[:4]
RANKS = np.array([[1, 2, 3, 4], [4, 3, 2, 1]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def study(tmp_path):
    """A study that tested pairs 0 to 3 and fitted on 4 and 5, which show the left picture of 1, and that of 2 saved
    anew: as where its split did not look for pictures that stand twice."""
    pairs = tmp_path / "pairs"
    shown = emoji_pairs(slice(400, 1600, 160))[:6]
    save_numbered(pairs, shown)
    shutil.copy(pairs / "left" / "00001.jpg", pairs / "right" / "00004.jpg")
    shown[2][0].resize((150, 184)).save(pairs / "left" / "00005.jpg", quality=60)
    folder = write_study(tmp_path / "study", "study", TEST, hog=RANKS, histogram=RANKS[::-1])
    config = tiny.get_config()
    config.pairs = MatchingFolders(path=str(pairs))
    config.models = {}
    (folder / "config.json").write_text(json.dumps({"study": "study", "settings": serialize.to_json(config)}))
    opened = config.pairs.open()
    hashes = {identity: list(both) for identity, both in zip(opened.ids, opened.hashes, strict=True)}
    parts = {"train": IDS[4:5], "validation": IDS[5:], "test": TEST}
    Manifest(**parts, rule="", seed=0, pairs_digest=opened.digest(), hashes=hashes).save(folder / "split.json")
    return folder


def test_a_comparison_is_made_on_pairs_that_no_system_has_learned_from(study, tmp_path):
    results = write_comparison([study], tmp_path / "out")
    assert results["protocol"]["queries"] == 2
    # Pairs 0 and 3 are left, among the four candidates that they had.
    assert results["protocol"]["candidates"] == 4
    hog = next(row for row in results["rows"] if row["system"] == "hog")
    assert hog["mrr"]["value"] == (1 + 1 / 4 + 1 / 4 + 1) / 4
    told = results["learned_from"]
    assert (told["pairs"], told["equal"], told["similar"], told["left_out"]) == (2, 1, 1, True)
    said = "2 of 4 pairs are left out: they show a picture that a system has learned from (1 the same by content, 1"
    assert said in (tmp_path / "out" / "compare.md").read_text()
    every = write_comparison([study], tmp_path / "out", include_training=True)
    assert every["protocol"]["queries"] == 4
    assert "2 of 4 pairs show a picture" in every["learned_from"]["words"][0]
    assert next(row for row in every["rows"] if row["system"] == "hog")["mrr"]["value"] == pytest.approx(25 / 48)


def test_pictures_that_are_gone_are_compared_by_content_alone_and_that_is_said(study, tmp_path):
    shutil.rmtree(tmp_path / "pairs")
    results = write_comparison([study], tmp_path / "out")
    assert results["protocol"]["queries"] == 3
    assert results["learned_from"]["similar"] is None
    assert "nearly the same were not looked for" in results["learned_from"]["words"][1]


def test_systems_that_learn_nothing_leave_nothing_out(study, tmp_path):
    saved = json.loads((study / "config.json").read_text())
    saved["settings"]["systems"] = {"histogram": saved["settings"]["systems"]["histogram"]}
    (study / "config.json").write_text(json.dumps(saved))
    results = write_comparison([study], tmp_path / "out")
    assert results["protocol"]["queries"] == 4
    assert results["learned_from"] == {"pairs": 0, "equal": 0, "similar": 0, "left_out": True, "words": []}


def test_of_a_study_that_keeps_no_settings_nothing_can_be_told(study, tmp_path):
    (study / "config.json").unlink()
    results = write_comparison([study], tmp_path / "out")
    assert results["protocol"]["queries"] == 4
    assert results["learned_from"]["pairs"] is None
    assert "cannot be told" in results["learned_from"]["words"][0]


def test_a_comparison_of_nothing_is_refused(study, tmp_path):
    split = json.loads((study / "split.json").read_text())
    (study / "split.json").write_text(json.dumps(split | {"train": IDS}))
    with pytest.raises(ValueError, match="no pair is left to compare on"):
        write_comparison([study], tmp_path / "out")


def test_a_model_file_tells_what_it_has_learned_from_without_the_pictures(study, tmp_path):
    pytest.importorskip("safetensors")
    folder, find_similar = StudyFolder(study), NearDuplicates()
    learned = learned_by_study(folder)
    before = seen_test_pairs(folder, learned)
    found = {}
    for name, looked in (("both", find_similar), ("content", None)):
        path = tmp_path / f"{name}.safetensors"
        write_model_file(path, network={}, provenance={}, tensors={}, pictures=learned.hashes(looked))
        found[name] = learned_from(path, "file", None)
    shutil.rmtree(tmp_path / "pairs" / "left")
    both = seen_test_pairs(folder, found["both"])
    assert both.equal.tolist() == before.equal.tolist() == [False, True, False, False]
    assert both.similar.tolist() == before.similar.tolist() == [False, False, True, False]
    content = seen_test_pairs(folder, found["content"])
    assert content.equal.tolist() == before.equal.tolist()
    assert not content.similar.any()
    assert content.not_looked_for == (
        "the pictures that were trained on are gone (a model file that holds hashes of content alone)"
    )
    # As a gallery asks: of single pictures.
    known = found["both"].pictures[0].hashes[0]
    assert overlap_of_images([], [known, "other"], found["both"].pictures, None).equal.tolist() == [True, False]

"""Run folders: their paths in a study, and reading of their content."""

import numpy as np
import pytest

from tll_jax.study.folder import Explanation, RunFolder


@pytest.mark.parametrize(
    ("place", "name", "seed"),
    [
        ("models/barlow/seed-2", "barlow", 2),
        ("systems/hog", "hog", None),
        ("systems/words/seed-0", "words", 0),
        ("systems/barlow-frozen/seed-11", "barlow-frozen", 11),
    ],
)
def test_a_run_folder_is_named_by_its_place_in_the_study(tmp_path, monkeypatch, place, name, seed):
    run = RunFolder(tmp_path / place)
    assert (run.study, run.name, run.seed) == (tmp_path, name, seed)
    run.path.mkdir(parents=True)
    monkeypatch.chdir(run.path)
    assert RunFolder(run.path.relative_to(run.path)).study == tmp_path


def test_ranks_and_nearest_candidates_come_back_and_those_of_other_pairs_are_refused(tmp_path):
    run = RunFolder(tmp_path)
    assert not run.is_of_a_system
    run.write_ranks(["a", "caf\udce9"], ranks=[[1, 2], [2, 1]], top=[[[0, 1], [0, 1]], [[1, 0], [1, 0]]])
    assert run.is_of_a_system
    ids, left_to_right, right_to_left = run.ranks()
    assert (ids, left_to_right.tolist(), right_to_left.tolist()) == (["a", "caf\udce9"], [1, 2], [2, 1])
    assert run.top(["a", "caf\udce9"]).right_to_left.tolist() == [[1, 0], [1, 0]]
    with pytest.raises(ValueError, match=r"top\.npz is of other pairs than the rest"):
        run.top(["a", "b"])


def test_explanations_come_back_best_ranks_first_and_a_missing_one_is_noticed(tmp_path):
    run = RunFolder(tmp_path)
    assert run.explained() == []
    assert not run.are_explained()
    maps = {name: np.full((2, 2), 0.5, np.float32) for name in ("heatmap_left", "heatmap_right")}
    pictures = {name: np.zeros((2, 2, 3), np.uint8) for name in ("left", "right")}
    kinds = {"../worst": ("worst", 9), "second": ("best", 2), "first": ("best", 1)}
    made = [Explanation(id=id, rank=rank, kind=kind, **pictures, **maps) for id, (kind, rank) in kinds.items()]
    for one in made:
        run.write_explanation(one)
    run.write_explained(made)
    assert [(one.id, one.rank) for one in run.explanations()] == [("first", 1), ("second", 2), ("../worst", 9)]
    assert run.explanations()[0].heatmap_left.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert run.are_explained()
    assert run.has_explanations() == {"explain": True, "recommended": False, "pages": False}
    assert run.recommended() == {}
    places = np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2)
    run.write_recommended(["first", "second", "../worst"], {"decomposition": tuple(places)})
    assert run.has_explanations()["recommended"]
    left, right = run.recommended()["second"]["decomposition"]
    assert (left.tolist(), right.tolist()) == ([[2, 3]], [[8, 9]])
    (tmp_path / "explanations" / "first.npz").unlink()
    assert not run.are_explained()
    run.remove_explanations()
    assert run.explained() == []
    assert run.recommended() == {}

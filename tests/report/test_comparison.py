"""Comparison of several studies: joining, errors, and the matrix worked by hand."""

import json
import shutil

import numpy as np
import pytest

from tll_jax import cli
from tll_jax.evaluation.metrics import metrics_row
from tll_jax.report import significance
from tll_jax.report.charts import recall_at_k
from tll_jax.report.comparison import join, join_folds, recall_bands, systems_with_curves, write_comparison
from tll_jax.statistics import Runs, crossed_difference
from tll_jax.study.folder import Ranks, StudyFolder, write_all_ranks


def write_study(folder, name, ids, planned=(), **systems):
    """A finished study with the given ranks: an array `[2, pairs]` for a baseline, `[seeds, 2, pairs]` for a model."""
    rows, runs = [{"system": "chance", "kind": "chance"}], {}
    for system, ranks in systems.items():
        ranks = np.asarray(ranks)
        kind = "model" if ranks.ndim == 3 else "baseline"
        folders = [f"models/{system}/seed-{seed}" for seed in range(len(ranks))] if kind == "model" else []
        for run, one in zip(folders or [f"systems/{system}"], ranks if kind == "model" else [ranks], strict=True):
            (folder / run).mkdir(parents=True)
            np.savez(folder / run / "ranks.npz", ids=np.array(ids), left_to_right=one[0], right_to_left=one[1])
        runs |= {system: folders} if kind == "model" else {}
        rows.append(metrics_row(system, kind, ranks.reshape(-1, 2, len(ids))))
    comparisons = [
        {"a": a, "b": b, "planned": True, "metric": metric} for a, b in planned for metric in ("top1", "mrr")
    ]
    results = {"study": name, "rows": rows, "runs": runs, "comparisons": comparisons}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def some_ranks(seed, *shape, high=25):
    return np.random.default_rng(seed).integers(1, high, shape)


IDS = [f"p{number:02}" for number in range(24)]


@pytest.fixture
def two_studies(tmp_path):
    first = write_study(
        tmp_path / "one",
        "one",
        IDS,
        planned=[("barlow", "hog")],
        hog=some_ranks(0, 2, 24),
        barlow=some_ranks(1, 3, 2, 24, high=4),
    )
    # The same pairs in another order.
    second = write_study(tmp_path / "two", "two", IDS[::-1], hog=some_ranks(2, 2, 24), lpips=some_ranks(3, 2, 24))
    return first, second


def test_studies_with_only_results_and_ranks_left_compare_as_before(two_studies, tmp_path):
    kept = []
    for number, study in enumerate(StudyFolder(folder) for folder in two_studies):
        folder = tmp_path / f"kept-{number}"
        folder.mkdir()
        shutil.copy(study.path / "results.json", folder)
        ranks = {name: np.array([(one[1], one[2]) for one in study.ranks(name)]) for name in study.systems}
        write_all_ranks(folder, study.ids, ranks)
        kept.append(folder)
    expected, found = (write_comparison(folders, tmp_path / "out") for folders in (two_studies, kept))
    # Paths of the studies, also in the note on unknown training data.
    places = {"studies": 0, "learned_from": 0}
    assert found | places == expected | places
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["studies"] == [str(folder) for folder in kept]


def test_rows_of_all_studies_use_the_same_pairs_and_get_the_studys_name_only_if_names_clash(two_studies):
    joined = join([StudyFolder(folder) for folder in two_studies])
    assert list(joined.ranks) == ["one/hog", "barlow", "two/hog", "lpips"]
    assert joined.kinds["barlow"] == "model"
    assert joined.ids == IDS
    assert joined.ranks["barlow"].tolist() == some_ranks(1, 3, 2, 24, high=4).tolist()
    assert joined.ranks["lpips"].tolist() == [some_ranks(3, 2, 24)[:, ::-1].tolist()]
    assert joined.families == [[("barlow", "one/hog")], []]


def test_two_runs_of_one_study_are_told_apart_by_their_folders(tmp_path):
    folders = [write_study(tmp_path / name, "emoji", IDS, hog=some_ranks(0, 2, 24)) for name in ("a", "b")]
    joined = join([StudyFolder(folder) for folder in folders])
    assert list(joined.ranks) == [f"{folder}/hog" for folder in folders]


def test_studies_that_tested_other_pairs_are_refused_by_name_and_pair(tmp_path, two_studies):
    other = write_study(tmp_path / "three", "three", ["q", *IDS[1:]], hog=some_ranks(0, 2, 24))
    with pytest.raises(
        ValueError, match=r"one and .*three tested different pairs.*1 pair only in .*one: p00.*three: q"
    ):
        join([StudyFolder(two_studies[0]), StudyFolder(other)])


def test_a_study_that_keeps_no_ranks_is_refused(two_studies):
    (two_studies[1] / "systems" / "lpips" / "ranks.npz").unlink()
    with pytest.raises(FileNotFoundError, match="two keeps no ranks of lpips: run its evaluate"):
        join([StudyFolder(folder) for folder in two_studies])


def test_systems_of_one_study_that_were_ranked_on_other_pairs_are_refused(two_studies):
    folder = two_studies[0]
    study, run = StudyFolder(folder), folder / "models" / "barlow" / "seed-1"
    assert len(study.ranks("barlow")) == 3
    np.savez(run / "ranks.npz", ids=np.array(IDS[::-1]), left_to_right=np.ones(24), right_to_left=np.ones(24))
    with pytest.raises(ValueError, match="one: barlow was ranked on other pairs than the rest"):
        study.ranks("barlow")
    for ids in (IDS, IDS[::-1]):
        top = np.zeros((24, 5), int)
        np.savez(folder / "systems" / "hog" / "top.npz", ids=np.array(ids), left_to_right=top, right_to_left=top)
        if ids == IDS:
            assert study.top("hog").left_to_right.shape == (24, 5)
    with pytest.raises(ValueError, match=r"top\.npz is of other pairs than the rest"):
        study.top("hog")


def test_ranks_that_are_newer_than_the_results_are_refused(two_studies):
    folder = two_studies[0]
    runs = ["systems/hog", *(f"models/barlow/seed-{seed}" for seed in range(3))]
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"keys": dict.fromkeys(runs, "a")}))
    for run in runs:
        (folder / run / "evaluate.done.json").write_text('{"key": "a"}')
    study = StudyFolder(folder)
    assert [len(study.ranks(system)) for system in study.systems] == [1, 3]
    (folder / "models/barlow/seed-2/evaluate.done.json").write_text('{"key": "b"}')
    with pytest.raises(ValueError, match=r"seed-2 was evaluated again after .*results\.json was written"):
        study.ranks("barlow")
    (folder / "models/barlow/seed-2/evaluate.done.json").unlink()
    with pytest.raises(ValueError, match="run the study's evaluate and report stages again"):
        study.ranks("barlow")


def test_the_written_files_agree_with_the_rows_and_families_of_the_studies(two_studies, tmp_path):
    out = tmp_path / "out"
    results = write_comparison(two_studies, out)
    assert json.loads((out / "compare.json").read_text()) == results
    assert [row["system"] for row in results["rows"]] == ["chance", "one/hog", "barlow", "two/hog", "lpips"]
    study_row = StudyFolder(two_studies[0]).results["rows"][2]
    assert results["rows"][2]["mrr"] == study_row["mrr"]
    assert [(one["a"], one["b"], one["metric"]) for one in results["comparisons"]] == [
        ("barlow", "one/hog", metric) for metric in ("top1", "top5", "mrr")
    ]
    assert all(one["p_holm"] >= one["p_value"] for one in results["comparisons"])
    assert len(results["significance"]) == 2 * 6
    text = (out / "compare.md").read_text()
    assert "24 test pairs, each ranked in both directions among 24 candidates" in text
    assert "## Planned comparisons" in text
    assert "Exploratory" in text
    assert results["course"]["lpips"]["value"] > 0
    for name in ("significance", "rank_histograms", "recall_at_k"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_matrix_has_mrr_above_and_top_1_below_the_diagonal_signed_for_the_row(two_studies):
    results = {
        "rows": [
            {"system": "a", "kind": "baseline", "mrr": {"value": 0.2}},
            {"system": "b", "kind": "model", "mrr": {"value": 0.5}},
        ],
        "significance": [
            {"a": "a", "b": "b", "metric": "mrr", "difference": -0.3, "p_value": 0.001, "p_max_t": 0.002},
            {"a": "a", "b": "b", "metric": "top1", "difference": 0.1, "p_value": 0.4, "p_max_t": 0.4},
        ],
    }
    names, cells = significance.matrix(results)
    assert names == ["b", "a"]
    assert cells == [[None, (0.3, 0.002)], [(0.1, 0.4), None]]
    lines = significance.matrix_markdown(results)
    assert "| b |  | **+ .002** |" in lines
    assert "| a | + .400 |  |" in lines
    axes = significance.matrix_figure(results).axes[0]
    assert [text.get_text() for text in axes.texts] == [".002", ".400"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    # Results of 0.1.0.
    for one in results["significance"]:
        one["p_holm"] = one.pop("p_max_t")
    assert significance.matrix(results) == (names, cells)
    assert "Holm's correction" in significance.description(results)


def test_runs_are_resampled_by_shared_pretrainings_even_if_names_clash(tmp_path):
    def ranks(seeds, first):
        return np.stack([some_ranks(first, 2, 24, high=3 + 4 * (seed % 2)) for seed in range(seeds)])

    systems = {"barlow": ranks(4, 0), "barlow-frozen": ranks(2, 5), "hog": some_ranks(2, 2, 24)}
    one = write_study(tmp_path / "one", "one", IDS, planned=[("barlow", "hog")], **systems)
    two = write_study(tmp_path / "two", "two", IDS, barlow=ranks(4, 9))
    results = write_comparison([one, two], tmp_path / "out")
    starts = {row["system"]: row["num_starts"] for row in results["rows"]}
    assert starts == {"chance": None, "one/barlow": 2, "barlow-frozen": None, "hog": None, "two/barlow": None}
    (mrr,) = (found for found in results["comparisons"] if found["metric"] == "mrr")
    per_pair = 1 / systems["barlow"]
    expected = crossed_difference(
        Runs(per_pair.mean(axis=1), [0, 1, 0, 1]), Runs((1 / systems["hog"]).mean(axis=0, keepdims=True))
    )
    assert (mrr["crossed"]["low"], mrr["crossed"]["high"]) == pytest.approx(expected)
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "draws seeds and pretrainings anew as well" in text
    assert "| MRR, pairs and runs |" in text


def test_bands_contain_the_curve_and_end_at_1_if_all_pairs_agree(two_studies):
    joined = join([StudyFolder(two_studies[0])])
    bands = recall_bands(joined)
    share = np.mean(joined.ranks["barlow"] <= 1)
    assert bands["barlow"].low[0] < share < bands["barlow"].high[0]
    # No rank is over 3.
    assert bands["barlow"].high[2:].tolist() == [1] * 22
    assert np.ptp(bands["barlow"].low[2:]) == 0
    assert 0.5 < bands["barlow"].low[2] < 1


def test_five_folds_become_one_row_per_system_over_all_their_pairs(tmp_path):
    sizes = (4, 4, 5)
    folders, every = [], []
    for fold, size in enumerate(sizes):
        ranks = some_ranks(fold, 1, 2, size, high=size + 1)
        every.append(ranks)
        ids = [f"{fold}-{number}" for number in range(size)]
        folders.append(write_study(tmp_path / str(fold), "folds", ids, barlow=ranks, hog=ranks[0]))
    results = write_comparison(folders, tmp_path / "out", folds=True)
    chance, barlow, hog = results["rows"]
    assert chance["top1"]["value"] == 3 / 13
    pooled = np.concatenate([ranks.ravel() for ranks in every])
    assert barlow["mrr"]["value"] == pytest.approx(np.mean(1 / pooled))
    assert hog["top1"]["value"] == pytest.approx(np.mean(pooled == 1))
    assert results["protocol"] == {"queries": 13, "candidates": 5, "paper_k": 1, "folds": [4, 4, 5]}
    assert (
        "among the pairs of its own fold, one of 3 (at most 5 candidates)" in (tmp_path / "out/compare.md").read_text()
    )
    assert "course" not in results


def test_folds_that_test_a_pair_twice_are_refused(two_studies):
    with pytest.raises(ValueError, match="24 pairs are tested in more than one fold: p00"):
        join_folds([StudyFolder(folder) for folder in two_studies])


def test_the_command_prints_the_table_and_the_paths_of_the_files(two_studies, tmp_path, capsys):
    cli.main(["compare", *map(str, two_studies), f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert "| chance | chance |" in printed
    assert "| two/hog | no training |" in printed
    assert printed.rstrip().endswith("out/compare.md")
    with pytest.raises(SystemExit, match="is not a finished study"):
        cli.main(["compare", str(tmp_path)])


def test_systems_beyond_the_number_of_colors_differ_in_line_style():
    ids = [str(number) for number in range(5)]
    names = [f"system-{number}" for number in range(20)]
    ranks = {name: [Ranks(ids, np.arange(1, 6), np.arange(1, 6))] for name in names}
    axes = recall_at_k(ranks, num_candidates=5).axes[0]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in axes.lines}
    assert len(looks) == 20 + 1


def test_curves_are_those_of_planned_comparisons_and_the_best_ten_at_most():
    rows = [{"system": "chance", "kind": "chance", "mrr": {"value": 0.9}}]
    rows += [{"system": f"s{i}", "kind": "baseline", "mrr": {"value": i / 20}} for i in range(14)]
    results = {"rows": rows, "comparisons": [{"a": "s1", "b": "s0"}, {"a": "s1", "b": "s13"}]}
    assert systems_with_curves(results) == ["s1", "s0", "s13", *(f"s{i}" for i in range(12, 5, -1))]

"""Whole studies and the files that they write."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors
from absl.testing import flagsaver

import tll_jax
from tests.configs import tiny
from tll_jax import cli, main, serialize
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImageFolder
from tll_jax.data.imaging import write_image
from tll_jax.data.pair_folders import MatchingFolders
from tll_jax.data.seen import overlap
from tll_jax.data.splits import Split
from tll_jax.devices import make_mesh
from tll_jax.errors import UserError
from tll_jax.evaluation.embed import head_embedding
from tll_jax.files import write_json
from tll_jax.models.weights import WeightFile, load_backbone
from tll_jax.study.explain import ExplainRequest
from tll_jax.study.explain_files import explain_query
from tll_jax.study.folder import StudyFolder, check_own_folder, mark_done
from tll_jax.study.learned import learned_from
from tll_jax.study.load import load_run, load_system
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.run import STAGES
from tll_jax.systems.baselines import Pixels

TINY = Path(__file__).parent / "configs" / "tiny.py"


def test_a_study_leaves_results_for_every_system_and_a_report(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [row["system"] for row in results["rows"]] == [
        "chance",
        "pixels",
        "histogram",
        "hog",
        "barlow-frozen",
        "random-frozen",
        "barlow",
        "random",
    ]
    assert results["protocol"] == {"queries": 40, "candidates": 40, "paper_k": 1}
    assert results["data"]["pretraining_saw"]["barlow"] == "3,140 images, no image of a test pair"
    assert (finished / "report.html").stat().st_size > 10_000
    assert "hog" in (finished / "results.md").read_text()


def test_the_rows_of_a_study_follow_from_the_ranks_in_its_run_folders(finished):
    results = json.loads((finished / "results.json").read_text())
    row = next(row for row in results["rows"] if row["system"] == "barlow")
    with np.load(finished / "models" / "barlow" / "seed-0" / "ranks.npz") as ranks:
        reciprocal = [1 / rank for way in ("left_to_right", "right_to_left") for rank in ranks[way].tolist()]
    assert len(reciprocal) == 80
    assert row["mrr"]["value"] == pytest.approx(sum(reciprocal) / 80)


def test_the_ranks_of_all_systems_are_kept_in_one_small_file_beside_the_results(finished, tmp_path):
    for name in ("results.json", "ranks.npz"):
        shutil.copy(finished / name, tmp_path)
    whole, kept = StudyFolder(finished), StudyFolder(tmp_path)
    assert kept.systems == whole.systems
    for system in whole.systems:
        for one, other in zip(kept.ranks(system), whole.ranks(system), strict=True):
            assert one.ids == other.ids
            np.testing.assert_array_equal(one.of_all_queries(), other.of_all_queries())
    assert (tmp_path / "ranks.npz").stat().st_size < 10_000


def test_the_ranks_of_a_model_follow_from_its_embeddings_by_a_slow_loop(finished):
    folder = finished / "models" / "random" / "seed-0"
    with np.load(folder / "embeddings.npz") as saved, np.load(folder / "ranks.npz") as ranks:
        left, right = saved["left"].astype(float), saved["right"].astype(float)
        for query in range(len(left)):
            distances = [np.sum((left[query] - candidate) ** 2) for candidate in right]
            farther = sum(distance > distances[query] + 1e-9 for distance in distances)
            nearer = sum(distance < distances[query] - 1e-9 for distance in distances)
            assert nearer + 1 <= ranks["left_to_right"][query] <= len(right) - farther


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.evaluate.batchsize=3"], "batchsize"),
        (
            ["--config.models.barlow.pretrain.loop.batch_size=0"],
            "config.models.barlow.pretrain.loop: batch_size is 0",
        ),
        (["--config.models.barlow.pretrain.loop.batch_size=9999"], "more than the 3140 training examples"),
        (["--config.split.num_test=5000"], "lower split.num_test"),
        (
            ["--config.models.random.finetune.frozen_stages=9"],
            "finetune.frozen_stages is 9; it must be at most 5",
        ),
        (["--stages=pretrain,polish"], "--stages names polish; the stages are pretrain, finetune"),
        (["--stages=evaluate"], "pretrain of model barlow has not been done"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(tmp_path, arguments, named):
    def ask():
        settings = main.parse(["main", f"--config={TINY}", f"--workdir={tmp_path / 'study'}", *arguments])
        tll_jax.run(settings, workdir=tmp_path / "study", stages_to_run=main.STAGES.value or STAGES)

    with flagsaver.flagsaver(), pytest.raises(UserError, match=re.escape(named)):
        ask()
    assert not (tmp_path / "study" / "stages").exists()


def test_a_workdir_of_another_study_or_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"study": "mine"}')
    with pytest.raises(UserError, match="belongs to the study 'mine', not to 'tiny'"):
        tll_jax.run(tiny.get_config(), workdir=tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="is not empty and not a study's folder"):
        tll_jax.run(tiny.get_config(), workdir=tmp_path)


@dataclasses.dataclass(kw_only=True)
class Named(MatchingFolders):
    """Pairs the first of which have ids other than their file names."""

    ids: list[str]

    def find(self, archive):
        entries, skipped = super().find(archive)
        named = [dataclasses.replace(entry, id=id) for entry, id in zip(entries, self.ids, strict=False)]
        return named + entries[len(named) :], skipped


@pytest.mark.parametrize(
    ("names", "settings", "results", "message"),
    [
        ([], None, None, None),
        ([".lock", "config.json.12-34.partial"], None, None, None),
        ([], '{"study": "tiny"}', None, None),
        (["split.json"], "", None, None),
        (["split.json"], '{"stu', '{"study": "tiny"}', None),
        (["split.json"], '{"stu', '{"study": "mine"}', "belongs to the study 'mine'"),
        ([], "", None, r"config\.json names no study: give another --workdir, or delete that file"),
        ([], "[1]", None, r"config\.json names no study"),
        ([], '{"study": "mine"}', None, "belongs to the study 'mine', not to 'tiny'"),
        (["stages"], None, None, None),
        (["stages", "thesis.txt"], None, None, "is not empty and not a study's folder"),
        (["thesis.txt"], None, None, "is not empty and not a study's folder"),
        ([], None, '{"study": "tiny"}', "is not empty and not a study's folder"),
    ],
)
def test_a_workdir_is_refused_if_it_holds_another_study_or_unrelated_files(tmp_path, names, settings, results, message):
    for name, content in (("config.json", settings), ("results.json", results), *((name, "") for name in names)):
        if content is not None:
            (tmp_path / name).write_text(content)
    if message is None:
        check_own_folder(tmp_path, tiny.get_config())
    else:
        with pytest.raises(ValueError, match=message):
            check_own_folder(tmp_path, tiny.get_config())


def test_a_study_of_hostile_ids_comes_to_its_report_and_writes_nowhere_else(tmp_path):
    ids = [
        "../../out",
        str(tmp_path / "out"),
        "caf\udce9",
        "x" * 300,
        "a/b",
        "a ",
        "=1",
        "<b>|$\n",
        "é" * 150,
        ".",
        "..",
    ]
    data, workdir = tmp_path / "data", tmp_path / "a" / "study"
    rng = np.random.default_rng(0)
    for number in range(24):
        for side in ("left", "right"):
            write_image(data / side / f"caf\udce9{number}.png", rng.integers(0, 256, (8, 8, 3), np.uint8))
    settings = tiny.get_config()
    settings.models, settings.planned = {}, ()
    settings.systems = {"pixels": Pixels(size=4)}
    settings.split = Split(num_test=12, faces="include")
    settings.pairs = Named(ids=ids, path=str(data), duplicates=None)
    tll_jax.run(settings, workdir=workdir)
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(data) or path.is_relative_to(workdir) for path in written)
    found = StudyFolder(workdir)
    assert set(found.ids) <= {*ids, *(f"caf\udce9{number}" for number in range(24))}
    assert len(set(found.ids) & set(ids)) >= 4
    assert all(found.image(identity, side).shape == (8, 8, 3) for identity in found.ids for side in ("left", "right"))
    assert (workdir / "report.html").stat().st_size > 1000


def test_a_trained_model_scores_pairs_without_those_that_it_was_trained_on(finished, tmp_path, capsys):
    run_folder = finished / "models" / "barlow" / "seed-0"
    cli.main(["evaluate", str(run_folder), "--pairs=emoji", f"--out={tmp_path / 'scores.json'}"])
    shown = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    # All 1,610 pairs except the 40 test pairs of the study.
    assert scores["learned_from"]["pairs"] == 1570
    assert "1,570 of 1,610 pairs are left out" in shown
    assert "40 pairs, each" in shown
    assert "test pairs" not in shown
    assert [row["system"] for row in scores["rows"]] == ["chance", "barlow"]
    rows = json.loads((finished / "results.json").read_text())["rows"]
    assert scores["rows"][1]["mrr"]["value"] == pytest.approx(
        next(row["mrr"]["value"] for row in rows if row["system"] == "barlow")
    )


def test_results_of_other_settings_are_refused_before_anything_is_written(finished, tmp_path, opened_once):
    workdir = shutil.copytree(finished, tmp_path / "study")
    before = {path: path.read_bytes() for path in workdir.rglob("config.json")}
    settings = tiny.get_config()
    settings.systems["pixels"].size = 15
    with pytest.raises(
        ValueError, match=r"ranks of pixels .* other config\.systems\.pixels\. Add evaluate to --stages"
    ):
        tll_jax.run(settings, workdir=workdir, stages_to_run=("report",))
    settings.evaluate.geometry.size = 24
    with pytest.raises(ValueError, match=r"finetune of model barlow .* add finetune and evaluate to --stages"):
        tll_jax.run(settings, workdir=workdir, stages_to_run=("report",))
    assert {path: path.read_bytes() for path in workdir.rglob("config.json")} == before

    run_folder = workdir / "models" / "barlow" / "seed-0"
    assert json.loads((run_folder / "split.json").read_text()) == json.loads((workdir / "split.json").read_text())
    mark_done(run_folder, "other", "evaluate")
    with pytest.raises(ValueError, match=r"seed-0 was evaluated again after .*results\.json was written"):
        StudyFolder(workdir).ranks("barlow")
    with pytest.raises(ValueError, match=r"embeddings in .* are older than what it was trained with last"):
        explain_query(run_folder, "1f98a", tmp_path, ExplainRequest(), num_candidates=1)


def test_an_exported_backbone_embeds_as_the_model_did(finished, tmp_path, capsys):
    folder, out = finished / "models" / "barlow" / "seed-0", tmp_path / "new" / "backbone.safetensors"
    cli.main(["export", str(folder), f"--out={out}"])
    # A ResNet-10 has 12 convolutions, each before a batch normalization of four tensors.
    assert "60 tensors" in capsys.readouterr().out
    model, evaluate, trained = load_run(folder)
    with safetensors.safe_open(out, framework="numpy") as file:
        assert file.metadata()["running_var"] == "biased"
    exported = load_backbone(model.backbone, WeightFile(path=str(out)))
    again = {name: values | {"backbone": exported[name]} for name, values in trained.variables.items()}
    pairs = EmojiPairs().open()
    test = pairs.images(pairs.indices(json.loads((finished / "split.json").read_text())["test"]))
    embedder = make_embedder(head_embedding(siamese(model)), evaluate, make_mesh())
    with np.load(folder / "embeddings.npz") as saved:
        np.testing.assert_allclose(embedder(again, test.left), saved["left"], atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "out", "message"),
    [
        (".", "a.safetensors", "^tll: .*STUDY/models/<name>/seed-<k>"),
        ("models/barlow/seed-0", "a.pth", r"a.pth; it must end in .safetensors"),
    ],
)
def test_an_impossible_export_is_refused(finished, tmp_path, folder, out, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(["export", str(finished / folder), f"--out={tmp_path / out}"])
    assert not (tmp_path / out).exists()


def test_a_folder_that_is_no_run_is_refused_with_where_runs_lie(tmp_path):
    with pytest.raises(SystemExit, match="STUDY/models/<name>/seed-<k>"):
        cli.main(["evaluate", str(tmp_path), "--pairs=emoji"])


def test_pictures_that_pretraining_saw_count_as_learned_from(finished, tmp_path, opened_once):
    workdir = tmp_path / "study"
    (workdir / "models" / "barlow").mkdir(parents=True)
    run_folder = shutil.copytree(finished / "models" / "barlow" / "seed-0", workdir / "models" / "barlow" / "seed-0")
    test = json.loads((run_folder / "split.json").read_text())["test"]

    def learned():
        found = overlap(EmojiPairs().open(), learned_from(run_folder, "model", None).pictures, None)
        return int(found.equal.sum())

    assert learned() == 1610 - len(test)
    saved = json.loads((run_folder / "config.json").read_text())
    saved["settings"]["pretrain"]["sees_test_images"] = True
    write_json(run_folder / "config.json", saved)
    assert learned() == 1610
    saved["settings"]["pretrain"]["images"] = serialize.to_json(ImageFolder(path="photos"))
    write_json(run_folder / "config.json", saved)
    assert learned_from(run_folder, "model", None).not_known == [
        "The images of its pretraining, which are no pairs, were not compared."
    ]
    assert learned() == 1610 - len(test)


def test_a_trained_model_writes_the_course_editions_submission(finished, tmp_path):
    pairs = EmojiPairs().open()
    rows = ["left," + ",".join(f"c{column}" for column in range(20))]
    for side in ("left", "right"):
        (tmp_path / "test" / side).mkdir(parents=True)
    for index in range(24):
        pair = pairs[index]
        for side, image in (("left", pair.left), ("right", pair.right)):
            cv2.imwrite(str(tmp_path / "test" / side / f"{side[0]}{index}.png"), image[:, :, ::-1])
        rows.append(",".join([f"l{index}", *(f"r{(index + step) % 24}" for step in range(20))]))
    (tmp_path / "test_candidates.csv").write_text("\n".join(rows) + "\n")
    run_folder = finished / "models" / "barlow" / "seed-0"
    arguments = [f"--candidates={tmp_path / 'test_candidates.csv'}", f"--submission={tmp_path / 'out.csv'}"]
    cli.main(["evaluate", str(run_folder), *arguments])
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == rows[0]
    values = np.array([[float(value) for value in line.split(",")[1:]] for line in lines[1:]])
    assert values.shape == (24, 20)
    # Each query ranked alone among its own candidates gives the same.
    _, _, system = load_system(run_folder)
    for index in range(24):
        candidates = [pairs[(index + step) % 24].right for step in range(20)]
        scores = system.score([pairs[index].left], candidates)[0]
        expected = (scores - scores.min()) / (scores.max() - scores.min())
        np.testing.assert_allclose(values[index], expected, atol=0.01)
    with pytest.raises(SystemExit, match="--candidates FILE and --submission OUT go together"):
        cli.main(["evaluate", str(run_folder), arguments[0]])

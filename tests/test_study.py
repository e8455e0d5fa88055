"""Whole studies in real processes, with kills, and the files that they write."""

import dataclasses
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors
from absl.testing import flagsaver

import tll_jax
from tests.configs import one_stage, tiny
from tll_jax import cli, main, serialize
from tll_jax.config_files import load_study
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImageFolder
from tll_jax.data.imaging import write_image
from tll_jax.data.pair_folders import MatchingFolders
from tll_jax.data.pipeline import Readers
from tll_jax.data.seen import overlap
from tll_jax.data.splits import Split
from tll_jax.devices import make_mesh
from tll_jax.errors import UserError
from tll_jax.evaluation.embed import head_embedding
from tll_jax.files import write_json
from tll_jax.models.weights import WeightFile, load_backbone
from tll_jax.report import StudyFolder
from tll_jax.settings import validate
from tll_jax.study.checks import check_fits_nothing
from tll_jax.study.evaluate import Evaluations, seeded_systems
from tll_jax.study.explain import ExplainRequest
from tll_jax.study.explain_files import explain_query
from tll_jax.study.folder import check_own_folder, mark_done
from tll_jax.study.learned import learned_from
from tll_jax.study.load import load_run, load_system
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.other_pairs import evaluate_on, submit
from tll_jax.study.results import collect
from tll_jax.study.run import STAGES, Run
from tll_jax.study.train import Context
from tll_jax.systems.bag_of_words import BagOfWords
from tll_jax.systems.baselines import ColorHistogram, Pixels
from tll_jax.systems.ensemble import Ensemble
from tll_jax.training.records import TIMING_FIELDS, read
from tll_jax.typing import System

TINY = Path(__file__).parent / "configs" / "tiny.py"


def command(workdir, *arguments):
    return [
        sys.executable,
        "-m",
        "tll_jax.main",
        f"--config={TINY}",
        f"--workdir={workdir}",
        *arguments,
    ]


def run(environment, workdir, *arguments):
    return subprocess.run(
        command(workdir, *arguments),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def without_timing(records):
    return [{name: value for name, value in r.items() if name not in TIMING_FIELDS} for r in records]


def stage_metrics(workdir):
    return {path.parent.name: without_timing(read(path)) for path in workdir.glob("stages/*/metrics.jsonl")}


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


def test_running_again_skips_every_stage_and_says_so(one_stage_alone, tmp_path, caplog):
    again = shutil.copytree(one_stage_alone, tmp_path / "study")
    (again / "results.json").unlink()
    caplog.set_level(logging.INFO)
    tll_jax.run(load_study(one_stage.__file__), workdir=again)
    stages = ("pretrain barlow", "finetune barlow seed 0", "explain barlow seed 0")
    for stage in (*stages, "evaluate barlow-frozen", "evaluate pixels"):
        assert [line for line in caplog.messages if line.startswith(f"{stage}: up to date, skipped")]
    found, before = (json.loads((one / "results.json").read_text()) for one in (again, one_stage_alone))
    assert found["rows"] == before["rows"]


STOPS = [("pretrain", signal.SIGTERM), ("finetune", signal.SIGKILL)]


def test_a_run_that_is_stopped_in_both_trainings_ends_as_if_it_had_not_been(environment, one_stage_alone, tmp_path):
    disturbed = tmp_path / "disturbed"
    environment = environment | {"JAX_NUM_CPU_DEVICES": "2"}
    arguments = (f"--config={one_stage.__file__}", "--stages=pretrain,finetune")
    for stop, (stage, number) in enumerate(STOPS):
        # Reading by workers does not change results, and no worker keeps the output open after its study.
        readers = [f"--config.num_workers={int(number == signal.SIGTERM)}"]
        words = command(disturbed, *arguments, *readers)
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        # After step 32 that of step 16 is saved for certain.
        wait_for_step(process, disturbed, stage, step=34)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL), errors
        assert ("going on at step" in errors) == (stop > 0)
        if number == signal.SIGTERM:
            assert f"{stage} barlow" in errors
            assert "the same command goes on from there" in errors
    outcome = run(environment, disturbed, *arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert "going on at step" in outcome.stderr
    assert stage_metrics(disturbed) == stage_metrics(one_stage_alone)
    assert len(stage_metrics(one_stage_alone)) == 2


def wait_for_step(process, workdir, stage, *, step):
    """Waits until the first model's stage has logged `step`; fails if the process ends before."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        if any(r["step"] >= step for path in workdir.glob(f"stages/{stage}-*/metrics.jsonl") for r in read(path)):
            return
        time.sleep(0.02)
    raise AssertionError(f"{stage} did not reach step {step}")


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
        settings = main.parse(["main", *command(tmp_path / "study")[3:], *arguments])
        tll_jax.run(settings, workdir=tmp_path / "study", stages_to_run=main.STAGES.value or STAGES)

    with flagsaver.flagsaver(), pytest.raises(UserError, match=re.escape(named)):
        ask()
    assert not (tmp_path / "study" / "stages").exists()


def test_an_impossible_study_ends_with_one_line(environment, tmp_path):
    outcome = run(environment, tmp_path / "study", "--stages=evaluate")
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("tll_jax: pretrain of model barlow has not been done")
    assert "Traceback" not in outcome.stderr


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


@pytest.fixture(scope="module")
def probed(environment, tmp_path_factory):
    """A finished study of two pretrainings, three fine-tuning seeds and a probe, and its results."""
    workdir = tmp_path_factory.mktemp("probed") / "study"
    config_path = TINY.with_name("probed.py")
    outcome = run(environment, workdir, f"--config={config_path}", "--stages=pretrain,finetune,evaluate,report")
    assert outcome.returncode == 0, outcome.stderr
    return workdir, json.loads((workdir / "results.json").read_text())


def test_fine_tuning_seeds_take_turns_on_the_pretrainings(probed):
    workdir, results = probed
    assert len(list(workdir.glob("stages/pretrain-*"))) == 2
    records = {seed: read(workdir / f"models/barlow/seed-{seed}/pretrain.jsonl") for seed in range(3)}
    losses = {seed: [record["loss"] for record in found if "loss" in record] for seed, found in records.items()}
    assert losses[0] == losses[2] != losses[1]
    rows = {row["system"]: row["num_seeds"] for row in results["rows"]}
    assert (rows["barlow-frozen"], rows["barlow"], rows["random-frozen"], rows["random"]) == (2, 3, 1, 3)
    assert [len(StudyFolder(workdir).ranks(name)) for name in ("barlow-frozen", "random-frozen")] == [2, 1]


def test_backbones_are_probed_while_they_pretrain_and_after(probed):
    workdir, results = probed
    assert {name: len(found) for name, found in results["probes"].items()} == {"barlow-frozen": 2, "random-frozen": 1}
    records = read(workdir / "models/barlow/seed-0/pretrain.jsonl")
    watched = [record["probe/neighbors"] for record in records if "probe/neighbors" in record]
    assert len(watched) == 2
    # After the last step the backbone is the one that is probed later; few of its neighbors are so near that rounding
    # decides. Chance is one of 98 classes.
    assert watched[-1] == pytest.approx(results["probes"]["barlow-frozen"][0]["neighbors"], abs=0.05)
    for found in results["probes"].values():
        for accuracy in found:
            assert 0.1 < accuracy["neighbors"] < 1
            assert 2 / 98 < accuracy["linear"] < 1
    assert "## Probes" in (workdir / "results.md").read_text()


def test_a_trained_model_scores_pairs_without_those_that_it_was_trained_on(tll, finished, tmp_path):
    run_folder = finished / "models" / "barlow" / "seed-0"
    outcome = tll("evaluate", run_folder, "--pairs=emoji", f"--out={tmp_path / 'scores.json'}")
    assert outcome.returncode == 0, outcome.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    # All 1,610 pairs except the 40 test pairs of the study.
    assert scores["learned_from"]["pairs"] == 1570
    assert "1,570 of 1,610 pairs are left out" in outcome.stdout
    assert "40 pairs, each" in outcome.stdout
    assert "test pairs" not in outcome.stdout
    assert [row["system"] for row in scores["rows"]] == ["chance", "barlow"]
    rows = json.loads((finished / "results.json").read_text())["rows"]
    assert scores["rows"][1]["mrr"]["value"] == pytest.approx(
        next(row["mrr"]["value"] for row in rows if row["system"] == "barlow")
    )


@pytest.fixture
def opened_once(monkeypatch):
    pairs = EmojiPairs().open()
    monkeypatch.setattr(EmojiPairs, "open", lambda settings: pairs)


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


FITS = []


@dataclasses.dataclass(kw_only=True)
class Guess(System):
    """A system with random scores of its seed that records the pairs it was fitted on."""

    seed: int = 0

    def fit(self, train, validation):
        FITS.append((self.seed, list(validation.ids)))

    def score(self, queries, candidates):
        return np.random.default_rng(self.seed).normal(size=(len(queries), len(candidates))).astype(np.float32)


def evaluate_systems(settings, context, manifests, evaluations):
    """Evaluates the systems of a study without models."""
    opened = {"sources": {}, "weights": {}, "probe": None, "trainings": [], "stages": ["evaluate"]}
    run = Run(study=settings, context=context, manifests=manifests, evaluations=evaluations, **opened)
    run.evaluate_systems()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A study of systems without models, with three seeds: settings, context, folds and results."""
    settings = tiny.get_config()
    settings.models, settings.planned, settings.seeds = {}, (), (0, 5, 2)
    settings.systems = {"guess": Guess(), "pixels": Pixels(size=4), "histogram": ColorHistogram(bins=(4, 2, 2))}
    settings.systems["both"] = Ensemble(members={name: settings.systems[name] for name in ("pixels", "histogram")})
    settings.faces_included = ("histogram",)
    validate(settings)
    context = Context(
        workdir=tmp_path_factory.mktemp("evaluated"),
        pairs=settings.pairs.open(),
        mesh=make_mesh(),
        readers=Readers(num_threads=0),
    )
    manifests = [settings.split.make(context.pairs, fold=fold) for fold in range(3)]
    check_fits_nothing(settings)
    evaluations = Evaluations.of(settings, context, manifests, [])
    evaluate_systems(settings, context, manifests, evaluations)
    results = collect(settings, context, manifests[0], evaluations, evaluations.ranks(), {})
    write_json(context.workdir / "results.json", results)
    return settings, context, manifests, results


def test_a_system_with_a_seed_is_evaluated_once_a_seed_each_choosing_on_its_own_fold(evaluated):
    _, context, manifests, results = evaluated
    rows = {row["system"]: row for row in results["rows"]}
    assert {name: (rows[name]["num_seeds"], rows[name]["kind"]) for name in ("guess", "both", "pixels")} == {
        "guess": (3, "fitted"),
        "both": (3, "fitted"),
        "pixels": (1, "baseline"),
    }
    assert [(seed, manifest.validation) for seed, manifest in zip((0, 5, 2), manifests, strict=True)] == FITS
    assert manifests[0].validation != manifests[1].validation
    test = context.pairs.images(context.pairs.indices(manifests[0].test))
    scores = Guess(seed=5).score(test.left, test.right)
    slow = [sum(score >= row[query] for score in row) for query, row in enumerate(scores)]
    folder = StudyFolder(context.workdir)
    assert [run.name for run in folder.runs("guess")] == ["seed-0", "seed-5", "seed-2"]
    assert folder.ranks("guess")[1].left_to_right.tolist() == slow
    assert folder.models == []
    assert len(folder.ranks("pixels")) == 1


def test_systems_that_are_evaluated_already_are_not_fitted_again(evaluated):
    settings, context, manifests, _ = evaluated
    before = len(FITS)
    evaluate_systems(settings, context, manifests, Evaluations.of(settings, context, manifests, []))
    assert len(FITS) == before


def test_a_system_that_fits_nothing_is_ranked_among_all_pairs_as_well(evaluated):
    _, context, _, results = evaluated
    chance, row = results["faces_included"]
    assert row["system"] == "histogram"
    assert chance["top1"]["value"] == pytest.approx(1 / 1610)
    with np.load(context.workdir / "systems" / "histogram" / "faces-included" / "ranks.npz") as ranks:
        assert len(ranks["ids"]) == 1610
        assert row["top1"]["value"] == pytest.approx(
            np.mean([ranks["left_to_right"] == 1, ranks["right_to_left"] == 1])
        )


def test_a_system_that_learns_is_not_ranked_among_all_pairs(evaluated):
    settings, *_ = evaluated
    asking = dataclasses.replace(settings, faces_included=("pixels",))
    with pytest.raises(
        ValueError, match="faces_included names pixels, which learns from pairs that it would be tested on"
    ):
        check_fits_nothing(asking)
    with pytest.raises(ValueError, match=r"faces_included is \['hogg'\]; it must be names of systems or frozen models"):
        dataclasses.replace(settings, faces_included=("hogg",)).check()


def test_bag_of_words_has_a_seed_and_a_run_folder_for_it():
    assert [folder for folder, _ in seeded_systems("words", BagOfWords(), (0, 3))] == [
        "systems/words/seed-0",
        "systems/words/seed-3",
    ]
    assert [seeded.seed for _, seeded in seeded_systems("words", BagOfWords(), (0, 3))] == [0, 3]


def test_a_system_is_fitted_again_from_its_run_folder_and_scores_other_pairs(evaluated):
    settings, context, _, results = evaluated
    kept = {name: system for name, system in settings.systems.items() if name != "guess"}
    saved = serialize.to_json(dataclasses.replace(settings, systems=kept))
    write_json(context.workdir / "config.json", {"study": "tiny", "settings": saved})
    name, kind, system = load_system(context.workdir / "systems" / "both" / "seed-5")
    assert (name, kind) == ("both", "fitted")
    assert isinstance(system, System)
    test = context.pairs.images(context.pairs.indices(sorted(StudyFolder(context.workdir).ids)))
    scores = system.score(test.left, test.right)
    own = np.diagonal(scores)[:, None]
    assert (scores >= own).sum(axis=1).tolist() == StudyFolder(context.workdir).ranks("both")[1].left_to_right.tolist()
    # A histogram is not trained, so all pairs are new to it.
    scored = evaluate_on(context.workdir / "systems" / "histogram", EmojiPairs(), exclude_faces=False)
    assert scored["rows"][1]["mrr"] == results["faces_included"][1]["mrr"]
    assert scored["learned_from"] == {"pairs": 0, "equal": 0, "similar": 0, "left_out": True, "words": []}
    with pytest.raises(FileNotFoundError, match=r"is not of a system in config\.systems"):
        load_system(context.workdir / "systems" / "guess" / "seed-0")
    (context.workdir / "config.json").unlink()


def test_pairs_that_a_system_was_fitted_on_are_counted_and_left_out_unless_asked_for(
    evaluated, tmp_path, caplog, monkeypatch, opened_once
):
    settings, context, manifests, results = evaluated
    kept = dataclasses.replace(settings, systems={"pixels": settings.systems["pixels"]}, faces_included=())
    workdir, folder = tmp_path, tmp_path / "systems" / "pixels"
    shutil.copytree(context.workdir / "systems" / "pixels", folder)
    write_json(workdir / "config.json", {"study": "tiny", "settings": serialize.to_json(kept)})

    # Fitted once.
    loaded = load_system(folder)
    monkeypatch.setattr("tll_jax.study.other_pairs.load_system", lambda folder: loaded)

    def score(**asked):
        return evaluate_on(folder, EmojiPairs(), exclude_faces=True, **asked)

    untold = score()
    assert untold["protocol"]["queries"] == 1081
    assert untold["learned_from"]["pairs"] is None
    assert "cannot be told" in untold["learned_from"]["words"][0]
    # 1,081 pairs show no face; 40 of them are tested, and nothing else is held out.
    manifests[0].save(workdir / "split.json")
    honest = score()
    assert honest["protocol"]["queries"] == 40
    assert honest["rows"][1]["mrr"]["value"] == pytest.approx(
        next(row["mrr"]["value"] for row in results["rows"] if row["system"] == "pixels")
    )
    every = score(include_training=True)
    assert (every["protocol"]["queries"], every["learned_from"]["pairs"]) == (1081, 1041)
    assert every["rows"] == untold["rows"]
    assert "1,041 of 1,081 pairs show a picture that it has learned from" in every["learned_from"]["words"][0]
    only = dataclasses.replace(manifests[0], train=[*manifests[0].train, *manifests[0].test])
    only.save(workdir / "split.json")
    with pytest.raises(ValueError, match=r"trained, validated or pretrained on all of them.*or --include-training"):
        score()

    manifests[0].save(workdir / "split.json")
    (tmp_path / "test_candidates.csv").write_text(
        "left,c0,c1\n" + "".join(f"{id},new,known\n" for id in ("new", "known"))
    )
    for name, id in (("new", manifests[0].test[0]), ("known", manifests[0].train[0])):
        for side in ("left", "right"):
            picture = tmp_path / "test" / side / f"{name}.webp"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(context.pairs.archive.read(f"{side}/{id}.webp"))
    submit(folder, tmp_path / "test_candidates.csv", tmp_path / "out.csv")
    assert "has learned from 2 of the 4 pictures that it is asked about" in caplog.text


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

"""The whole path as a user runs it: real processes, real kills, and the files they leave."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tll_jax import runs, stages
from tll_jax.data.emoji import EmojiPairs
from tll_jax.devices import make_mesh
from tll_jax.models.weights import WeightFile, load_backbone
from tll_jax.training.records import TIMING_FIELDS, read

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
    with np.load(finished / "arms" / "barlow" / "seed-0" / "ranks.npz") as ranks:
        reciprocal = [1 / rank for way in ("left_to_right", "right_to_left") for rank in ranks[way].tolist()]
    assert len(reciprocal) == 80
    assert row["mrr"]["value"] == pytest.approx(sum(reciprocal) / 80)


def test_the_ranks_of_an_arm_follow_from_its_embeddings_by_a_slow_loop(finished):
    folder = finished / "arms" / "random" / "seed-0"
    with np.load(folder / "embeddings.npz") as saved, np.load(folder / "ranks.npz") as ranks:
        left, right = saved["left"].astype(float), saved["right"].astype(float)
        for query in range(len(left)):
            distances = [np.sum((left[query] - candidate) ** 2) for candidate in right]
            farther = sum(distance > distances[query] + 1e-9 for distance in distances)
            nearer = sum(distance < distances[query] - 1e-9 for distance in distances)
            assert nearer + 1 <= ranks["left_to_right"][query] <= len(right) - farther


def test_running_again_skips_every_stage_and_says_so(environment, finished):
    before = json.loads((finished / "results.json").read_text())
    outcome = run(environment, finished)
    assert outcome.returncode == 0, outcome.stderr
    for stage in ("pretrain barlow", "finetune barlow seed 0", "finetune random seed 0", "evaluate hog"):
        assert f"{stage}: up to date, skipped" in outcome.stderr
    assert json.loads((finished / "results.json").read_text())["rows"] == before["rows"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_a_run_that_is_stopped_in_both_trainings_ends_as_if_it_had_not_been(environment, finished, tmp_path, number):
    disturbed, arguments = tmp_path / "disturbed", ("--stages=pretrain,finetune",)
    for stage in ("pretrain", "finetune"):
        process = subprocess.Popen(command(disturbed, *arguments), env=environment, stderr=subprocess.PIPE, text=True)
        wait_for_step(process, disturbed, stage, step=14)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL), errors
        if number == signal.SIGTERM:
            assert f"{stage} barlow" in errors
            assert "the same command goes on from there" in errors
    outcome = run(environment, disturbed, *arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert "going on at step" in outcome.stderr
    assert stage_metrics(disturbed) == stage_metrics(finished)
    assert len(stage_metrics(finished)) == 3


def wait_for_step(process, workdir, stage, *, step):
    """Returns once the first arm's stage has logged `step`; fails if the process ends before."""
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
            ["--config.arms.barlow.pretrain.loop.batch_size=0"],
            "config.arms.barlow.pretrain.loop: batch_size is 0",
        ),
        (["--config.arms.barlow.pretrain.loop.batch_size=9999"], "more than the 3140 training examples"),
        (["--config.split.num_test=5000"], "lower split.num_test"),
        (
            ["--config.arms.random.finetune.frozen_stages=9"],
            "finetune.frozen_stages is 9; it must be at most 5",
        ),
        (["--stages=pretrain,polish"], "--stages names polish; the stages are pretrain, finetune"),
        (["--stages=evaluate"], "pretrain of arm barlow has not been done"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(environment, tmp_path, arguments, named):
    outcome = run(environment, tmp_path / "study", *arguments)
    assert outcome.returncode == 1
    assert named in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "study" / "stages").exists()


def test_a_workdir_of_another_study_or_of_something_else_is_refused(environment, tmp_path):
    (tmp_path / "config.json").write_text('{"study": "mine"}')
    assert "belongs to the study 'mine', not to 'tiny'" in run(environment, tmp_path).stderr
    (tmp_path / "config.json").rename(tmp_path / "thesis.txt")
    assert "is not empty and not a study's folder" in run(environment, tmp_path).stderr


def test_a_trained_arm_scores_another_pair_set_from_the_command_line(environment, finished, tmp_path):
    outcome = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tll_jax.cli import main; main()",
            "evaluate",
            str(finished / "arms" / "barlow" / "seed-0"),
            "--pairs=emoji",
            "--exclude-faces",
            f"--out={tmp_path / 'scores.json'}",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["protocol"]["queries"] == 1081
    assert [row["system"] for row in scores["rows"]] == ["chance", "barlow"]
    assert "barlow" in outcome.stdout


def export(environment, folder, out):
    return subprocess.run(
        [sys.executable, "-c", "from tll_jax.cli import main; main()", "export", str(folder), f"--out={out}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_exported_backbone_embeds_as_the_arm_did(environment, finished, tmp_path):
    folder, out = finished / "arms" / "barlow" / "seed-0", tmp_path / "new" / "backbone.safetensors"
    outcome = export(environment, folder, out)
    assert outcome.returncode == 0, outcome.stderr
    # A ResNet-18 has 20 convolutions, each before a batch normalization of four tensors.
    assert "100 tensors" in outcome.stdout
    arm, evaluate, trained = runs.load_run(folder)
    exported = load_backbone(arm.backbone, WeightFile(path=str(out)))
    again = {name: values | {"backbone": exported[name]} for name, values in trained.variables.items()}
    pairs = EmojiPairs().open()
    test = pairs.images(pairs.indices(json.loads((finished / "split.json").read_text())["test"]))
    embedder = stages.make_embedder(stages.head_embedding(stages.siamese(arm)), evaluate, make_mesh())
    with np.load(folder / "embeddings.npz") as saved:
        np.testing.assert_allclose(embedder(again, test.left), saved["left"], atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "out", "message"),
    [
        (".", "a.safetensors", "STUDY/arms/<arm>/seed-<k>"),
        ("arms/barlow/seed-0", "a.pth", r"a.pth; it must end in .safetensors"),
    ],
)
def test_an_export_that_cannot_be_is_refused(environment, finished, tmp_path, folder, out, message):
    outcome = export(environment, finished / folder, tmp_path / out)
    assert outcome.returncode == 1
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / out).exists()


def test_a_folder_that_is_no_run_is_refused_with_where_runs_lie(environment, tmp_path):
    outcome = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tll_jax.cli import main; main()",
            "evaluate",
            str(tmp_path),
            "--pairs=emoji",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert "STUDY/arms/<arm>/seed-<k>" in outcome.stderr

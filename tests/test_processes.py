"""A study run by two processes together: the same results, one stop for both, no hang when one is gone."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.configs import one_stage
from tests.pairs_of_processes import SECONDS, free_address
from tests.test_study import stage_metrics, wait_for_step

TRAIN = "--stages=pretrain,finetune"


def command(workdir, *arguments):
    """The study of one stage."""
    return [sys.executable, "-m", "tll_jax.main", f"--config={one_stage.__file__}", f"--workdir={workdir}", *arguments]


def run(environment, workdir, *arguments, devices=1, under=()):
    """One process, to its end."""
    return subprocess.run(
        [*under, *command(workdir, *arguments)],
        env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        check=False,
    )


def together(environment, workdir, *arguments, own=((), ())):
    """Two processes of one device each; `own` are arguments that only one of them gets."""
    joined = [f"--coordinator={free_address()}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [*command(workdir, *arguments), *joined, f"--process_id={number}", *more],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, more in enumerate(own)
    ]


def ends(started):
    """The exit status and the errors of each process."""
    errors = [process.communicate(timeout=SECONDS)[1] for process in started]
    return [process.returncode for process in started], errors


def test_two_processes_end_with_the_results_of_one(environment, one_stage_alone, tmp_path):
    workdir = tmp_path / "study"
    statuses, errors = ends(together(environment, workdir))
    assert statuses == [0, 0], errors
    found, expected = (json.loads((one / "results.json").read_text()) for one in (workdir, one_stage_alone))
    for part in ("rows", "comparisons", "significance", "data", "protocol"):
        assert found[part] == expected[part]
    assert stage_metrics(workdir) == stage_metrics(one_stage_alone)
    # The second process leaves words and files to the first.
    assert "report:" in errors[0]
    assert "step" not in errors[1]


def test_a_signal_to_one_process_stops_both_and_one_process_goes_on_from_there(environment, one_stage_alone, tmp_path):
    workdir = tmp_path / "study"
    started = together(environment, workdir, TRAIN)
    wait_for_step(started[0], workdir, "pretrain", step=50)
    started[1].send_signal(signal.SIGTERM)
    statuses, errors = ends(started)
    assert statuses == [75, 75], errors
    assert "stopped by SIGTERM at step" in errors[0]
    more = run(environment, workdir, TRAIN, devices=2)
    assert more.returncode == 0, more.stderr
    assert "going on at step" in more.stderr
    assert stage_metrics(workdir) == stage_metrics(one_stage_alone)


def test_when_one_process_is_killed_the_other_ends_and_both_go_on_from_the_last_save(
    environment, one_stage_alone, tmp_path
):
    workdir = tmp_path / "study"
    started = together(environment, workdir, TRAIN)
    wait_for_step(started[0], workdir, "pretrain", step=50)
    started[1].kill()
    statuses, errors = ends(started)
    assert statuses == [75, -signal.SIGKILL], errors
    assert "another process of this run is gone" in errors[0]
    statuses, errors = ends(together(environment, workdir, TRAIN))
    assert statuses == [0, 0], errors
    # Saved every twenty steps: of the fifty at least forty are kept.
    resumed = int(errors[0].split("going on at step ")[1].split()[0])
    assert resumed >= 40
    assert stage_metrics(workdir) == stage_metrics(one_stage_alone)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (((), ("--config.arms.barlow.finetune.loop.num_steps=7",)), "another settings than process 0"),
        (((), ("--process_id=2",)), "--process_id is 2; with --num_processes=2 it must be"),
    ],
)
def test_processes_that_differ_are_refused(environment, tmp_path, own, message):
    started = together(environment, tmp_path / "study", "--wait_seconds=20", own=own)
    statuses, errors = ends(started)
    assert statuses[1] == 1
    assert statuses[0] != 0
    assert message in errors[1]
    assert "Traceback" not in errors[1]
    assert not (tmp_path / "study" / "stages").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_whose_others_never_come_says_so_and_ends(environment, tmp_path, process):
    address = free_address()
    joined = [f"--coordinator={address}", "--num_processes=2", f"--process_id={process}", "--wait_seconds=3"]
    before = time.monotonic()
    lonely = run(environment, tmp_path / "study", *joined)
    assert lonely.returncode == 1
    assert f"did not find each other at {address} in 3 seconds" in lonely.stderr
    assert time.monotonic() - before < SECONDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes=2"], "--coordinator, --num_processes and --process_id go together"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "must be HOST:PORT of process 0"),
    ],
)
def test_half_a_word_about_the_others_is_refused(environment, tmp_path, arguments, message):
    refused = run(environment, tmp_path / "study", *arguments)
    assert refused.returncode == 1
    assert message in refused.stderr


def test_a_full_disk_costs_the_steps_since_the_last_save_and_not_the_run(environment, tmp_path):
    # Wide enough for a checkpoint to be larger than any other file.
    arguments = ("--stages=pretrain", "--config.arms.barlow.pretrain.objective.projector=(64, 2048)")
    workdir, undisturbed = tmp_path / "study", tmp_path / "undisturbed"

    # Writing past so many KiB fails as on a full disk.
    small_files = ["bash", "-c", 'ulimit -f 290; exec "$@"', "bash"]
    full = run(environment, workdir, *arguments, under=small_files)
    assert full.returncode == 1
    # The thread that wrote has its words, too.
    said = next(line for line in full.stderr.splitlines() if line.startswith("tll_jax: "))
    assert "a checkpoint could not be written to" in said
    assert said.endswith("it goes on from the beginning")
    for folder in (workdir, undisturbed):
        whole = run(environment, folder, *arguments)
        assert whole.returncode == 0, whole.stderr
    assert stage_metrics(workdir) == stage_metrics(undisturbed)


def test_a_batch_that_would_change_its_loss_in_parts_is_refused(environment, tmp_path):
    refused = run(environment, tmp_path / "study", "--config.arms.barlow.pretrain.loop.microbatches=2")
    assert refused.returncode == 1
    message = "config.arms.barlow.pretrain.loop.microbatches would change the loss: BarlowTwins compares"
    assert message in refused.stderr

"""Studies that are stopped and run again."""

import json
import logging
import shutil
import signal
import subprocess

import pytest

import tll_jax
from tests.configs import one_stage
from tests.held_at_step import held_command, let_go, wait_until_held
from tests.study_runs import command, run_study, stage_metrics
from tll_jax.config_files import load_study


def test_running_again_skips_every_stage_and_says_so(one_stage_alone, tmp_path, caplog, monkeypatch):
    again = shutil.copytree(one_stage_alone, tmp_path / "study")
    (again / "results.json").unlink()
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("tll_jax.study.run.initial_variables", lambda *_, **__: pytest.fail("a network is opened"))
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
    arguments = (one_stage.__file__, disturbed, "--stages=pretrain,finetune")
    for stop, (stage, number) in enumerate(STOPS):
        # Reading by workers does not change results, and no worker keeps the output open after its study.
        readers = [f"--config.num_workers={int(number == signal.SIGTERM)}"]
        # After step 32 that of step 16 is saved for certain.
        hold = tmp_path / f"hold {stage}"
        words = held_command(stage, 34, hold, *command(*arguments, *readers)[3:])
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        wait_until_held(process, hold)
        process.send_signal(number)
        let_go(hold)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL), errors
        assert ("going on at step" in errors) == (stop > 0)
        if number == signal.SIGTERM:
            assert f"{stage} barlow" in errors
            assert "the same command goes on from there" in errors
    outcome = run_study(environment, *arguments)
    assert "going on at step" in outcome.stderr
    assert stage_metrics(disturbed) == stage_metrics(one_stage_alone)
    assert len(stage_metrics(one_stage_alone)) == 2

"""Cost of a start: help imports nothing heavy, and a second run of a study compiles nothing and repeats the first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.study_runs import stage_metrics

HERE = Path(__file__).parent
CONFIG, COUNT = HERE / "configs" / "one_stage.py", HERE / "count_compilations.py"
HEAVY = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "numpy", "scipy", "matplotlib", "cv2", "PIL")


@pytest.mark.parametrize(
    "help_command",
    [
        "import runpy, sys; sys.argv = ['main', '--help']; runpy.run_module('tll_jax.main', run_name='__main__')",
        "from tll_jax.cli import main; main(['--help'])",
        "from tll_jax.cli import main; main(['evaluate', '--help'])",
    ],
    ids=["main", "tll", "tll evaluate"],
)
def test_help_imports_nothing_heavy(help_command):
    script = f"import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules)); {help_command}"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    shown, _, loaded = outcome.stdout.partition("LOADED")
    assert "help" in shown
    assert "tll_jax" in loaded.split()
    assert set(loaded.split()).isdisjoint(HEAVY)


def test_what_trains_and_what_searches_imports_no_matplotlib():
    script = (
        "import sys, tll_jax.gallery.find, tll_jax.study.load, tll_jax.study.run; print('matplotlib' in sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_a_second_run_of_a_study_compiles_nothing(environment, one_stage_alone, tmp_path):
    workdir, stages = tmp_path / "second", "pretrain,finetune,evaluate,explain"
    counted = subprocess.run(
        [sys.executable, COUNT, f"--config={CONFIG}", f"--workdir={workdir}", f"--stages={stages}"],
        env=environment | {"JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert counted.returncode == 0, counted.stderr
    counts = json.loads(counted.stdout.splitlines()[-1])
    assert counts["asked"] > 10
    assert counts["compiled"] == 0
    assert stage_metrics(workdir) == stage_metrics(one_stage_alone)

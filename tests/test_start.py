"""What a start costs: help imports nothing heavy, and a second run of a study compiles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
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


def run_counted(cache, workdir):
    """The compilations of a real process that trains, evaluates and explains the tiny study."""
    outcome = subprocess.run(
        [
            sys.executable,
            str(HERE / "count_compilations.py"),
            f"--config={HERE / 'configs' / 'tiny.py'}:2",
            f"--workdir={workdir}",
        ],
        env=os.environ | {"TLL_CACHE": str(cache), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout.splitlines()[-1])


def test_a_second_run_of_a_study_compiles_nothing(tmp_path):
    first = run_counted(tmp_path / "cache", tmp_path / "first")
    second = run_counted(tmp_path / "cache", tmp_path / "second")
    assert first["compiled"] > 10
    assert second == {"asked": first["asked"], "compiled": 0}

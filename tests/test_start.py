"""Cost of a start: help imports nothing heavy, and a second run of a study compiles nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CONFIG = HERE / "configs" / "one_stage.py"
FEW = [f"--config.models.barlow.{stage}.loop.num_steps=2" for stage in ("pretrain", "finetune")]
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


def test_a_second_run_of_a_study_compiles_nothing(environment, tmp_path):
    def counted(workdir):
        """Numbers of programs that a run requests and compiles."""
        outcome = subprocess.run(
            [sys.executable, str(HERE / "count_compilations.py"), f"--config={CONFIG}", f"--workdir={workdir}", *FEW],
            env=environment | {"TLL_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.returncode == 0, outcome.stderr
        return json.loads(outcome.stdout.splitlines()[-1])

    first = counted(tmp_path / "first")
    assert first["compiled"] > 10
    assert counted(tmp_path / "second") == {"asked": first["asked"], "compiled": 0}

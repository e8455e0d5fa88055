"""Faults of 0.1.0, each a small script that exits 0 where the behavior is right (`repros/common/lib.sh`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPROS = sorted((Path(__file__).parent / "repros").glob("[0-9]*/run.sh"))


@pytest.mark.release
@pytest.mark.parametrize("script", REPROS, ids=lambda script: script.parent.name)
def test_a_fault_of_before_is_mended(script, environment, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "repros-cache"
    commands = {"PY": sys.executable, "TLL": str(Path(sys.executable).with_name("tll")), "TLL_CACHE": str(cache)}
    outcome = subprocess.run(
        ["bash", str(script)], env=environment | commands, capture_output=True, text=True, check=False, cwd=os.getcwd()
    )
    if outcome.returncode == 77:
        pytest.skip(outcome.stdout)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr

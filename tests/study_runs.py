"""Studies as real processes, and the records that they leave."""

import subprocess
import sys

from tll_jax.training.records import TIMING_FIELDS, read


def command(config, workdir, *arguments):
    """The command line of a study."""
    return [sys.executable, "-m", "tll_jax.main", f"--config={config}", f"--workdir={workdir}", *arguments]


def stage_metrics(workdir):
    """What every training stage has logged, less its times."""
    return {
        path.parent.name: [
            {name: value for name, value in record.items() if name not in TIMING_FIELDS} for record in read(path)
        ]
        for path in workdir.glob("stages/*/metrics.jsonl")
    }


def run_study(environment, config, workdir, *arguments):
    """Runs a study to its end."""
    outcome = subprocess.run(
        command(config, workdir, *arguments), env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome

"""python -m tll_jax.main --config=... --workdir=...: parse, hand over; nothing else."""

import logging
import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from tll_jax.training.signals import Interrupted

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The study: configs/X.py, or configs/X.py:argument. Set fields by --config.dotted.field=value.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the study. The same command again goes on with what is there."
)
STAGES = flags.DEFINE_list("stages", None, "Which of pretrain,finetune,evaluate,explain,report to run; all by default.")
EXIT_INTERRUPTED = 75
"""The exit status of a run that was stopped, has saved, and should be started again (EX_TEMPFAIL)."""


def main(_argv: list[str]) -> None:
    """Runs the study; errors that a user can mend are printed without a traceback."""
    from tll_jax import devices, study

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax", "grain"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    devices.keep_compiled_programs()
    devices.keep_freed_memory()
    command = shlex.join(["python", "-m", "tll_jax.main", *sys.argv[1:]])
    try:
        study.run(
            CONFIG.value,
            workdir=Path(str(WORKDIR.value)),
            stages_to_run=STAGES.value or study.STAGES,
            command=command,
        )
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (ValueError, FileNotFoundError, ImportError, KeyError, FloatingPointError) as error:
        logging.getLogger(__name__).debug("refused", exc_info=True)
        sys.exit(f"tll_jax: {error.args[0] if isinstance(error, KeyError) else error}")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a field that the settings do not have is named without a traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, FileNotFoundError, KeyError, AttributeError, TypeError, ValueError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"tll_jax: {message}\nRun with --help for the flags.")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)

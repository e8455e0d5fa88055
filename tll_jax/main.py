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
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where several processes run this study together."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many they are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this one is, from 0 on.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Instead: Slurm, Open MPI, a TPU VM or Kubernetes tells the processes who they are."
)
WAIT_SECONDS = flags.DEFINE_integer("wait_seconds", 300, "How long processes look for each other.")
EXIT_INTERRUPTED = 75
"""The exit status of a run that should be started again: it was stopped, or lost a process, and goes on from its last
save (EX_TEMPFAIL)."""


def main(_argv: list[str]) -> None:
    """Runs the study; errors that a user can mend are printed without a traceback."""
    import jax

    from tll_jax import devices, processes, study

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax", "grain"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    devices.keep_compiled_programs()
    devices.keep_freed_memory()
    command = shlex.join(["python", "-m", "tll_jax.main", *sys.argv[1:]])
    try:
        if DISTRIBUTED.value or any(flag.present for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)):
            processes.start(
                coordinator=COORDINATOR.value,
                num_processes=NUM_PROCESSES.value,
                process_id=PROCESS_ID.value,
                timeout_seconds=WAIT_SECONDS.value,
            )
            if not processes.is_first():
                logging.getLogger().setLevel(logging.WARNING)
        study.run(
            CONFIG.value,
            workdir=Path(str(WORKDIR.value)),
            stages_to_run=STAGES.value or study.STAGES,
            command=command,
        )
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (jax.errors.JaxRuntimeError, ValueError, OSError, ImportError, KeyError, FloatingPointError) as error:
        if processes.count() > 1 and processes.is_lost(error):
            print(
                f"tll_jax: another process of this run is gone ({str(error).splitlines()[0][:200]}). Start all of them "
                "again with the same command: the run goes on from its last save",
                file=sys.stderr,
            )
            processes.leave(EXIT_INTERRUPTED)
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise
        logging.getLogger(__name__).debug("refused", exc_info=True)
        print(f"tll_jax: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        processes.leave(1)


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

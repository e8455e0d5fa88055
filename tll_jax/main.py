"""python -m tll_jax.main --config=... --workdir=...: parse, hand over; nothing else."""

import logging
import shlex
import sys
import traceback
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from tll_jax import program
from tll_jax.training import signals

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


def main(_argv: list[str]) -> None:
    """Runs the study of the flags."""
    from tll_jax import devices, processes, study

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax", "grain"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    devices.keep_compiled_programs()
    devices.keep_freed_memory()
    command = shlex.join(["python", "-m", "tll_jax.main", *sys.argv[1:]])
    if DISTRIBUTED.value or any(flag.present for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)):
        processes.start(
            coordinator=COORDINATOR.value,
            num_processes=NUM_PROCESSES.value,
            process_id=PROCESS_ID.value,
            timeout_seconds=WAIT_SECONDS.value,
        )
        signals.share_with_preemption_service()
        if not processes.is_first():
            logging.getLogger().setLevel(logging.WARNING)
    workdir = Path(str(WORKDIR.value))
    with processes.failing_together(workdir):
        study.run(CONFIG.value, workdir=workdir, stages_to_run=STAGES.value or study.STAGES, command=command)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a field that the settings do not have is named without a traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, FileNotFoundError, KeyError, AttributeError, TypeError, ValueError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"tll_jax: {message}\nRun with --help for the flags.")


def run() -> None:
    """The program: exits with 0 when the study is done, `program.GOES_ON` when the same command should be run again,
    and 1 after an error."""
    try:
        with program.ending("tll_jax", stopped_status=program.GOES_ON):
            app.run(main, flags_parser=parse)
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        if exit.code:
            program.end(exit.code if isinstance(exit.code, int) else 1)
        raise
    except BaseException:
        traceback.print_exc()
        program.end(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    run()

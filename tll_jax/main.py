"""The program `python -m tll_jax.main --config=... --workdir=...`: parses the flags and runs the study."""

import dataclasses
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from tll_jax import program, study
from tll_jax.errors import InvalidValue
from tll_jax.training import signals

if TYPE_CHECKING:
    from tll_jax.study.settings import Study


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Options of a run in several processes; without a coordinator, JAX finds the others by itself."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    timeout_seconds: int

    @classmethod
    def of(cls, *, is_distributed: bool, **options: Any) -> "Cluster | None":
        """The cluster of the command line's options; None for a single process."""
        cluster = cls(**options)
        named = (cluster.coordinator, cluster.num_processes, cluster.process_id)
        return cluster if is_distributed or any(value is not None for value in named) else None


CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The study: configs/X.py, or configs/X.py:argument. Set fields by --config.dotted.field=value.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the study. The same command again goes on with what is there."
)
STAGES = flags.DEFINE_list("stages", None, f"Which of {','.join(study.STAGES)} to run; all by default.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if several processes run this study together."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "With --coordinator: the number of processes.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "With --coordinator: the index of this process, from 0.", lower_bound=0
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "In place of --coordinator, on Slurm, Open MPI, TPU VMs or Kubernetes, where JAX finds the others.",
)
PARALLEL = flags.DEFINE_integer(
    "parallel",
    None,
    "Trainings at once, each in a process: on a CPU under Linux with a share of the cores, by default one a core as "
    "far as memory allows; on one GPU, by default one for four cores if the steps are small, else 1.",
    lower_bound=1,
)
WAIT_SECONDS = flags.DEFINE_integer(
    "wait_seconds", 300, "Time limit for the processes to find each other.", lower_bound=1
)


def main(settings: "Study") -> None:
    """Runs the study with the options of the flags."""
    cluster = Cluster.of(
        is_distributed=DISTRIBUTED.value,
        coordinator=COORDINATOR.value,
        num_processes=NUM_PROCESSES.value,
        process_id=PROCESS_ID.value,
        timeout_seconds=WAIT_SECONDS.value,
    )
    command = shlex.join(["python", "-m", "tll_jax.main", *sys.argv[1:]])
    options: dict[str, Any] = {"stages": STAGES.value or (), "cluster": cluster, "parallel": PARALLEL.value}
    run_study(settings, Path(str(WORKDIR.value)), command=command, **options)


def prepare() -> None:
    """Sets up messages, OpenCV and the cache of compiled programs in a process that trains."""
    from tll_jax import devices
    from tll_jax.data.imaging import quiet_opencv

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax", "grain"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    quiet_opencv()
    devices.keep_compiled_programs()


def run_study(
    settings: "Study",
    workdir: Path,
    *,
    stages: Sequence[str],
    command: str,
    cluster: Cluster | None = None,
    parallel: int | None = None,
) -> None:
    """Runs the study in this process, alone or as part of a cluster.

    Args:
      stages: names from `study.STAGES`; all if empty.
      command: the command line, for the results.
      parallel: see `study.run.run`.
    """
    from tll_jax import devices, processes
    from tll_jax.study import run as study_run

    prepare()
    if cluster is not None:
        processes.start(**dataclasses.asdict(cluster))
        signals.share_with_preemption_service()
        signals.end_together()
        if not processes.is_first():
            logging.getLogger().setLevel(logging.WARNING)
    devices.check_platform()
    with processes.failing_together(workdir):
        options: dict[str, Any] = {"stages_to_run": stages or study.STAGES, "command": command, "parallel": parallel}
        study_run.run(settings, workdir=workdir, **options)


def parse(argv: list[str]) -> "Study":
    """The study of `--config`, with fields set by `--config.*`; the other flags are in `flags.FLAGS` afterwards.

    Raises:
      UserError: names the word, the allowed values and the fix.
    """
    flags.FLAGS.set_gnu_getopt(True)
    words, fields = split_fields(flags.FLAGS.read_flags_from_files(argv, force_gnu=True))
    try:
        rest = flags.FLAGS(words)[1:]
    except flags.Error as error:
        raise InvalidValue(f"{error} (--help shows the flags)") from error
    except SystemExit:
        # absl exits with status 1 after --help.
        sys.exit(0)
    # Imported after --help, which so is fast.
    from tll_jax.config_files import load_study, set_fields
    from tll_jax.files import given_path

    if rest:
        example = next((f"--{word}" for word in rest if word.partition(".")[0] == "config"), "--config.seeds=0,1")
        raise InvalidValue(
            f"{', '.join(map(repr, rest))}: no flag before that takes it. A flag is --NAME=VALUE, as {example} is, and "
            "a list has commas and no spaces, as --stages=finetune,evaluate has"
        )
    for flag, example in ((CONFIG, "configs/emoji.py"), (WORKDIR, "runs/demo")):
        if not (flag.value or "").strip():
            state = "missing" if flag.value is None else "empty"
            raise InvalidValue(f"--{flag.name} is {state}; write one, such as --{flag.name}={example}")
    flags.FLAGS["workdir"].value = str(given_path(str(WORKDIR.value)))
    check_stages(STAGES.value)
    settings = load_study(str(CONFIG.value))
    set_fields(settings, fields)
    return settings


def check_stages(stages: Sequence[str] | None) -> None:
    """Raises InvalidValue if --stages is given and names no stage or an empty one."""
    if stages is not None and not all(stages or [""]):
        raise InvalidValue("--stages names no stage, or an empty one; leave it out to run all of them")


def split_fields(argv: list[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Separates `--config.FIELD=VALUE` from all other words.

    `--config.FIELD VALUE` and `--noconfig.FIELD`, for false, are accepted as well.

    Returns:
      The other words, and the fields with their values as text; None for a field without one, which means true.
    """
    words, fields = [], []
    left = list(argv)
    while left:
        word = left.pop(0)
        found = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if found is None:
            words.append(word)
            continue
        negated, field, value = found.groups()
        if negated:
            if value is not None:
                raise InvalidValue(f"{word} has a value; write --noconfig.{field}, or --config.{field}=VALUE")
            value = "false"
        elif value is None and left and not re.match("--?[a-zA-Z]", left[0]):
            value = left.pop(0)
        fields.append((field, value))
    return words, fields


def run() -> None:
    """Runs the program and exits: with 0 when the study is done, with `program.GOES_ON` when the same command should be
    run again, with 1 after an error."""
    with program.exiting_at_once(), program.ending("tll_jax", stopped_status=program.GOES_ON):
        app.run(main, flags_parser=parse)


if __name__ == "__main__":
    program.start_with_huge_pages()
    run()

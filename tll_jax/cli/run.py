"""`tll run`."""

import argparse
import shlex

from tll_jax.cli.arguments import a_path, natural, positive
from tll_jax.study import STAGES

HELP = "run a study, or go on with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="configs/X.py, configs/X.py:ARGUMENT, or emoji, a study of the package; --config.DOTTED.FIELD=VALUE sets "
        "a field of it",
    )
    parser.add_argument("workdir", type=a_path, metavar="WORKDIR", help="the study's folder")
    parser.add_argument("--stages", metavar="NAMES", help=f"which of {','.join(STAGES)} to run; all by default")
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of process 0, where several run this study together"
    )
    parser.add_argument("--num-processes", type=positive, metavar="N", help="with --coordinator: how many they are")
    parser.add_argument(
        "--process-id", type=natural, metavar="K", help="with --coordinator: which this one is, from 0 on"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="instead: Slurm, Open MPI, a TPU VM or Kubernetes tells the processes who they are",
    )
    parser.add_argument(
        "--wait-seconds",
        type=positive,
        default=300,
        metavar="N",
        help="how long processes look for each other; 300 by default",
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains and evaluates what a config describes, and writes the report into WORKDIR. The same command again goes on
    with what is there. It is `python -m tll_jax.main --config=CONFIG --workdir=WORKDIR` by another name."""
    from tll_jax import main
    from tll_jax.config_files import load_study, set_fields
    from tll_jax.errors import InvalidValue

    words, fields = main.split_fields(arguments.words)
    if words:
        raise InvalidValue(f"{', '.join(map(repr, words))}: no option of tll run (tll run --help shows them)")
    stages = None if arguments.stages is None else arguments.stages.split(",")
    main.check_stages(stages)
    study = load_study(arguments.config)
    set_fields(study, fields)
    cluster = main.Cluster.of(
        is_distributed=arguments.distributed,
        coordinator=arguments.coordinator,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
        timeout_seconds=arguments.wait_seconds,
    )
    given = [arguments.config, str(arguments.workdir), *arguments.words]
    command = shlex.join(["tll", "run", *given, *([f"--stages={arguments.stages}"] if stages else [])])
    main.run_study(study, arguments.workdir, stages=stages or (), command=command, cluster=cluster)

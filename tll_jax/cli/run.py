"""`tll run`."""

import argparse
import shlex

from tll_jax.cli.arguments import a_path, natural, positive
from tll_jax.study import STAGES

HELP = "run a study, or continue it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="configs/X.py, configs/X.py:ARGUMENT, or a study of the package, such as emoji; "
        "--config.DOTTED.FIELD=VALUE sets a field",
    )
    parser.add_argument("workdir", type=a_path, metavar="WORKDIR", help="the study's folder")
    parser.add_argument("--stages", metavar="NAMES", help=f"which of {','.join(STAGES)} to run; default: all")
    parser.add_argument(
        "--parallel",
        type=positive,
        metavar="N",
        help="trainings at once, each in a process with its share of the cores, on a CPU under Linux; default: one a "
        "core as far as memory allows",
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, if several processes run this study"
    )
    parser.add_argument("--num-processes", type=positive, metavar="N", help="with --coordinator: number of processes")
    parser.add_argument(
        "--process-id", type=natural, metavar="K", help="with --coordinator: index of this process, from 0"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="in place of --coordinator, on Slurm, Open MPI, TPU VMs or Kubernetes, where JAX finds the others",
    )
    parser.add_argument(
        "--wait-seconds",
        type=positive,
        default=300,
        metavar="N",
        help="time limit for the processes to find each other; default 300",
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains and evaluates the study of a config, and writes its report into WORKDIR. The same command again continues
    from what is finished. Equal to `python -m tll_jax.main --config=CONFIG --workdir=WORKDIR`."""
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
    flags = {"stages": arguments.stages, "parallel": arguments.parallel}
    given += [f"--{name}={value}" for name, value in flags.items() if value]
    command = shlex.join(["tll", "run", *given])
    options = {"stages": stages or (), "cluster": cluster, "parallel": arguments.parallel}
    main.run_study(study, arguments.workdir, command=command, **options)

"""`tll new`."""

import argparse

from tll_jax.cli.arguments import a_path, a_place
from tll_jax.errors import InvalidValue
from tll_jax.files import write_whole

HELP = "write a commented config for your own pairs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("path", type=a_place, metavar="PAIRS", help="a folder, a zip or a CSV of pairs, or 'emoji'")
    parser.add_argument("--out", type=a_path, required=True, metavar="FILE.py", help="the config to write")


def run(arguments: argparse.Namespace) -> None:
    """Writes a commented config of a study that trains on, ranks and explains the pairs at a path."""
    from tll_jax.data.imaging import quiet_opencv
    from tll_jax.study.new_config import new_config

    quiet_opencv()
    if arguments.out.exists():
        raise InvalidValue(f"{arguments.out} is there already; name another file, or delete it")
    write_whole(arguments.out, new_config(arguments.path))
    print(f"{arguments.out}: change what you like, then\ntll run {arguments.out} runs/{arguments.out.stem}")

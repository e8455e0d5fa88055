"""`tll gallery`."""

import argparse
import shlex
import sys

from tll_jax.cli.arguments import a_path, a_place

HELP = "convert a gallery of version 0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    options = actions.add_parser("import", help="convert the shards of version 0.1")
    options.add_argument("old", type=a_path, metavar="OLD", help="the folder with gallery.json")
    options.add_argument("--out", type=a_place, required=True, metavar="DIR", help="the gallery to add them to")


def run(arguments: argparse.Namespace) -> None:
    """Converts the shards that `tll embed` of version 0.1 wrote to a gallery; OLD is not changed."""
    from tll_jax.gallery.stored import import_shards

    count = import_shards(arguments.old, arguments.out, command=shlex.join(["tll", *sys.argv[1:]]))
    print(f"{arguments.out}: {count:,} images converted")

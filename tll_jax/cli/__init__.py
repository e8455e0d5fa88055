"""The console script `tll`: one module a command."""

import argparse
import logging
import sys
from contextlib import nullcontext

from tll_jax import __version__, program
from tll_jax.cli import (
    compare,
    data,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    find,
    fit,
    gallery,
    new,
    plan,
    prepare,
    review,
)
from tll_jax.cli import run as run_study

COMMANDS = {
    "find": find,
    "run": run_study,
    "new": new,
    "evaluate": evaluate,
    "compare": compare,
    "explain": explain,
    "embed": embed,
    "gallery": gallery,
    "export": export,
    "fit": fit,
    "data": data,
    "prepare": prepare,
    "review": review,
    "plan": plan,
    "doctor": doctor,
}
GO_ON = ("find", "run", "embed", "prepare")
"""Commands that continue from their earlier work when they are run again."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `tll run` parses `--config.*` itself."""
    parser = argparse.ArgumentParser(
        prog="tll", description="Finds images that look alike, and shows why.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tll_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        options = commands.add_parser(name, help=command.HELP, description=command.run.__doc__, allow_abbrev=False)
        command.add_arguments(options)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parses and runs one command; a `UserError` is printed without a traceback."""
    is_program = arguments is None
    if is_program:
        program.start_with_huge_pages()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = make_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        parser.exit(2)
    parsed, rest = parser.parse_known_args(arguments)
    # Fields of a config are options that the parser does not have.
    if parsed.command == "run":
        parsed.words = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    status = program.GOES_ON if parsed.command in GO_ON else program.STOPPED
    leaving = program.exiting_at_once() if is_program and parsed.command == "run" else nullcontext()
    with leaving, program.ending("tll", stopped_status=status, handles_signals=is_program):
        COMMANDS[parsed.command].run(parsed)

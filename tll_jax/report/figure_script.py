"""Shared command line of all scripts in `figures/`: a study's folder as input, a PNG file as output."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from tll_jax.data.archive import printable
from tll_jax.errors import UserError
from tll_jax.files import check_writable
from tll_jax.report import style
from tll_jax.study.folder import StudyFolder


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Argument parser of a figure script, whose docstring is `doc`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY", help="the --workdir of a finished study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG file; by default in STUDY/figures")
    return parser


def draw_from(arguments: argparse.Namespace, draw: Callable[[StudyFolder], Figure], *, name: str) -> None:
    """Draws and saves a figure and prints its path; a UserError ends the program without a traceback."""
    try:
        study = StudyFolder(arguments.study)
        path = arguments.out or study.path / "figures" / f"{name}.png"
        check_writable(path)
        style.save(draw(study), path)
    except UserError as error:
        sys.exit(printable(str(error)))
    print(printable(str(path)))

"""The command line that all scripts in `figures/` share: a study's folder in, a PNG file out."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from tll_jax.report import style
from tll_jax.report.study_folder import StudyFolder


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Arguments of every figure script; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY", help="the --workdir of a finished study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG file; by default in STUDY/figures")
    return parser


def draw_from(arguments: argparse.Namespace, draw: Callable[[StudyFolder], Figure], *, name: str) -> None:
    """Draws, saves and prints the path; what a user can mend ends the program without a traceback."""
    try:
        study = StudyFolder(arguments.study)
        figure = draw(study)
    except (FileNotFoundError, ValueError, KeyError) as error:
        sys.exit(str(error.args[0] if isinstance(error, KeyError) else error))
    path = arguments.out or study.path / "figures" / f"{name}.png"
    style.save(figure, path)
    print(path)

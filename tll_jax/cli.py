"""The console script `tll`: each command calls one function."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tll_jax.data.faces import RULES


def main(arguments: list[str] | None = None) -> None:
    """Parses and runs one command; errors that a user can mend are printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(prog="tll", description="Finds images that look alike, and shows why.")
    commands = parser.add_subparsers(dest="command", required=True)

    evaluate = commands.add_parser(
        "evaluate", help="score a trained arm on any set of look-alike pairs", description=_evaluate.__doc__
    )
    evaluate.add_argument("run", type=Path, metavar="RUN", help="run folder: STUDY/arms/<arm>/seed-<k>")
    evaluate.add_argument(
        "--pairs",
        required=True,
        metavar="PATH",
        help="'emoji', or a folder or zip of pairs: numbered left/ and right/, joint images, or the CSV edition",
    )
    evaluate.add_argument(
        "--exclude-faces",
        action="store_true",
        help="leave out pairs that show a face on either side (needs the extra tll_jax[faces] for photographs)",
    )
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="also write the figures to FILE as JSON")
    evaluate.set_defaults(run_command=_evaluate)

    review = commands.add_parser(
        "review", help="a page to check by eye which pairs the face filter drops", description=_review.__doc__
    )
    review.add_argument("pairs", metavar="PATH", help="'emoji', or a folder or zip of pairs")
    review.add_argument("--rule", choices=[rule for rule in RULES if rule != "include"], default="none")
    review.add_argument("--face-overrides", metavar="FILE", help="corrections made on an earlier page: id,side,faces")
    review.add_argument("--out", type=Path, metavar="FILE", default=Path("faces.html"))
    review.set_defaults(run_command=_review)

    parsed = parser.parse_args(arguments)
    try:
        parsed.run_command(parsed)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"tll: {error}")


def _evaluate(arguments: argparse.Namespace) -> None:
    """Ranks every pair of a set among all its pairs with a trained arm, both directions, and prints the figures."""
    from tll_jax import runs
    from tll_jax.report.table import rows_markdown

    result = runs.evaluate_on(arguments.run, _pair_settings(arguments.pairs), exclude_faces=arguments.exclude_faces)
    print(rows_markdown(result))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _review(arguments: argparse.Namespace) -> None:
    """Writes a page of all pairs, kept and dropped, with the faces that were found and boxes to correct them."""
    from tll_jax.report.review import write_review

    settings = _pair_settings(arguments.pairs)
    if arguments.face_overrides is not None:
        if arguments.pairs == "emoji":
            raise ValueError("--face-overrides: the emoji pairs take none, their faces follow from their categories")
        settings.face_overrides = arguments.face_overrides
    print(write_review(settings.open(), arguments.out, rule=arguments.rule))


def _pair_settings(path: str) -> Any:
    from tll_jax.data.emoji import EmojiPairs
    from tll_jax.data.faces import DlibFaces
    from tll_jax.data.totally_looks_like import TotallyLooksLike

    return EmojiPairs() if path == "emoji" else TotallyLooksLike(path=path, faces=DlibFaces())

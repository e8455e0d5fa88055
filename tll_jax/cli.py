"""The console script `tll`: each command calls one function."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any


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

    prepare = commands.add_parser(
        "prepare", help="write a data set once into a TFDS folder, checked", description=_prepare.__doc__
    )
    prepare.add_argument("name", metavar="NAME", help="totally_looks_like, imagenette or imagenet2012")
    prepare.add_argument(
        "--source",
        metavar="PATH",
        help="a folder or zip of pairs, or with train/CLASS/ and val/CLASS/, or the folder of ImageNet's tars; "
        "without it imagenette is downloaded",
    )
    prepare.add_argument("--data-dir", metavar="DIR", help="where TFDS datasets lie; TFDS's own by default")
    prepare.set_defaults(run_command=_prepare)

    parsed = parser.parse_args(arguments)
    try:
        parsed.run_command(parsed)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"tll: {error}")


def _evaluate(arguments: argparse.Namespace) -> None:
    """Ranks every pair of a set among all its pairs with a trained arm, both directions, and prints the figures."""
    from tll_jax import runs
    from tll_jax.report.table import rows_markdown

    result = runs.evaluate_on(arguments.run, _pair_settings(arguments.pairs), exclude_faces=arguments.exclude_faces)
    print(rows_markdown(result))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _prepare(arguments: argparse.Namespace) -> None:
    """Writes a data set into a TFDS folder, checked picture by picture, and reports what is there; it can be killed and
    started again."""
    from tll_jax.data.prepare import prepare

    print(prepare(arguments.name, source=arguments.source, data_dir=arguments.data_dir))


def _pair_settings(path: str) -> Any:
    from tll_jax.data.emoji import EmojiPairs
    from tll_jax.data.faces import DlibFaces
    from tll_jax.data.totally_looks_like import TotallyLooksLike

    return EmojiPairs() if path == "emoji" else TotallyLooksLike(path=path, faces=DlibFaces())

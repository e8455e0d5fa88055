"""`tll compare`."""

import argparse
from pathlib import Path

from tll_jax.cli.arguments import a_path
from tll_jax.files import check_writable

HELP = "compare the systems of finished studies in one table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("runs", type=a_path, nargs="+", metavar="RUN", help="the --workdir of a finished study")
    parser.add_argument(
        "--folds", action="store_true", help="pool the RUNs, which are one study on each of its test folds"
    )
    parser.add_argument(
        "--include-training",
        action="store_true",
        help="also compare on pairs with pictures that a system was trained on, which are left out by default",
    )
    parser.add_argument("--out", type=a_path, metavar="DIR", default=Path("compare"), help="default: compare")


def run(arguments: argparse.Namespace) -> None:
    """Prints one table of the systems of all RUNs, which must have the same test pairs, and writes it into DIR with a
    matrix of p-values, rank histograms and curves of recall at k."""
    from tll_jax.report.comparison import write_comparison
    from tll_jax.report.table import rows_markdown

    check_writable(arguments.out / "compare.md")
    results = write_comparison(
        arguments.runs, arguments.out, folds=arguments.folds, include_training=arguments.include_training
    )
    print(rows_markdown(results))
    print(arguments.out / "compare.md")

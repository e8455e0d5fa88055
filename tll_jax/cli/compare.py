"""`tll compare`."""

import argparse
from pathlib import Path

from tll_jax.cli.arguments import a_path
from tll_jax.files import check_writable

HELP = "put the systems of finished studies side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("runs", type=a_path, nargs="+", metavar="RUN", help="the --workdir of a finished study")
    parser.add_argument(
        "--folds", action="store_true", help="the runs are one study on each of its test folds: pool them"
    )
    parser.add_argument(
        "--include-training",
        action="store_true",
        help="compare also on pairs whose pictures a system has learned from, which are left out otherwise",
    )
    parser.add_argument("--out", type=a_path, metavar="DIR", default=Path("compare"), help="compare by default")


def run(arguments: argparse.Namespace) -> None:
    """Prints one table of the systems of all RUNs, which must have tested the same pairs, and writes it into DIR with a
    matrix of p-values, rank histograms and recall against k."""
    from tll_jax.report.comparison import write_comparison
    from tll_jax.report.table import rows_markdown

    check_writable(arguments.out / "compare.md")
    results = write_comparison(
        arguments.runs, arguments.out, folds=arguments.folds, include_training=arguments.include_training
    )
    print(rows_markdown(results))
    print(arguments.out / "compare.md")

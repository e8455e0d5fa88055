"""`tll review`."""

import argparse
from pathlib import Path

from tll_jax.cli.arguments import a_path, a_place
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable

HELP = "write a page for checking by eye which pairs the face filter drops"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("pairs", type=a_place, metavar="PATH", help="'emoji', or a folder or zip of pairs")
    parser.add_argument("--rule", choices=["none", "not-single", "both"], default="none")
    parser.add_argument(
        "--face-overrides", type=a_place, metavar="FILE", help="corrections made on an earlier page: id,side,faces"
    )
    parser.add_argument("--out", type=a_path, metavar="FILE", default=Path("faces.html"))


def run(arguments: argparse.Namespace) -> None:
    """Writes a page of all pairs, kept and dropped, with their numbers of detected faces and fields to correct them."""
    from tll_jax.data.imaging import quiet_opencv
    from tll_jax.data.recognize import recognize_pairs
    from tll_jax.report.review import write_review
    from tll_jax.settings import validate

    quiet_opencv()
    check_writable(arguments.out)
    settings = recognize_pairs(arguments.pairs)
    validate(settings, path="PATH")
    if arguments.face_overrides is not None:
        if arguments.pairs == "emoji":
            raise InvalidValue("--face-overrides: the emoji pairs take none, their faces follow from their categories")
        settings.face_overrides = arguments.face_overrides
    print(write_review(settings.open(), arguments.out, rule=arguments.rule))

"""`tll data`."""

import argparse

from tll_jax.cli.arguments import a_path, a_place
from tll_jax.files import check_writable

CONTACT_SHEET = "contact-sheet.png"
HELP = "describe and check a set of pairs or images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "path", type=a_place, metavar="PATH", help="'emoji', or a folder, a zip or a CSV of pairs or images"
    )
    parser.add_argument(
        "--out", type=a_path, metavar="DIR", help="also write DIR/contact-sheet.png, a sample of the pictures"
    )


def run(arguments: argparse.Namespace) -> None:
    """Describes the data at a path: kind and layout, counts, formats, sizes, broken files and duplicates."""
    from tll_jax.data.describe import contact_sheet, describe
    from tll_jax.data.imaging import quiet_opencv, write_image
    from tll_jax.data.recognize import recognize

    quiet_opencv()
    if arguments.out is not None:
        check_writable(arguments.out / CONTACT_SHEET)
    found = describe(recognize(arguments.path))
    print(found)
    if arguments.out is None:
        print("A sample to look at: add --out DIR")
    else:
        path = arguments.out / CONTACT_SHEET
        write_image(path, contact_sheet(found.examples))
        print(f"A sample to look at: {path}")

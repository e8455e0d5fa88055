"""`tll prepare`."""

import argparse

from tll_jax.cli.arguments import a_place

HELP = "convert a data set to TFDS and check it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("name", metavar="NAME", help="totally_looks_like, imagenette or imagenet2012")
    parser.add_argument(
        "--source",
        type=a_place,
        metavar="PATH",
        help="a folder or zip of pairs, or one with train/CLASS/ and val/CLASS/, or the folder of ImageNet's tars; "
        "without it, imagenette is downloaded",
    )
    parser.add_argument("--data-dir", type=a_place, metavar="DIR", help="folder of TFDS datasets; default: TFDS's own")


def run(arguments: argparse.Namespace) -> None:
    """Writes a data set into a TFDS folder, with every picture checked, and reports its content. It can be killed and
    started again."""
    from tll_jax.data.imaging import quiet_opencv
    from tll_jax.data.prepare import prepare

    quiet_opencv()
    print(prepare(arguments.name, source=arguments.source, data_dir=arguments.data_dir))

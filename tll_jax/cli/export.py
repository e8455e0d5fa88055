"""`tll export`."""

import argparse

from tll_jax.cli.arguments import a_path, a_run, start_devices

HELP = "export a trained model's backbone for PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("run", type=a_run, metavar="RUN", help="run folder: STUDY/models/<name>/seed-<k>")
    parser.add_argument("--out", type=a_path, required=True, metavar="FILE.safetensors", help="the file to write")


def run(arguments: argparse.Namespace) -> None:
    """Writes the backbone of a trained model as .safetensors, with torchvision's parameter names for a ResNet."""
    from tll_jax.study.load import export

    start_devices()
    print(f"{arguments.out}: {export(arguments.run, arguments.out)} tensors")

"""`tll fit`."""

import argparse

from tll_jax.cli.arguments import a_path, a_run, start_devices

HELP = "write a trained model or a fitted system of a study to a model file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "run",
        type=a_run,
        metavar="RUN",
        help="run folder: STUDY/models/<name>/seed-<k>, STUDY/systems/<name> or STUDY/systems/<name>/seed-<k>",
    )
    parser.add_argument("--out", type=a_path, required=True, metavar="FILE.safetensors", help="the file to write")


def run(arguments: argparse.Namespace) -> None:
    """Writes a model file, which embed, evaluate, explain and find accept in place of RUN: a trained network, or a
    linear system on a frozen backbone, fitted again on the pairs of its study."""
    from tll_jax.study.fit import fit

    start_devices()
    file = fit(arguments.run, arguments.out)
    size = file.path.stat().st_size / 1e6
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in file.provenance["counts"].items())
    print(f"{file.path}: {size:.1f} MB, fitted on {counts}; fingerprint {file.fingerprint}")
    print(file.provenance["license"])

"""`tll doctor`."""

import argparse

HELP = "show versions, devices and what works, for bug reports"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""


def run(_arguments: argparse.Namespace) -> None:
    """Prints what is installed and what works: versions, extras, devices, memory, speed, cache, decoders and data."""
    from tll_jax.doctor import examine

    print(examine())

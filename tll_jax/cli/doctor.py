"""`tll doctor`."""

import argparse

HELP = "what a report of a bug needs, in one screen"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """The options."""


def run(_arguments: argparse.Namespace) -> None:
    """Says what is installed and what works: versions, extras, devices, memory, speed, cache, decoders and data."""
    from tll_jax.doctor import examine

    print(examine())

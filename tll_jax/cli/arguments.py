"""Types of command-line arguments, and the start of JAX for commands that compute."""

import argparse
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from tll_jax.errors import InvalidValue
from tll_jax.files import given_path
from tll_jax.renamed import run_folder, warn_of_old_name


def a_path(text: str) -> Path:
    """A path of the command line, `~` expanded."""
    try:
        return given_path(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def a_run(text: str) -> Path:
    """The folder of a run, also under its name in studies of 0.1.0."""
    return run_folder(a_path(text))


def a_place(text: str) -> str:
    """A path or name of pairs or images: "emoji" is the package's set, "./emoji" a folder."""
    a_path(text)
    return os.path.expanduser(text)


def a_query(text: str) -> str:
    """The id of a pair, or a path with `~` expanded."""
    place = a_place(text)
    return place if os.path.exists(place) else text


def at_least(least: int, text: str) -> int:
    """A whole number of at least `least`."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a whole number, {least} or more")
    return number


positive, natural = partial(at_least, 1), partial(at_least, 0)


class FirstName(argparse.Action):
    """The former name of a flag, for one release: `add_argument("--old", dest="new", action=FirstName)`."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, **{"default": argparse.SUPPRESS, "help": argparse.SUPPRESS} | options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        warn_of_old_name(str(option_string), f"--{self.dest.replace('_', '-')}", "")
        setattr(namespace, self.dest, values)


def start_devices() -> None:
    """Starts JAX's devices and the compilation cache; called before the first use of JAX."""
    from tll_jax import devices
    from tll_jax.data.imaging import quiet_opencv

    # What was assumed about a user's own weights, and which of them were left out.
    logging.getLogger("tll_jax.models").setLevel(logging.INFO)
    quiet_opencv()
    devices.keep_compiled_programs()
    devices.check_platform()

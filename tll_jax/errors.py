"""Errors that a user can fix. Commands print them as one line; any other error is a bug and keeps its traceback."""


class UserError(Exception):
    """Base class of errors that a user can fix. The message names the value, the allowed values and the fix.

    Settings, files and commands raise one of the subclasses, each of which also derives from the built-in error that
    callers expect.
    """

    def __str__(self) -> str:
        # KeyError quotes its message, and OSError splits it.
        return str(self.args[0]) if self.args else ""


class InvalidValue(UserError, ValueError):
    """A value, or the content of a file, that is not allowed."""


class UnknownName(UserError, KeyError):
    """A name that does not exist."""


class MissingFile(UserError, FileNotFoundError):
    """A path that does not exist."""


class FileProblem(UserError, OSError):
    """A file or folder that cannot be read or written."""


class DamagedFile(InvalidValue):
    """A file written by this program that is truncated or has other content than expected."""


class MissingPackage(UserError, ImportError):
    """A package of an extra that is not installed."""


class NotFinite(UserError, FloatingPointError):
    """A computation whose result is NaN or infinite."""


class Interrupted(Exception):
    """A run that was stopped or lost a process; the same command continues from the last save."""


GOES_ON = 75
"""Exit status after `Interrupted` (EX_TEMPFAIL): the command should be run again."""


def missing_package(what: str, extra: str) -> MissingPackage:
    """The error for a task `what`, such as "finding faces in photographs", that needs the packages of `extra`."""
    return MissingPackage(
        f"{what} needs packages of the extra {extra}: pip install 'tll_jax[{extra}]', or from a checkout "
        f"pip install -e '.[{extra}]'"
    )

"""Errors that a user can mend. Commands print them as one line; any other error is a fault of the program and keeps its
traceback."""


class UserError(Exception):
    """The message names the value, what is allowed and the mend.

    Edges (settings, files, commands) raise one of the subclasses, which also are the built-in error that a caller
    expects.
    """

    def __str__(self) -> str:
        # KeyError would quote its message, and OSError take it apart.
        return str(self.args[0]) if self.args else ""


class InvalidValue(UserError, ValueError):
    """A value that is not allowed, or a file whose content is not."""


class UnknownName(UserError, KeyError):
    """A name that is not among those there are."""


class MissingFile(UserError, FileNotFoundError):
    """Nothing is where a path leads."""


class FileProblem(UserError, OSError):
    """A file or folder that cannot be read or written."""


class DamagedFile(InvalidValue):
    """A file of this program's own that cannot be read: cut short, or not what it should hold."""


class MissingPackage(UserError, ImportError):
    """A package of an extra that is not installed."""


class NotFinite(UserError, FloatingPointError):
    """A computation whose result is NaN or infinite."""


class Interrupted(Exception):
    """A run was stopped, or lost a process; what was saved stays, and the same command goes on from there."""


def missing_package(what: str, extra: str) -> MissingPackage:
    """The error for `what` ("finding faces in photographs") where the packages of `extra` are not installed."""
    return MissingPackage(
        f"{what} needs packages of the extra {extra}: pip install 'tll_jax[{extra}]', or from a checkout "
        f"pip install -e '.[{extra}]'"
    )

"""Checkpoints of the train state: the last two and the best, saved atomically in the background."""

import errno
import functools
import itertools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from tll_jax import processes
from tll_jax.devices import place
from tll_jax.errors import DamagedFile, FileProblem, InvalidValue, MissingFile, UserError
from tll_jax.files import cannot_write
from tll_jax.training.state import TrainState

logger = logging.getLogger(__name__)

NUM_KEPT = {"last": 2, "best": 1}
"""Two last checkpoints are kept, so that one that cannot be read is not the only one."""
SET_ASIDE = "damaged"
"""Folder of damaged checkpoints."""

_WAITS_SECONDS = (0.2, 1.0, 3.0)
"""Waits before the retries of a failed read."""
_OF_THE_SYSTEM = (
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM),
    *(errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNRESET),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EREMOTEIO),
)
"""System errors of reading, which are no evidence that the file is damaged."""
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""System errors that occur in writing only."""
_MENDS = {
    errno.EMFILE: "Raise the number of files that may be open (ulimit -n)",
    errno.EACCES: "Get permission to read it",
    errno.EPERM: "Get permission to read it",
}
_READ, _DAMAGED, _UNREADABLE = range(3)
"""Result of a read in one process, from best to worst; all processes take the worst result."""
_meetings = itertools.count(1)


class Checkpoints:
    """Last and best train states in one folder, which all processes share.

    The data order is a function of `(seed, step)`, and the state contains its step, so nothing else has to be saved to
    resume a run bit for bit. Saving copies the state and returns; files are written in the background, and their errors
    are raised by the next call.

    Raises:
      OSError: the folder cannot be written or listed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _hush_orbax()
        try:
            self._managers = {kind: _manager(folder / kind, kind, kept) for kind, kept in NUM_KEPT.items()}
        except OSError as error:
            raise cannot_write(folder, error) from error

    def save(self, kind: str, state: TrainState) -> None:
        """Save `state` as `kind`, "last" or "best", once the previous save of that kind is complete.

        Raises:
          OSError: this or the previous save could not be written.
        """
        step = int(state.step)
        manager = self._managers[kind]
        if processes.count() > 1:
            # One save at a time: with two, processes would wait at different barriers.
            self.finish()
        with self._saving(kind):
            for later in manager.all_steps():
                # A run that was killed after that save and resumed from an earlier step reaches this step again.
                if later >= step:
                    manager.delete(later)
            manager.save(step, args=ocp.args.StandardSave(_on_host(state)))

    def steps(self, kind: str) -> list[int]:
        """Steps of the saved states of `kind`, in increasing order."""
        return sorted(self._managers[kind].all_steps())

    def restore(self, kind: str, target: TrainState, step: int | None = None) -> TrainState | None:
        """Restore the state saved at `step`, by default the newest readable one; None if there is none.

        The result has the structure, dtypes and shardings of `target`, whatever number of devices and processes saved
        it. A failed read is retried. A damaged checkpoint is renamed and kept, unless it is the only one; nothing is
        deleted. Each process reads independently; then all agree, and a state that is damaged for one is skipped by
        all.

        Raises:
          ValueError: the state is of another architecture (names the first parameter that differs), or the only
            checkpoint is damaged.
          OSError: the state cannot be read although it is not damaged, or an earlier save could not be written.
        """
        self.finish()
        for kept in reversed(self.steps(kind)):
            if step is None or step == kept:
                state = self._read(kind, kept, target)
                if state is not None:
                    return state
        return None

    def finish(self) -> None:
        """Wait until all saves are written.

        Raises:
          OSError: a save could not be written.
        """
        for kind, manager in self._managers.items():
            with self._saving(kind):
                manager.wait_until_finished()

    def close(self) -> None:
        """Free the resources of saving."""
        for manager in self._managers.values():
            manager.close()

    def _read(self, kind: str, step: int, target: TrainState) -> TrainState | None:
        """State of one step on the devices, or None if it is damaged and was set aside; all processes agree."""
        where = self.folder / kind / str(step)
        state, problem = None, None
        try:
            state = _read(where, target, item="default")
        except UserError as error:
            problem = error
        found = _READ if problem is None else _DAMAGED if isinstance(problem, DamagedFile) else _UNREADABLE
        agreed = _worst(found)
        if agreed == _READ:
            return place(state, jax.tree.map(lambda leaf: leaf.sharding, target))
        if problem is None or found != agreed:
            problem = FileProblem(f"{where}: another process could not read it, and says why")
        if agreed == _UNREADABLE:
            raise problem
        self._set_aside(kind, step, str(problem))
        return None

    def _set_aside(self, kind: str, step: int, reason: str) -> None:
        where = self.folder / kind / str(step)
        if sum(len(self.steps(any_kind)) for any_kind in NUM_KEPT) == 1:
            raise InvalidValue(
                f"{where} is damaged ({reason}), and there is no other checkpoint. Delete {self.folder} and run the "
                "same command again: it trains from the beginning"
            )
        if processes.is_first():
            folder = self.folder / SET_ASIDE
            aside = next(
                path for number in itertools.count(1) if not (path := folder / f"{kind}-{step}.{number}").exists()
            )
            try:
                folder.mkdir(exist_ok=True)
                where.rename(aside)
                # An empty folder for all processes to delete together, since each has its own list of checkpoints.
                where.mkdir()
            except OSError as error:
                raise cannot_write(aside, error) from error
            logger.warning("%s is damaged (%s) and is set aside as %s", where, reason, aside)
        self._managers[kind].delete(step)

    def _saving(self, kind: str) -> AbstractContextManager[None]:
        return _saving("a checkpoint", self.folder / kind, lambda: self._managers[kind].latest_step())


def save_variables(path: Path, variables: dict[str, Any], *, step: int) -> None:
    """Save `params` and `batch_stats` only, for evaluation and later stages. All processes must call this.

    Args:
      step: step from which a run resumes if the variables could not be written, for the error message.

    Raises:
      OSError: the variables could not be written.
    """
    _hush_orbax()
    # Not in the background, where threads would wait long after an error.
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    with _saving("the trained variables", path, lambda: step), closing(checkpointer):
        checkpointer.save(path.absolute(), args=ocp.args.StandardSave(_on_host(variables)), force=True)


def load_variables(path: Path, target: dict[str, Any]) -> dict[str, Any]:
    """Load variables saved by `save_variables`, as numpy arrays in the shapes of `target`.

    A process may call this without the others.

    Raises:
      FileNotFoundError: nothing was saved there.
      ValueError: the variables are damaged, or of another architecture (names the first parameter that differs).
      OSError: the variables cannot be read although they are not damaged.
    """
    if not os.path.lexists(path):
        raise MissingFile(f"no trained variables at {path}: run the stage that trains them first")
    try:
        return _read(path, target)
    except DamagedFile as error:
        raise DamagedFile(
            f"{path} is damaged ({error}): delete this folder and run the study's command again, with all stages: the "
            "variables are made again"
        ) from error


def sizes(path: Path) -> dict[str, int]:
    """Relative path and size in bytes of each file of saved variables, for `are_whole`."""
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}


def are_whole(path: Path, expected: Mapping[str, int]) -> bool:
    """Whether all files of saved variables exist with the expected sizes; no content is read."""
    try:
        return all((path / name).stat().st_size == size for name, size in expected.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _on_host(tree: Any) -> Any:
    """NumPy arrays in place of JAX's, of which Orbax copies and writes one after the other, at twice the work; several
    processes write JAX's, each its parts."""
    # Orbax copies NumPy arrays before a save returns, so they may be views of a state that the next step overwrites.
    return jax.device_get(tree) if processes.count() == 1 else tree


def _manager(folder: Path, kind: str, num_kept: int) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder.absolute(),
        item_handlers=ocp.StandardCheckpointHandler(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=num_kept,
            create=True,
            cleanup_tmp_directories=True,
            # One process lists the folder, because on shared disks each process may see another state of it.
            single_host_load_and_broadcast=True,
            lightweight_initialize=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=kind),
        ),
    )


@contextmanager
def _saving(what: str, where: Path, latest_step: Callable[[], int | None]) -> Iterator[None]:
    """Turn errors of saving into a FileProblem with advice, unless they mean that another process is gone."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or processes.is_lost(error):
            raise
        step = latest_step()
        raise FileProblem(
            f"{what} could not be written to {where}: {_reason(error)}. Make room there, or permission to write, "
            f"and run the same command: it goes on from {'the beginning' if step is None else f'step {step}'}"
        ) from error


def _read(where: Path, target: Any, *, item: str = "") -> Any:
    """Read a tree as numpy arrays with the structure, shapes and dtypes of `target`, in this process alone.

    Raises:
      DamagedFile: every file can be read, but not the tree; contains the reason.
      InvalidValue: the tree is of another architecture.
      FileProblem: all retries failed; names the file and the remedy.
    """
    num_failures = 0
    problem: Exception
    for wait in (0.0, *_WAITS_SECONDS):
        time.sleep(wait)
        try:
            return _read_once(where / item, target, where)
        except UserError:
            raise
        except Exception as error:
            problem = error
        unreadable = _first_unreadable(where / item)
        if unreadable is not None:
            problem = unreadable
        elif not _is_of_the_system(problem):
            num_failures += 1
            if num_failures == 2:
                raise DamagedFile(_first_line(problem)) from problem
    mend = next(
        (mend for number, mend in _MENDS.items() if os.strerror(number) in _text(problem)), "Look after the disk"
    )
    raise FileProblem(
        f"{where} cannot be read: {_reason(problem)}. It was tried {len(_WAITS_SECONDS) + 1} times, and nothing "
        f"was removed. {mend}; then run the same command again"
    ) from problem


def _read_once(path: Path, target: Any, where: Path) -> Any:
    _hush_orbax()
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process-{process}"
    )
    # A checkpointer would wait for other processes, and treat unreadable metadata as missing.
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    try:
        folder = epath.Path(path.absolute())
        mismatch = _difference(handler.metadata(folder), target)
        if mismatch:
            raise InvalidValue(f"{where} is of another architecture: {mismatch}")
        on_host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
        return handler.restore(folder, args=ocp.args.StandardRestore(on_host))
    finally:
        handler.close()


@functools.cache
def _hush_orbax() -> None:
    """Suppress tracebacks of Orbax, whose errors are reported here.

    Its threads log each error that they also raise. Besides, concurrent reads and writes of a failed one end in
    tracebacks of their own, because nothing awaits them or the event loop is closed.
    """
    report = sys.unraisablehook

    def report_others(unreported: Any) -> None:
        if str(unreported.exc_value) != "Event loop is closed":
            report(unreported)

    sys.unraisablehook = report_others
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())


def _first_unreadable(folder: Path) -> OSError | None:
    """Error of the first file below `folder` that cannot be read to its end; None if there is none."""

    def fail(error: OSError) -> None:
        raise error

    try:
        for parent, _, names in os.walk(folder, onerror=fail):
            for name in names:
                with open(Path(parent) / name, "rb") as file:
                    while file.read(2**24):
                        pass
    except FileNotFoundError:
        # A missing file, which a retry would not bring back.
        return None
    except OSError as error:
        return error
    return None


def _is_of_the_system(error: Exception) -> bool:
    """Whether an error, or one of its causes, is a system error; libraries wrap those in their own types."""
    return any(os.strerror(number) in _text(error) for number in _OF_THE_SYSTEM)


def _reason(error: Exception) -> str:
    """The system's message for an error, or the first line of the library's message."""
    numbers = (*_OF_WRITING, *_OF_THE_SYSTEM)
    return next((os.strerror(one) for one in numbers if os.strerror(one) in _text(error)), _first_line(error))


def _text(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _worst(status: int) -> int:
    """Largest status over all processes, which must all call this at the same point."""
    if processes.count() == 1:
        return status
    # On a slow disk, one process may take longer than the timeout of collectives.
    processes.wait_for_all(f"checkpoint read {next(_meetings)}")
    return int(multihost_utils.process_allgather(np.int32(status)).max())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path): tuple(
            np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape
        )
        for path, leaf in leaves
    }


def _difference(saved: Any, target: Any) -> str:
    """Description of the first parameter whose shape differs; empty if none does."""
    saved_shapes = {name: shape for name, shape in _shapes(saved).items() if name.startswith("params/")}
    target_shapes = {name: shape for name, shape in _shapes(target).items() if name.startswith("params/")}
    for name in sorted(saved_shapes.keys() | target_shapes.keys()):
        if saved_shapes.get(name) != target_shapes.get(name):
            return (
                f"{name} is {saved_shapes.get(name, 'missing')} there and "
                f"{target_shapes.get(name, 'missing')} in the settings; use the settings it was trained with, "
                "or another --workdir"
            )
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:600]

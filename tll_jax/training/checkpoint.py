"""Checkpoints of the train state: the last two and the best, each saved atomically and in the background."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tll_jax import processes
from tll_jax.errors import FileProblem, InvalidValue, MissingFile
from tll_jax.training.state import TrainState

logger = logging.getLogger(__name__)

NUM_KEPT = {"last": 2, "best": 1}
"""A last one that cannot be read, whatever damaged it, must not be the only one."""


class Checkpoints:
    """The last and the best train states under one folder, which all processes see.

    The data order is a function of `(seed, step)`, so the state, which knows its step, holds the position in the
    data too: nothing else has to be saved for a run to go on bit for bit. Saving copies the state and returns; files
    are written meanwhile. What went wrong with them is raised by the next call.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._managers = {
            kind: ocp.CheckpointManager(
                (folder / kind).absolute(),
                item_handlers=ocp.StandardCheckpointHandler(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=kept,
                    create=True,
                    cleanup_tmp_directories=True,
                    multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=kind),
                ),
            )
            for kind, kept in NUM_KEPT.items()
        }

    def save(self, kind: str, state: TrainState) -> None:
        """Saves `state` as the "last" or the "best" after the save before it is complete.

        Raises:
          OSError: this save or the one before could not be written.
        """
        step = int(state.step)
        manager = self._managers[kind]
        # One save at a time: with two, processes would meet at different barriers.
        self.finish()
        with self._saving(kind):
            for later in manager.all_steps():
                # A run that was killed after that save and went on from an earlier step comes by here again.
                if later >= step:
                    manager.delete(later)
            manager.save(step, args=ocp.args.StandardSave(state))

    def latest_step(self, kind: str) -> int | None:
        """The newest step there is, or None."""
        return self._managers[kind].latest_step()

    def restore(self, kind: str, target: TrainState) -> TrainState:
        """The newest saved state that can be read, in the structure, types and shardings of `target`, whatever number
        of devices and processes saved it. What cannot be read is reported and removed.

        Raises:
          ValueError: there is none, or it belongs to another architecture; names the first parameter that differs.
          OSError: a save could not be written.
        """
        self.finish()
        manager = self._managers[kind]
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        for step in sorted(manager.all_steps(), reverse=True):
            where = self.folder / kind / str(step)
            try:
                saved = manager.item_metadata(step)
                if saved is None:
                    raise MissingFile("it has no metadata")
                mismatch = _difference(saved, target)
                state = None if mismatch else manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:
                if processes.is_lost(error):
                    raise
                logger.warning("%s cannot be read and is removed: %s", where, _first_line(error))
                manager.delete(step)
                continue
            if mismatch:
                raise InvalidValue(f"{where} is of another architecture: {mismatch}")
            assert state is not None
            return state
        raise InvalidValue(
            f"no {kind} checkpoint in {self.folder}: the run that should have written it has not finished"
        )

    def finish(self) -> None:
        """Waits for what is being written.

        Raises:
          OSError: it could not be written.
        """
        for kind, manager in self._managers.items():
            with self._saving(kind):
                manager.wait_until_finished()

    def close(self) -> None:
        """Frees what saving needed."""
        for manager in self._managers.values():
            manager.close()

    @contextmanager
    def _saving(self, kind: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if processes.is_lost(error):
                raise
            kept = self.latest_step(kind)
            raise FileProblem(
                f"a checkpoint could not be written to {self.folder / kind}: {_first_line(error)}. Make room there, or "
                f"permission to write, and run the same command: it goes on from "
                + ("the beginning" if kept is None else f"step {kept}")
            ) from error


def save_variables(path: Path, variables: dict[str, Any]) -> None:
    """Writes `params` and `batch_stats` alone: what evaluation and later stages read. All processes take part."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), variables, force=True)


def load_variables(path: Path, target: dict[str, Any]) -> dict[str, Any]:
    """Variables as `save_variables` wrote them, as numpy arrays of the shapes of `target`; a process may read alone.

    Raises:
      FileNotFoundError: nothing was saved there.
      ValueError: they belong to another architecture; names the first parameter that differs.
    """
    if not path.exists():
        raise MissingFile(f"no trained variables at {path}: run the stage that trains them first")
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process-{process}"
    )
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        mismatch = _difference(checkpointer.metadata(path.absolute()).item_metadata, target)
        if mismatch:
            raise InvalidValue(f"{path} is of another architecture: {mismatch}")
        on_host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
        return checkpointer.restore(path.absolute(), on_host)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path): tuple(
            np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape
        )
        for path, leaf in leaves
    }


def _difference(saved: Any, target: Any) -> str:
    """What the first parameter is that differs in shape; empty where none does."""
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

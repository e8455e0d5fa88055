"""Checkpoints of the train state: the last and the best, each saved atomically. The only file that knows Orbax."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tll_jax.training.state import TrainState


class Checkpoints:
    """The last and the best train state under one folder.

    The data order is a function of `(seed, step)`, so the state, which knows its step, holds the position in the
    data too: nothing else has to be saved for a run to go on bit for bit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._managers = {
            kind: ocp.CheckpointManager(
                (folder / kind).absolute(),
                item_handlers=ocp.StandardCheckpointHandler(),
                options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True, enable_async_checkpointing=False),
            )
            for kind in ("last", "best")
        }

    def save(self, kind: str, state: TrainState) -> None:
        """Saves `state` as the "last" or the "best", replacing the one before."""
        step = int(state.step)
        manager = self._managers[kind]
        if step in manager.all_steps():
            # A run that was killed after this save and went on from an earlier step comes by here again.
            manager.delete(step)
        manager.save(step, args=ocp.args.StandardSave(state))

    def latest_step(self, kind: str) -> int | None:
        """The step that `restore` would return, or None."""
        return self._managers[kind].latest_step()

    def restore(self, kind: str, target: TrainState) -> TrainState:
        """The saved state in the structure, types and shardings of `target`.

        Raises:
          ValueError: there is none, or it belongs to another architecture; names the first parameter that differs.
        """
        manager = self._managers[kind]
        step = manager.latest_step()
        if step is None:
            raise ValueError(
                f"no {kind} checkpoint in {self.folder}: the run that should have written it has not finished"
            )
        saved = manager.item_metadata(step)
        _check_same_shapes(saved, target, self.folder / kind / str(step))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits for what is being written."""
        for manager in self._managers.values():
            manager.close()


def save_variables(path: Path, variables: dict[str, Any]) -> None:
    """Writes `params` and `batch_stats` alone: what evaluation and later stages read."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), variables, force=True)


def load_variables(path: Path, target: dict[str, Any]) -> dict[str, Any]:
    """Variables as `save_variables` wrote them, onto the shapes and shardings of `target`.

    Raises:
      FileNotFoundError: nothing was saved there.
      ValueError: they belong to another architecture; names the first parameter that differs.
    """
    if not path.exists():
        raise FileNotFoundError(f"no trained variables at {path}: run the stage that trains them first")
    with ocp.StandardCheckpointer() as checkpointer:
        _check_same_shapes(checkpointer.metadata(path.absolute()).item_metadata, target, path)
        return checkpointer.restore(path.absolute(), jax.tree.map(ocp.utils.to_shape_dtype_struct, target))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path): tuple(
            np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape
        )
        for path, leaf in leaves
    }


def _check_same_shapes(saved: Any, target: Any, where: Path) -> None:
    saved_shapes = {name: shape for name, shape in _shapes(saved).items() if name.startswith("params/")}
    target_shapes = {name: shape for name, shape in _shapes(target).items() if name.startswith("params/")}
    for name in sorted(saved_shapes.keys() | target_shapes.keys()):
        if saved_shapes.get(name) != target_shapes.get(name):
            raise ValueError(
                f"{where} is of another architecture: {name} is {saved_shapes.get(name, 'missing')} there and "
                f"{target_shapes.get(name, 'missing')} in the settings; use the settings it was trained with, "
                "or another --workdir"
            )

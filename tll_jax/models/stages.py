"""What all backbones do with their stages: run them in turn, some frozen, some computed twice to save memory."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from tll_jax.typing import Features


def stage_of(name: str) -> int:
    """The number of the stage that a top-level key of a backbone's parameters names: 0 for "stem"."""
    return 0 if name == "stem" else int(name.removeprefix("stage"))


def run_stages(stages: Sequence[nn.Module], maps: Array, *, train: bool, frozen_stages: int, remat: bool) -> Features:
    """The output of every stage, and the last one's mean over all positions in fp32.

    The first `frozen_stages` pass no gradient to their parameters or to `maps`, and use and keep their running
    statistics. With `remat` the backward pass keeps the stages' outputs alone and computes what lies between
    them again: the same numbers for less memory and about a third more work.
    """
    outputs = []
    for number, stage in enumerate(stages):
        is_frozen = number < frozen_stages

        def run(stage: Any, maps: Array, *, train: bool = train and not is_frozen) -> Array:
            return stage(maps, train=train)

        maps = (nn.remat(run) if remat and not is_frozen else run)(stage, maps)
        if is_frozen:
            maps = jax.lax.stop_gradient(maps)
        outputs.append(maps)
    return Features(stages=tuple(outputs), pooled=jnp.mean(maps, axis=(1, 2), dtype=jnp.float32))

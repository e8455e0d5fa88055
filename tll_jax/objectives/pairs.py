"""Parts shared by the objectives on two views and on pairs."""

from typing import Any

import jax
import jax.numpy as jnp


def embed_pair(network: Any, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Head outputs of `a` and of `b` from one call of the network, so that they share their batch statistics.

    The rows of the two batches are interleaved, so that each device keeps its own images: concatenation would send half
    of them to other devices.
    """
    images = jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
    _, outputs = network(images, train=True)
    outputs = outputs.reshape(-1, 2, outputs.shape[-1])
    return outputs[:, 0], outputs[:, 1]


class PairObjective:
    """Base class of objectives on pairs, which use the model's own head."""

    def head(self, *, num_classes: int) -> None:
        return None

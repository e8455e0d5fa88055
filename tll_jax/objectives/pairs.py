"""What objectives on two views or on the two sides of pairs share."""

from typing import Any

import jax
import jax.numpy as jnp


def embed_pair(network: Any, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The head's outputs for `a` and for `b`, by one call of the network, so that they share their batch statistics.

    Their rows take turns in the call, so that each device keeps its own: one batch after the other would send half of
    all images to other devices.
    """
    images = jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
    _, outputs = network(images, train=True)
    outputs = outputs.reshape(-1, 2, outputs.shape[-1])
    return outputs[:, 0], outputs[:, 1]


class PairObjective:
    """An objective on pairs takes the head of the model, whatever the classes."""

    def head(self, *, num_classes: int) -> None:
        return None

"""Cross-entropy against integer labels, some of which may be missing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tll_jax.losses.reduction import masked_mean


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], *, label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean over the labelled rows of the cross-entropy, in nats; rows of label -1 do not count, none gives 0.

    `label_smoothing` in [0, 1] is the share of the target spread evenly over all classes.
    Two equal logits give log 2. Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7.
    """
    is_labelled = labels >= 0
    log_probabilities = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    spread = jnp.mean(log_probabilities, axis=1)
    losses = -(1 - label_smoothing) * own - label_smoothing * spread
    return masked_mean(losses, is_labelled)


def accuracy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """Share in [0, 1] of the rows whose largest logit is their label's; rows of label -1 do not count."""
    return masked_mean((jnp.argmax(logits, axis=1) == labels).astype(logits.dtype), labels >= 0)

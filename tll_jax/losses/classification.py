"""Cross-entropy with integer labels, -1 for an unlabeled image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tll_jax.losses.reduction import masked_mean


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], *, label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean cross-entropy of the labeled rows, in nats; rows with label -1 are left out, 0 if all are.

    `label_smoothing` in [0, 1] is the fraction of the target probability that is spread uniformly over all classes.
    Two equal logits give log 2.
    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7.
    """
    is_labelled = labels >= 0
    log_probabilities = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    spread = jnp.mean(log_probabilities, axis=1)
    losses = -(1 - label_smoothing) * own - label_smoothing * spread
    return masked_mean(losses, is_labelled)


def accuracy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """Fraction in [0, 1] of labeled rows whose largest logit is at the label; rows with label -1 are left out."""
    return masked_mean((jnp.argmax(logits, axis=1) == labels).astype(logits.dtype), labels >= 0)

"""The multi-similarity loss: hard pairs weighted by their own and by their anchor's other similarities."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def multi_similarity_losses(
    similarities: Float[Array, "anchors candidates"],
    is_positive: Bool[Array, "anchors candidates"],
    is_negative: Bool[Array, "anchors candidates"],
    *,
    scales: tuple[float, float] = (2.0, 50.0),
    threshold: float = 0.5,
    margin: float = 0.1,
) -> Float[Array, " anchors"]:
    """Multi-similarity loss of each anchor, at least 0.

    It is log(1 + sum exp(-a (s - t))) / a over hard positives plus log(1 + sum exp(b (s - t))) / b over hard negatives,
    with similarities s, (a, b) = `scales` and t = `threshold`. A negative is hard if it is less than `margin` below the
    anchor's least similar positive, a positive if it is less than `margin` above the anchor's most similar negative. An
    anchor without hard pairs has loss 0, and no gradient flows through the selection. One hard positive and one hard
    negative at the threshold, with a = 1 and b = 2, give log 2 + (log 2) / 2.
    Source: Wang et al. 2019 (arXiv 1904.06627), equations 12, 13 and 15.
    """
    least_similar_positive = jnp.min(jnp.where(is_positive, similarities, jnp.inf), axis=1, keepdims=True)
    most_similar_negative = jnp.max(jnp.where(is_negative, similarities, -jnp.inf), axis=1, keepdims=True)
    is_hard_positive = is_positive & (similarities < most_similar_negative + margin)
    is_hard_negative = is_negative & (similarities > least_similar_positive - margin)
    excess = similarities - threshold
    positive_scale, negative_scale = scales
    return (
        _log_one_plus_sum(-positive_scale * excess, is_hard_positive) / positive_scale
        + _log_one_plus_sum(negative_scale * excess, is_hard_negative) / negative_scale
    )


def _log_one_plus_sum(exponents: jax.Array, counts: jax.Array) -> jax.Array:
    """log(1 + sum of exp(exponents)) of each row over the entries where `counts` is True; finite where none is."""
    one = jnp.zeros_like(exponents[:, :1])
    return jax.nn.logsumexp(jnp.concatenate([one, jnp.where(counts, exponents, -jnp.inf)], axis=1), axis=1)

"""Ranks and nearest neighbors from whole score matrices, and measures of ranks; ties and NaN rank last."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Real

MUNTEANU_TOP = 25

MUNTEANU_CANDIDATES = 1200


def ranks(
    scores: Real[np.ndarray | Array, "queries gallery"], positives: Int[np.ndarray | Array, " queries"]
) -> Int32[Array, " queries"]:
    """Rank of each query's positive: the number of gallery images not strictly worse than it, itself included.

    1 is the best rank. Scores are larger for more similar images; `positives` are column indices. Ties and NaN rank
    last: images that tie with the positive or have score NaN count against it, and a positive with score NaN gets the
    last rank.

    Examples:
      >>> ranks(np.array([[0.9, 0.5, 0.5]]), np.array([1])).tolist()
      [3]
    """
    scores = jnp.asarray(scores)
    own = jnp.take_along_axis(scores, jnp.asarray(positives)[:, None], axis=1)
    return jnp.sum(~(scores < own), axis=1, dtype=jnp.int32)


def top_k(scores: Real[np.ndarray | Array, "queries gallery"], k: int) -> Int32[Array, "queries top"]:
    """Column indices of the `k` best gallery images (all, if there are fewer), best first.

    Ties are in column order; NaN ranks last, after -inf.
    """
    # lax.top_k would put NaN first.
    order = jnp.argsort(-jnp.asarray(scores), axis=1, stable=True)
    return order[:, :k].astype(jnp.int32)


def reciprocal_rank(ranks: Int[np.ndarray | Array, "*shape"]) -> Float[np.ndarray | Array, "*shape"]:
    """1 / rank, in (0, 1]; its mean over queries is the mean reciprocal rank (MRR)."""
    return 1.0 / ranks


def recall_at_k(ranks: Int[np.ndarray | Array, "*shape"], k: int) -> Bool[np.ndarray | Array, "*shape"]:
    """Whether each query's positive is among the first `k`; the mean over queries is Recall@k, or top-k accuracy.

    Examples:
      >>> recall_at_k(np.array([1, 7, 3, 5]), 5).tolist()
      [True, False, True, True]
    """
    return ranks <= k


def munteanu_k(num_candidates: int) -> int:
    """The `k` in proportion to the gallery as 25 is to 1,200 in [Munteanu 2022], rounded half up, at least 1.

    A random ranking has Recall@k `munteanu_k(n) / n`.

    Source: [Munteanu 2022], "a hit when the target is among the 25 nearest of 1,200 candidates".
    """
    return max(1, (2 * MUNTEANU_TOP * num_candidates + MUNTEANU_CANDIDATES) // (2 * MUNTEANU_CANDIDATES))

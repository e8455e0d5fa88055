"""Ranks of positives and nearest neighbors, from score matrices, embeddings in blocks, or sharded galleries.

Examples:
  >>> import numpy as np
  >>> from tll_jax import ranking
  >>> ranking.ranks(np.array([[0.9, 0.5, 0.1], [0.2, 0.1, 0.7]]), np.array([0, 1])).tolist()
  [1, 3]
"""

from tll_jax.ranking.blocked import (
    Score,
    embedding_ranks,
    embedding_top_k,
    inner_product,
    negative_squared_distance,
    pair_ranks,
)
from tll_jax.ranking.dense import munteanu_k, ranks, recall_at_k, reciprocal_rank, top_k
from tll_jax.ranking.sharded import ShardedGallery, Vectors, shard_gallery, sharded_ranks, sharded_top_k
from tll_jax.renamed import first_class_names

__getattr__ = first_class_names(__name__, hits="recall_at_k")

__all__ = [
    "Score",
    "ShardedGallery",
    "Vectors",
    "embedding_ranks",
    "embedding_top_k",
    "inner_product",
    "munteanu_k",
    "negative_squared_distance",
    "pair_ranks",
    "ranks",
    "recall_at_k",
    "reciprocal_rank",
    "shard_gallery",
    "sharded_ranks",
    "sharded_top_k",
    "top_k",
]

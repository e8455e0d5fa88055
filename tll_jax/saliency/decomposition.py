"""Exact spatial decomposition of the similarity of two embeddings into contributions of pairs of positions.

If an embedding is linear in the feature maps, z = sum_p v_p + b over positions p, the dot product of two embeddings is
a sum over pairs of positions: z_a . z_b = sum_pq v_p . w_q + sum_p v_p . b + sum_q b . w_q + b . b. For average pooling
over h x w positions and a linear head W, v_p = W f_p / (h w), so every pair of positions has a factor 1 / (h w)^2. The
cosine is this sum divided by |z_a| |z_b|.

Source: Stylianou, Souvenir and Pless 2019 (arXiv 1901.00536), for average pooling without a head.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.models.heads import (
    Diagonal,
    GridProjection,
    Identity,
    Projection,
    SpatialProjection,
    grid_pooled,
    normalized_cells,
)
from tll_jax.models.pooling import pooling_weights
from tll_jax.typing import Backbone, Features, Head

ALLOWED = "Identity, Diagonal, a Projection of one layer, a SpatialProjection, or a GridProjection"


class Places(NamedTuple):
    """Contribution of each position to an embedding before normalization.

    The embedding is the sum of `vectors` over positions plus `bias`.
    """

    vectors: Float[Array, "height width dim"]
    bias: Float[Array, " dim"]


class Decomposition(NamedTuple):
    """Terms of a similarity, whose sum is `total()`.

    `pairs[i, j, k, l]` is the term of position (i, j) of the left and (k, l) of the right image; `left` and `right` are
    the terms of one image's positions and the other's bias, `bias` the term of both biases.
    """

    pairs: Float[Array, "height width height width"]
    left: Float[Array, "height width"]
    right: Float[Array, "height width"]
    bias: Float[Array, ""]

    def total(self) -> Float[Array, ""]:
        """The similarity: the sum of all terms."""
        return jnp.sum(self.pairs) + jnp.sum(self.left) + jnp.sum(self.right) + self.bias

    def heatmaps(self) -> tuple[Float[Array, "height width"], Float[Array, "height width"]]:
        """Signed contribution of each position of the left and of the right image, summed over the other image.

        Each heat map sums to the similarity minus the terms of its own bias.
        """
        return jnp.sum(self.pairs, axis=(2, 3)) + self.left, jnp.sum(self.pairs, axis=(0, 1)) + self.right


def coarsened(decomposition: Decomposition, most: int) -> Decomposition:
    """The same decomposition on at most `most` x `most` positions a side; a position in two bins is divided by area."""
    parts = Decomposition(*map(jnp.asarray, decomposition))
    height, width = parts.left.shape
    rows, columns = (jnp.asarray(pooling_weights(min(length, most), length), jnp.float32) for length in (height, width))

    def fewer(maps: Float[Array, "height width"]) -> Float[Array, "_ _"]:
        return jnp.einsum("hw,hr,wc->rc", maps, rows, columns, precision="highest")

    pairs = jnp.einsum("hwij,hr,wc,ik,jl->rckl", parts.pairs, rows, columns, rows, columns, precision="highest")
    return Decomposition(pairs, fewer(parts.left), fewer(parts.right), parts.bias)


def decompose(left: Places, right: Places, *, normalized: bool = True) -> Decomposition:
    """Decomposition of the cosine of two embeddings, or of their dot product if not `normalized`."""
    (v, a), (w, b) = left, right
    lengths = [jnp.linalg.norm(jnp.sum(vectors, axis=(0, 1)) + bias) for vectors, bias in (left, right)]
    scale = 1 / jnp.maximum(lengths[0] * lengths[1], 1e-12) if normalized else jnp.ones(())
    return Decomposition(
        pairs=scale * jnp.einsum("hwd,kld->hwkl", v, w, precision="highest"),
        left=scale * jnp.einsum("hwd,d->hw", v, b, precision="highest"),
        right=scale * jnp.einsum("d,kld->kl", a, w, precision="highest"),
        bias=scale * jnp.dot(a, b, precision="highest"),
    )


def is_linear(head: Head, backbone: Backbone | None = None) -> bool:
    """Whether embeddings of this head are, before normalization, linear in the feature maps.

    Heads on the pooled feature need a backbone that pools by the mean: a class token is not linear in the patches.
    """
    if isinstance(head, SpatialProjection | GridProjection):
        return True
    if not getattr(backbone, "pools_by_mean", True):
        return False
    return len(head.widths) == 1 if isinstance(head, Projection) else isinstance(head, Identity | Diagonal)


def places(head: Head, params: Any, features: Features) -> Places:
    """Contribution of each position to the unnormalized embedding of one image.

    `params` are the head's parameters, `features` the backbone's output for a batch of one. With several stages the
    grid is that of the finest one, and positions of coarser stages are divided among the grid positions they cover.

    Raises:
      ValueError: the head is not linear in the maps.
    """
    if not is_linear(head):
        raise InvalidValue(
            f"the head {head} is not linear in the maps, so its similarity has no exact spatial decomposition; "
            f"heads that have one are {ALLOWED}"
        )
    if isinstance(head, GridProjection):
        by_stage = _grid(head, params, features)
        return Places(jnp.sum(by_stage, axis=0), jnp.zeros(by_stage.shape[-1]))
    if isinstance(head, SpatialProjection):
        return _spatial(head.stages, params["linear1"], features)
    maps = jnp.asarray(features.stages[-1][0], jnp.float32)
    vectors = maps / (maps.shape[0] * maps.shape[1])
    if isinstance(head, Identity):
        return Places(vectors, jnp.zeros(vectors.shape[-1]))
    if isinstance(head, Diagonal):
        return Places(vectors * jnp.maximum(params["weights"], 0), jnp.zeros(vectors.shape[-1]))
    layer = params["linear1"]
    return Places(jnp.matmul(vectors, layer["kernel"], precision="highest"), layer["bias"])


def contributions(head: Head, params: Any, features: Features) -> Float[Array, "stages height width dim"]:
    """Contribution of each stage and position to the unit-length embedding of one image, which is their sum.

    There is one stage for heads on one stage, and for heads that mix their stages. A bias is divided equally among the
    positions.

    Raises:
      ValueError: the head is not linear in the maps.
    """
    if isinstance(head, GridProjection):
        found = _grid(head, params, features)
    else:
        vectors, bias = places(head, params, features)
        found = (vectors + bias / (vectors.shape[0] * vectors.shape[1]))[None]
    return found / jnp.maximum(jnp.linalg.norm(jnp.sum(found, axis=(0, 1, 2))), 1e-12)


def _grid(head: GridProjection, params: Any, features: Features) -> Float[Array, "stages height width dim"]:
    """Contribution of each stage and bin to the unnormalized embedding; the bias is divided equally."""
    stages = normalized_cells(grid_pooled(features, head.stages, head.grid), params)
    ends = np.cumsum([cells.shape[-1] for cells in stages])
    found = []
    for (cells,), end in zip(stages, ends, strict=True):
        channels = slice(end - cells.shape[-1], end)
        cells = cells - params["center"][:, channels]
        if head.width is None:
            # Each dimension of the embedding belongs to one bin.
            own = jnp.zeros((len(cells), *params["center"].shape))
            own = own.at[jnp.arange(len(cells)), jnp.arange(len(cells)), channels].set(cells)
            found.append(own.reshape(len(cells), -1))
        else:
            vectors = jnp.einsum("gc,gcd->gd", cells, params["kernel"][:, channels], precision="highest")
            found.append(vectors + params["bias"] / (len(stages) * len(cells)))
    return jnp.stack(found).reshape(len(found), head.grid, head.grid, -1)


def _spatial(stages: tuple[int, ...], layer: Any, features: Features) -> Places:
    maps = [jnp.asarray(features.stages[stage][0], jnp.float32) for stage in stages]
    height, width = (max(one.shape[axis] for one in maps) for axis in (0, 1))
    total, start = jnp.zeros((height, width, layer["kernel"].shape[1])), 0
    for one in maps:
        kernel = layer["kernel"][start : start + one.size].reshape(*one.shape, -1)
        start += one.size
        vectors = jnp.einsum("hwc,hwcd->hwd", one, kernel, precision="highest")
        rows, columns = (
            jnp.asarray(pooling_weights(fine, coarse), jnp.float32)
            for fine, coarse in ((height, one.shape[0]), (width, one.shape[1]))
        )
        total = total + jnp.einsum("ch,cde,dw->hwe", rows, vectors, columns, precision="highest")
    return Places(total, layer["bias"])

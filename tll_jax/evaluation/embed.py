"""Images to embeddings with a trained network, every image exactly once."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, UInt8

from tll_jax.data.pipeline import Readers, evaluation_batches
from tll_jax.devices import (
    batch_sharded,
    hosts_of,
    platform_of,
    replicated,
    round_up_to_devices,
    to_devices,
    tracing_for,
)
from tll_jax.errors import InvalidValue
from tll_jax.models.normalization import unit_length
from tll_jax.ranking.blocked import NUM_SAMPLED
from tll_jax.typing import Fits, Geometry, Image, PairImages, System

Embed = Callable[[Any, jax.Array], jax.Array]
"""(variables, float images `[batch, h, w, 3]` in [0, 1]) -> float32 `[batch, dim]`."""

MOST_PROGRAMS = 64
"""How many embedding functions keep their compiled programs."""


@lru_cache(MOST_PROGRAMS)
def head_embedding(network: nn.Module) -> Embed:
    """The output of the head: what fine-tuning trained. Equal networks get one function, and so one program."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        _, output = network.apply(variables, images, train=False)
        return jnp.asarray(output)

    return embed


@lru_cache(MOST_PROGRAMS)
def pooled_embedding(network: nn.Module) -> Embed:
    """The pooled features of the backbone, scaled to unit length: what pretraining alone gives. Equal networks get one
    function, and so one program."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        features, _ = network.apply(variables, images, train=False)
        pooled = features.pooled.astype(jnp.float32)
        return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)

    return embed


@lru_cache(MOST_PROGRAMS)
def unit_embedding(network: nn.Module) -> Embed:
    """The output of the head at unit length. Equal networks get one function, and so one program."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        _, output = network.apply(variables, images, train=False)
        return unit_length(jnp.asarray(output, jnp.float32))

    return embed


def negative_squared_distance(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Negative squared Euclidean distance `[queries, gallery]`; of unit vectors, it ranks as the cosine does.

    The origin is moved amid the queries first: of vectors far from it, squares and products would cancel.
    """
    sampled = np.sort(queries[:: max(1, len(queries) // NUM_SAMPLED)], axis=0)
    middle = sampled[len(sampled) // 2]
    middle = np.where(np.isfinite(middle), middle, 0).astype(queries.dtype)
    queries, gallery = queries - middle, gallery - middle
    norms = (queries**2).sum(1)[:, None] + (gallery**2).sum(1)[None]
    return 2 * queries @ gallery.T - norms


@dataclass(kw_only=True)
class Embedder:
    """An embedding function compiled once over the mesh, for all embedders that have it, with how images get to it."""

    embed: Embed
    geometry: Geometry
    batch_size: int
    mesh: Mesh
    readers: Readers = field(default_factory=Readers)
    _compiled: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.batch_size = round_up_to_devices(self.batch_size, self.mesh)
        self._compiled = _compiled(self.embed, self.mesh)

    def __call__(self, variables: Any, images: Sequence[Image], *, broken: dict[int, str] | None = None) -> np.ndarray:
        """float32 `[len(images), dim]`, in the order of `images`; `broken` as in `evaluation_batches`."""
        sharding, share = batch_sharded(self.mesh), hosts_of(self.mesh)
        rows, indices = [], []
        in_flight: deque[tuple[jax.Array, np.ndarray]] = deque()
        for batch in evaluation_batches(
            images, self.geometry, batch_size=self.batch_size, readers=self.readers, share=share, broken=broken
        ):
            in_flight.append((self._compiled(variables, to_devices(batch.image, sharding)), batch.mask))
            indices.append(batch.index[batch.mask])
            if len(in_flight) > 1:
                # The devices have the next batch while this one's embeddings come back.
                embedded, mask = in_flight.popleft()
                rows.append(np.asarray(embedded)[mask])
        rows.extend(np.asarray(embedded)[mask] for embedded, mask in in_flight)
        order = np.concatenate(indices)
        assert sorted(order.tolist()) == list(range(len(images))), "every image counts exactly once"
        return np.concatenate(rows)[np.argsort(order)]


@lru_cache(MOST_PROGRAMS)
def _compiled(embed: Embed, mesh: Mesh) -> Any:
    def embed_bytes(variables: Any, images: jax.Array) -> jax.Array:
        with tracing_for(platform_of(mesh)):
            return embed(variables, images.astype(jnp.float32) / 255)

    return jax.jit(embed_bytes, in_shardings=(None, batch_sharded(mesh)), out_shardings=replicated(mesh))


class BatchEmbedder:
    """A compiled function from prepared batches of one fixed shape to unit vectors.

    `geometry(numpy.random.default_rng(0), image)` prepares a decoded picture, uint8 `[height, width, 3]`, of which the
    shorter side needs no more than `geometry.shortest_side` pixels; it is a plain value, which worker processes can be
    given. A shorter batch is filled up by the caller, and its further rows are left out.
    """

    def __init__(self, embed: Embed, variables: Any, geometry: Geometry, *, batch_size: int, mesh: Mesh) -> None:
        self.geometry = geometry
        self.batch_size = round_up_to_devices(batch_size, mesh)
        self._sharding = batch_sharded(mesh)
        self._variables = jax.device_put(variables, replicated(mesh))
        self._compiled = _compiled(embed, mesh)

    @property
    def image_size(self) -> int:
        """Pixels a side of a prepared picture."""
        return self.geometry.size

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """`(batch_size, image_size, image_size, 3)`."""
        return self.batch_size, self.image_size, self.image_size, 3

    def __call__(self, batch: UInt8[np.ndarray, "batch height width 3"]) -> Float32[Array, "batch dim"]:
        """Unit vectors of a batch of exactly `batch_shape`; it returns before they are computed, `numpy.asarray` of
        them waits.

        Raises:
          ValueError: the batch is of another type or shape.
        """
        if batch.dtype != np.uint8 or batch.shape != self.batch_shape:
            raise InvalidValue(
                f"the batch is {batch.dtype} {list(batch.shape)}; it must be uint8 {list(self.batch_shape)}"
            )
        return self._compiled(self._variables, to_devices(batch, self._sharding))


@dataclass(kw_only=True)
class Embedding(System):
    """A trained network as a system, by the negative squared distance of its embeddings."""

    embedder: Embedder
    variables: Any = field(repr=False)

    @property
    def fits(self) -> Fits:
        return "nothing"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Nothing to do: the network is trained."""

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        """Negative squared distance `[queries, gallery]`."""
        return negative_squared_distance(self.embedder(self.variables, queries), self.embedder(self.variables, gallery))


def unit_rows(rows: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows dim"]:
    """Rows divided by their L2 norm; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, np.float32(1e-12))

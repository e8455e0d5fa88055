"""Embedding of images by a trained network, every image exactly once."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
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
    num_devices,
    platform_of,
    replicated,
    resident,
    round_up_to_devices,
    to_devices,
    traced_platform,
    tracing_for,
)
from tll_jax.errors import InvalidValue
from tll_jax.models.network import Network
from tll_jax.models.normalization import unit_length
from tll_jax.models.ops.chunks import num_chunks
from tll_jax.ranking.blocked import NUM_SAMPLED
from tll_jax.typing import Fits, Geometry, Image, PairImages, System

Embed = Callable[[Any, jax.Array], jax.Array]
"""Function from variables and float images `[batch, h, w, 3]` in [0, 1] to float32 `[batch, dim]`."""

MOST_PROGRAMS = 64
"""Maximum number of embedding functions whose compiled programs are cached."""


def in_parts(backbone: nn.Module, embed: Embed) -> Embed:
    """`embed`, in a loop over parts of the batch in programs for CPUs, if that is faster with this backbone.

    Parts have up to 4 MiB of images on each device, which are 4 of 224x224 pixels in a batch of 32.
    """

    def embed_parts(variables: Any, images: jax.Array) -> jax.Array:
        is_in_parts = traced_platform() == "cpu" and getattr(backbone, "is_embedded_in_parts", False)
        batch, devices = len(images), num_devices()
        is_in_parts = is_in_parts and batch % devices == 0
        parts = num_chunks(batch // devices, images.nbytes // batch, 0) if is_in_parts else 1
        if parts == 1:
            return embed(variables, images)
        # The parts are interleaved, so that each has images of all devices.
        of_parts = images.reshape(-1, parts, *images.shape[1:]).swapaxes(0, 1)
        embedded = jax.lax.map(partial(embed, variables), of_parts)
        return embedded.swapaxes(0, 1).reshape(batch, -1)

    return embed_parts


@lru_cache(MOST_PROGRAMS)
def head_embedding(network: Network) -> Embed:
    """Embedding by the head's output, which fine-tuning trains; cached, so that equal networks share one program."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        _, output = network.apply(variables, images, train=False)
        return jnp.asarray(output)

    return in_parts(network.backbone, embed)


@lru_cache(MOST_PROGRAMS)
def pooled_embedding(network: Network) -> Embed:
    """Embedding by the backbone's pooled features at unit length, which pretraining learns; cached likewise."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        features, _ = network.apply(variables, images, train=False)
        pooled = features.pooled.astype(jnp.float32)
        return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)

    return in_parts(network.backbone, embed)


@lru_cache(MOST_PROGRAMS)
def unit_embedding(network: Network) -> Embed:
    """Embedding by the head's output at unit length; cached likewise."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        _, output = network.apply(variables, images, train=False)
        return unit_length(jnp.asarray(output, jnp.float32))

    return in_parts(network.backbone, embed)


def negative_squared_distance(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Negative squared Euclidean distances, `[queries, gallery]`; they rank unit vectors as the cosine does.

    Both sides are first shifted by a median of the queries, because the expansion of the square suffers from
    cancellation far from the origin.
    """
    sampled = np.sort(queries[:: max(1, len(queries) // NUM_SAMPLED)], axis=0)
    middle = sampled[len(sampled) // 2]
    middle = np.where(np.isfinite(middle), middle, 0).astype(queries.dtype)
    queries, gallery = queries - middle, gallery - middle
    norms = (queries**2).sum(1)[:, None] + (gallery**2).sum(1)[None]
    return 2 * queries @ gallery.T - norms


@dataclass(kw_only=True)
class Embedder:
    """Embeds images over a mesh; embedders of equal embedding functions share one compiled program."""

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
        """Embeddings, float32 `[len(images), dim]`, in order; `broken` is as in `evaluation_batches`."""
        variables = resident(variables, self.mesh)
        sharding, share = batch_sharded(self.mesh), hosts_of(self.mesh)
        rows, indices = [], []
        in_flight: deque[tuple[jax.Array, np.ndarray]] = deque()
        for batch in evaluation_batches(
            images, self.geometry, batch_size=self.batch_size, readers=self.readers, share=share, broken=broken
        ):
            in_flight.append((self._compiled(variables, to_devices(batch.image, sharding)), batch.mask))
            indices.append(batch.index[batch.mask])
            if len(in_flight) > 1:
                # The devices compute the next batch while this one's embeddings are transferred.
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
    """A compiled function from batches of a fixed shape to unit vectors.

    `geometry(numpy.random.default_rng(0), image)` prepares a decoded image, uint8 `[height, width, 3]`, whose shorter
    side needs no more than `geometry.shortest_side` pixels; `geometry` can be pickled for worker processes. The caller
    pads shorter batches and drops the padded rows of the result.
    """

    def __init__(self, embed: Embed, variables: Any, geometry: Geometry, *, batch_size: int, mesh: Mesh) -> None:
        self.geometry = geometry
        self.batch_size = round_up_to_devices(batch_size, mesh)
        self._sharding = batch_sharded(mesh)
        self._variables = resident(variables, mesh)
        self._compiled = _compiled(embed, mesh)

    @property
    def image_size(self) -> int:
        """Side of a prepared image in pixels."""
        return self.geometry.size

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """Shape `(batch_size, image_size, image_size, 3)`."""
        return self.batch_size, self.image_size, self.image_size, 3

    def __call__(self, batch: UInt8[np.ndarray, "batch height width 3"]) -> Float32[Array, "batch dim"]:
        """Unit vectors of a batch of exactly `batch_shape`.

        Returns before they are computed; `numpy.asarray` of the result waits for them.

        Raises:
          ValueError: the batch has another dtype or shape.
        """
        if batch.dtype != np.uint8 or batch.shape != self.batch_shape:
            raise InvalidValue(
                f"the batch is {batch.dtype} {list(batch.shape)}; it must be uint8 {list(self.batch_shape)}"
            )
        return self._compiled(self._variables, to_devices(batch, self._sharding))


@dataclass(kw_only=True)
class Embedding(System):
    """A trained network as a retrieval system, compared by the negative squared distance of its embeddings."""

    embedder: Embedder
    variables: Any = field(repr=False)

    @property
    def fits(self) -> Fits:
        return "nothing"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Does nothing: the network is already trained."""

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        """Negative squared distances, `[queries, gallery]`."""
        return negative_squared_distance(self.embedder(self.variables, queries), self.embedder(self.variables, gallery))


def unit_rows(rows: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows dim"]:
    """Rows divided by their L2 norm; zero rows are kept."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, np.float32(1e-12))

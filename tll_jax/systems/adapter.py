"""Small heads trained on frozen features, in seconds instead of hours."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import unit_rows
from tll_jax.models.network import Network
from tll_jax.systems.baselines import Descriptor, require_pairs
from tll_jax.typing import Features, Geometry, Head, Image, Objective, Optimizer, PairBatch, PairImages, System


@dataclass(kw_only=True)
class Adapter(System):
    """A head trained on fixed features of the training pairs; embeddings are compared by cosine.

    Each geometry in `views` makes one more version of every training image (a flip, a crop, a gray one), computed once
    before training; each step draws one version of each image, the original included. Validation pairs are not used.

    Source: Risser-Maroix et al. 2022 (arXiv 2206.01417): frozen features, small adaptation functions, full batches.
    """

    features: Descriptor
    head: Head
    objective: Objective
    optimizer: Optimizer
    num_steps: int
    batch_size: int | None = None
    """Number of pairs per step; None for all."""
    views: tuple[Geometry, ...] = ()
    seed: int = 0
    variables: Any = field(default=None, init=False, repr=False, compare=False)
    losses: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    """Training loss of each step of the last `fit`, float32 `[num_steps]`."""

    def check(self) -> None:
        if self.num_steps < 1:
            raise InvalidValue(f"Adapter.num_steps is {self.num_steps}; it must be at least 1")
        if self.batch_size is not None and self.batch_size < 2:
            raise InvalidValue(f"Adapter.batch_size is {self.batch_size}; it must be at least 2, or None for all pairs")

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Fits the features, then trains the head on the training pairs.

        Raises:
            ValueError: there are no training pairs, or fewer than `batch_size`; or the loss is not finite.
        """
        require_pairs(self, training=train)
        if self.batch_size is not None and self.batch_size > len(train.ids):
            raise InvalidValue(
                f"Adapter.batch_size is {self.batch_size}, more than the {len(train.ids)} training pairs there are"
            )
        self.features.fit(train, validation)
        left, right = (jnp.asarray(self._versions(side)) for side in (train.left, train.right))
        self.variables, losses = self._train(
            self._network(), PairBatch(left, right, jnp.asarray(train.groups, jnp.int32))
        )
        self.losses = np.asarray(losses)
        if not np.isfinite(self.losses).all():
            step = int(np.argmin(np.isfinite(self.losses)))
            raise InvalidValue(
                f"the loss of {type(self).__name__} is not finite from step {step} on; lower learning_rate"
            )

    def describe_all(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]:
        """Embeddings of unit length."""
        if self.variables is None:
            raise InvalidValue("Adapter is not trained yet: call fit first")
        _, embeddings = self._network().apply(
            self.variables, jnp.asarray(self.features.describe_all(images)), train=False
        )
        return unit_rows(np.asarray(embeddings, np.float32))

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Cosine similarities in [-1, 1]."""
        return self.describe_all(queries) @ self.describe_all(gallery).T

    def _network(self) -> Network:
        return Network(backbone=IdentityBackbone(), head=self.head.build(dtype=jnp.float32))

    def _train(self, network: Network, pairs: PairBatch) -> tuple[dict[str, Any], Float[Array, " steps"]]:
        """Trains for `num_steps` steps in a single compiled program; returns the variables and the loss of each step.

        The sides of `pairs` contain all versions of every image, `[versions, pairs, dim]`. Each step samples pairs
        without replacement and one version of each image.
        """
        num_versions, num_pairs, dim = pairs.left.shape
        batch_size = self.batch_size or num_pairs
        transformation = self.optimizer.build(num_steps=self.num_steps, batch_size=batch_size)
        run = nn.apply(self.objective, network, mutable=["batch_stats"])

        def draw(key: jax.Array) -> PairBatch:
            order_key, left_key, right_key = jax.random.split(key, 3)
            chosen = jax.random.permutation(order_key, num_pairs)[:batch_size]

            def side(key: jax.Array, versions: Float[Array, "versions pairs dim"]) -> Float[Array, "batch dim"]:
                return versions[_versions(key, batch_size, num_versions), chosen]

            return PairBatch(side(left_key, pairs.left), side(right_key, pairs.right), pairs.group[chosen])

        def step(carried: _Carried, key: jax.Array) -> tuple[_Carried, Float[Array, ""]]:
            draw_key, sample_key = jax.random.split(key)
            batch = draw(draw_key)

            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                variables = {"params": params, "batch_stats": carried.batch_stats}
                (loss, _), updated = run(variables, batch, rngs={"sample": sample_key})
                return loss, updated.get("batch_stats", {})

            (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(carried.params)
            updates, optimizer_state = transformation.update(gradients, carried.optimizer_state, carried.params)
            return _Carried(optax.apply_updates(carried.params, updates), batch_stats, optimizer_state), loss

        @jax.jit
        def train(key: jax.Array) -> tuple[_Carried, Float[Array, " steps"]]:
            init_key, steps_key = jax.random.split(key)
            variables = network.init(init_key, jnp.zeros((1, dim)), train=False)
            params = variables.get("params", {})
            start = _Carried(params, variables.get("batch_stats", {}), transformation.init(params))
            return jax.lax.scan(step, start, jax.random.split(steps_key, self.num_steps))

        trained, losses = train(jax.random.key(self.seed))
        return {"params": trained.params, "batch_stats": trained.batch_stats}, losses

    def _versions(self, images: Sequence[Image]) -> Float32[np.ndarray, "versions images dim"]:
        versions = [self.features.describe_all(images)]
        for number, view in enumerate(self.views):
            versions.append(self.features.describe_all(Viewed(images, view, number)))
        return np.stack(versions)


class IdentityBackbone(nn.Module):
    """Backbone that returns its input, for features that are already pooled."""

    @nn.compact
    def __call__(
        self,
        pooled: Float[Array, "batch dim"],
        *,
        train: bool,
        frozen_stages: int = 0,
        remat: bool = False,
    ) -> Features:
        return Features(stages=(), pooled=pooled)


@dataclass(frozen=True)
class Viewed(Sequence[Image]):
    """Lazily transformed images; equal on repeated access, because the randomness depends on `number` and position."""

    images: Sequence[Image]
    view: Geometry
    number: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.view(np.random.default_rng((self.number, index)), self.images[index])


class _Carried(NamedTuple):
    params: Any
    batch_stats: Any
    optimizer_state: optax.OptState


def _versions(key: jax.Array, batch_size: int, num_versions: int) -> Int[Array, " batch"]:
    return jax.random.randint(key, (batch_size,), 0, num_versions)

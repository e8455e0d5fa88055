"""kNN and linear probes of frozen backbones."""

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import Embed, Embedder, unit_rows
from tll_jax.evaluation.settings import Probe
from tll_jax.typing import Image, ImageSource, LabeledImage

NEIGHBORS, LINEAR = "neighbors", "linear"
BLOCK = 1024
"""Number of queries compared at a time."""
LBFGS_STEPS = 100


class OpenedProbe:
    """Images of a probe, checked when opened; decoded on first use, then cached at the probe's size.

    Raises:
      ValueError: images without classes, or training and test images of different classes.
    """

    def __init__(self, settings: Probe, mesh: Mesh) -> None:
        self.settings, self.mesh = settings, mesh
        nothing: frozenset[str] = frozenset()
        side = settings.geometry.shortest_side
        self.train, self.test = (
            one.open(held_out=nothing, shortest_side=side) for one in (settings.train, settings.test)
        )
        if self.train.num_classes < 2 or self.train.num_classes != self.test.num_classes:
            raise InvalidValue(
                f"config.probe needs training and test images of the same classes, at least two; these have "
                f"{self.train.num_classes} and {self.test.num_classes}"
            )

    def on(self, mesh: Mesh) -> "OpenedProbe":
        """The same probe on another mesh."""
        other = copy.copy(self)
        other.mesh = mesh
        return other

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    def digest(self) -> list[str]:
        """Hashes of the training and the test set."""
        return [self.train.digest(), self.test.digest()]

    def embedder(self, embed: Embed) -> Embedder:
        """Embedder for this probe; reuse it to compile once per network."""
        return Embedder(
            embed=embed, geometry=self.settings.geometry, batch_size=self.settings.batch_size, mesh=self.mesh
        )

    def neighbors(self, embedder: Embedder, variables: Any) -> float:
        """Accuracy of the kNN probe."""
        return neighbors_accuracy(*self._features(embedder, variables), num_neighbors=self.settings.num_neighbors)

    def accuracies(self, embedder: Embedder, variables: Any) -> dict[str, float]:
        """Accuracies of the kNN and the linear probe."""
        features = self._features(embedder, variables)
        return {
            NEIGHBORS: neighbors_accuracy(*features, num_neighbors=self.settings.num_neighbors),
            LINEAR: linear_accuracy(*features, weight_decay=self.settings.weight_decay),
        }

    def _features(self, embedder: Embedder, variables: Any) -> list[np.ndarray]:
        """Features and labels of the training images, then of the test images."""
        return [part for images, labels in self._decoded for part in (embedder(variables, images), labels)]

    @cached_property
    def _decoded(self) -> list[tuple[list[Image], np.ndarray]]:
        parts = []
        for source in (self.train, self.test):
            rng = np.random.default_rng(0)
            examples = [(self.settings.geometry(rng, one.image), one.label) for one in _labeled(source)]
            images, labels = zip(*examples, strict=True)
            parts.append((list(images), np.array(labels)))
        return parts


def _labeled(source: ImageSource) -> Iterator[LabeledImage]:
    """Labeled images of a source."""
    return (one for one in map(source.__getitem__, range(len(source))) if one.label >= 0)


def neighbors_accuracy(
    train: Float32[np.ndarray, "train dim"],
    train_labels: Int[np.ndarray, " train"],
    test: Float32[np.ndarray, "test dim"],
    test_labels: Int[np.ndarray, " test"],
    *,
    num_neighbors: int,
) -> float:
    """Accuracy of a kNN classifier with cosine similarity and majority vote; ties go to the smallest label.

    Source: Wu et al. 2018 (arXiv 1805.01978), without their weighting by similarity.
    """
    num_neighbors = min(num_neighbors, len(train))
    train, test = unit_rows(train), unit_rows(test)
    num_classes = int(train_labels.max()) + 1
    hits = 0
    for start in range(0, len(test), BLOCK):
        similarities = test[start : start + BLOCK] @ train.T
        nearest = np.argpartition(-similarities, num_neighbors - 1, axis=1)[:, :num_neighbors]
        votes = np.stack([np.bincount(row, minlength=num_classes) for row in train_labels[nearest]])
        hits += int(np.sum(votes.argmax(axis=1) == test_labels[start : start + BLOCK]))
    return hits / len(test)


def linear_accuracy(
    train: Float32[np.ndarray, "train dim"],
    train_labels: Int[np.ndarray, " train"],
    test: Float32[np.ndarray, "test dim"],
    test_labels: Int[np.ndarray, " test"],
    *,
    weight_decay: float,
) -> float:
    """Accuracy of multinomial logistic regression on the features.

    Features are standardized with the training rows' mean and standard deviation. The L2 penalty is `weight_decay` / 2
    times the squared norm of the weights, without the biases. The problem is convex, so that there is neither a seed
    nor a learning rate.
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    scale = np.where(deviation > 1e-6 * np.abs(train).max(), deviation, 1)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    params = fit_logistic(
        jnp.asarray((train - mean) / scale), jnp.asarray(train_labels), num_classes, weight_decay=weight_decay
    )
    weights, biases = (np.asarray(part) for part in params)
    logits = (test - mean) / scale @ weights + biases
    return float(np.mean(logits.argmax(axis=1) == test_labels))


def fit_logistic(
    features: Float[Array, "rows dim"], labels: Int[Array, " rows"], num_classes: int, *, weight_decay: float
) -> tuple[Float[Array, "dim {num_classes}"], Float[Array, " {num_classes}"]]:
    """Weights and biases that minimize the mean cross-entropy plus weight decay, by L-BFGS."""
    solver = optax.lbfgs()

    # The data are arguments, because closed-over arrays would become constants of the program.
    @jax.jit
    def fit(features: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            weights, biases = params
            logits = jnp.matmul(features, weights, precision="highest") + biases
            errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(errors) + 0.5 * weight_decay * jnp.sum(weights**2)

        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carried: Any, _: None) -> tuple[Any, None]:
            params, state = carried
            value, gradient = value_and_grad(params, state=state)
            updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
            return (optax.apply_updates(params, updates), state), None

        start = (jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes))
        (params, _), _ = jax.lax.scan(step, (start, solver.init(start)), length=LBFGS_STEPS)
        return params

    return fit(features, labels)

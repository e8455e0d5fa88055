"""Supervised pretraining: cross-entropy of both views' classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax.errors import InvalidValue
from tll_jax.losses.classification import accuracy, cross_entropy
from tll_jax.models.heads import Classifier
from tll_jax.objectives.pairs import embed_pair
from tll_jax.renamed import first_class_names
from tll_jax.typing import ViewBatch

__getattr__ = first_class_names(__name__, Classify="Classification")


@dataclass(kw_only=True)
class Classification:
    """Cross-entropy of the class labels over both views.

    Both views pass through the network in one call of twice the batch, so that a step sees as many images as with the
    objectives that compare views. Views with label -1 are left out.

    Metric: `accuracy`, the fraction of labeled views whose class has the largest logit.
    """

    label_smoothing: float = 0.0

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InvalidValue(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")

    def head(self, *, num_classes: int) -> Classifier:
        classifier = Classifier(num_classes=num_classes)
        classifier.check()
        return classifier

    def __call__(self, network: Any, batch: ViewBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        views = embed_pair(network, batch.view_a, batch.view_b)
        logits = jnp.stack(views, axis=1).reshape(-1, views[0].shape[-1])
        labels = jnp.repeat(batch.label, 2)
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss, {"accuracy": accuracy(logits, labels)}

    def num_reduced(self, outputs: Sequence[tuple[int, ...]]) -> int:
        """Values summed over devices: none, because the loss compares no images."""
        return 0

    def num_counted(self, batch: ViewBatch) -> jax.Array:
        """Number of labeled views in the batch."""
        return 2 * jnp.sum(batch.label >= 0)

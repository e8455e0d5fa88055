"""The contrastive loss by hand and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.losses.contrastive import contrastive_losses
from tll_jax.losses.triplet import pairwise_distances


def test_positives_have_half_the_squared_distance_and_negatives_half_the_squared_hinge_as_loss():
    distances = jnp.array([0.6, 0.6, 3.0, 3.0, 0.0, 0.0])
    is_match = jnp.array([True, False, True, False, True, False])
    assert contrastive_losses(distances, is_match, margin=1.0) == pytest.approx([0.18, 0.08, 4.5, 0, 0, 0.5])


def test_every_entry_agrees_with_a_slow_loop():
    random = np.random.default_rng(0)
    distances = random.uniform(0, 3, (5, 7)).astype(np.float32)
    is_match = random.uniform(size=(5, 7)) < 0.3
    actual = contrastive_losses(jnp.asarray(distances), jnp.asarray(is_match), margin=1.5)
    for row in range(5):
        for column in range(7):
            distance = distances[row, column]
            missing = 1.5 - distance if distance < 1.5 else 0
            expected = distance * distance / 2 if is_match[row, column] else missing * missing / 2
            assert actual[row, column] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_pulls_positives_pushes_near_negatives_and_is_zero_for_far_ones():
    is_match = jnp.array([True, False, False])
    gradient = jax.grad(lambda d: contrastive_losses(d, is_match, margin=1.0).sum())(jnp.array([0.5, 0.2, 2.0]))
    assert gradient == pytest.approx([0.5, -0.8, 0])


def test_the_gradient_of_coinciding_embeddings_is_finite():
    def loss(points):
        distances = pairwise_distances(points, points, distance="l2")
        return contrastive_losses(distances, jnp.eye(3, dtype=bool), margin=1.0).sum()

    assert np.isfinite(jax.grad(loss)(jnp.ones((3, 2)))).all()

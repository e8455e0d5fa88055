"""The multi-similarity loss by hand, by a slow loop, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.losses.multi_similarity import multi_similarity_losses

SETTINGS = {"scales": (2.0, 50.0), "threshold": 0.5, "margin": 0.1}


def test_a_hard_pair_at_the_threshold_has_loss_log_two_over_the_scale():
    losses = multi_similarity_losses(
        jnp.array([[0.5, 0.5]]),
        jnp.array([[True, False]]),
        jnp.array([[False, True]]),
        scales=(1.0, 2.0),
        threshold=0.5,
        margin=0.1,
    )
    assert losses == pytest.approx([1.5 * np.log(2)])


def test_only_negatives_within_the_margin_of_the_positive_are_hard():
    # Beside the positive at 0.8, of the negatives 0.75 and 0.6 the first alone is above 0.7.
    is_positive = jnp.array([[True, False, False]])
    losses = multi_similarity_losses(jnp.array([[0.8, 0.75, 0.6]]), is_positive, ~is_positive, **SETTINGS)
    assert losses == pytest.approx([np.log1p(np.exp(-0.6)) / 2 + np.log1p(np.exp(12.5)) / 50], rel=1e-5)


def test_an_anchor_without_hard_pairs_has_zero_loss_and_gradient():
    is_positive = jnp.array([[True, False], [False, False]])
    is_negative = jnp.array([[False, True], [False, False]])

    def loss(similarities):
        return multi_similarity_losses(similarities, is_positive, is_negative, **SETTINGS).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.array([[0.9, 0.7], [0.3, 0.2]]))
    assert value == 0
    assert np.array_equal(gradient, np.zeros((2, 2)))


def test_every_anchor_agrees_with_a_slow_loop_over_its_pairs():
    random = np.random.default_rng(0)
    similarities = random.uniform(-1, 1, (9, 12)).astype(np.float32)
    kind = random.integers(0, 3, (9, 12))
    settings = {"scales": (3.0, 7.0), "threshold": 0.2, "margin": 0.3}
    expected = []
    for row, kinds in zip(similarities.astype(np.float64), kind, strict=True):
        positives, negatives = list(row[kinds == 0]), list(row[kinds == 1])
        hard_positives = [s for s in positives if s - 0.3 < max(negatives)]
        hard_negatives = [s for s in negatives if s + 0.3 > min(positives)]
        positive_part = np.log(1 + sum(np.exp(-3 * (s - 0.2)) for s in hard_positives)) / 3
        expected.append(positive_part + np.log(1 + sum(np.exp(7 * (s - 0.2)) for s in hard_negatives)) / 7)
    actual = multi_similarity_losses(
        jnp.asarray(similarities), jnp.asarray(kind == 0), jnp.asarray(kind == 1), **settings
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_large_scales_do_not_overflow():
    is_positive = jnp.array([[True, False]])
    settings = SETTINGS | {"scales": (2.0, 1000.0)}
    assert multi_similarity_losses(jnp.array([[0.0, 1.0]]), is_positive, ~is_positive, **settings) == pytest.approx(
        [np.log1p(np.e) / 2 + 0.5]
    )

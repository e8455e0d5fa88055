"""Cross-entropy on numbers that can be checked on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.losses.classification import accuracy, cross_entropy


def test_equal_logits_have_loss_log_of_the_number_of_classes():
    assert cross_entropy(jnp.zeros((3, 5)), jnp.array([0, 2, 4])) == pytest.approx(np.log(5))


def test_unlabeled_rows_are_left_out():
    # Probabilities 3/4 and 1/4: the labelled rows cost log 4/3 and log 4.
    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0], [9.0, 1.0]]))
    labels = jnp.array([0, 1, -1])
    assert cross_entropy(logits, labels) == pytest.approx((np.log(4 / 3) + np.log(4)) / 2)
    assert accuracy(logits, labels) == 0.5


def test_a_batch_without_labels_has_zero_loss_and_gradient():
    logits, labels = jnp.ones((2, 3)), jnp.array([-1, -1])
    assert cross_entropy(logits, labels) == 0
    assert accuracy(logits, labels) == 0
    np.testing.assert_array_equal(jax.grad(cross_entropy)(logits, labels), 0)


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution():
    # Target .9 and .1 after smoothing by .2, probabilities 3/4 and 1/4.
    logits = jnp.log(jnp.array([[3.0, 1.0]]))
    expected = -0.9 * np.log(0.75) - 0.1 * np.log(0.25)
    assert cross_entropy(logits, jnp.array([0]), label_smoothing=0.2) == pytest.approx(expected)


def test_the_gradient_is_probability_minus_target():
    logits = jnp.log(jnp.array([[3.0, 1.0]]))
    np.testing.assert_allclose(jax.grad(cross_entropy)(logits, jnp.array([1])), [[0.75, -0.75]], rtol=1e-6)

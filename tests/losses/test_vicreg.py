"""VICReg's terms by hand, by the textbook covariance, and at their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.losses.vicreg import covariance_of_dimensions, invariance, variance_hinge, vicreg

WEIGHTS = {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0}
# Columns of a Hadamard matrix: mean 0, unbiased variance 4/3, uncorrelated.
DECORRELATED = jnp.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def test_equal_decorrelated_views_of_enough_variance_have_zero_vicreg_loss():
    assert vicreg(DECORRELATED, DECORRELATED, **WEIGHTS) == pytest.approx(0, abs=1e-6)


def test_the_terms_by_hand():
    # Columns (0, 1) and (0, 2): variances 1/2 and 2, covariance 1.
    z = jnp.array([[0.0, 0.0], [1.0, 2.0]])
    assert invariance(z, jnp.zeros((2, 2))) == 5 / 4
    assert variance_hinge(z) == pytest.approx((1 - np.sqrt(0.5001)) / 2, rel=1e-5)
    assert covariance_of_dimensions(z) == pytest.approx((1 + 1) / 2)
    expected = 2 * (5 / 4) + 3 * ((1 - np.sqrt(0.5001)) / 2 + 0.99) / 2 + 5 * (1 + 0)
    weights = {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 5.0}
    assert vicreg(z, jnp.zeros((2, 2)), **weights) == pytest.approx(expected, rel=1e-5)


def test_variance_and_covariance_are_the_textbook_ones():
    z = np.random.default_rng(0).normal(2, 0.5, (12, 4)) * np.array([1, 0.1, 3, 0.5])
    covariance = np.cov(z.T)
    short = [max(0, 1 - np.sqrt(covariance[i, i] + 1e-4)) for i in range(4)]
    off_diagonal = sum(covariance[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    z = jnp.asarray(z, jnp.float32)
    assert variance_hinge(z) == pytest.approx(np.mean(short), rel=1e-4)
    assert covariance_of_dimensions(z) == pytest.approx(off_diagonal / 4, rel=1e-3)


def test_collapsed_views_have_the_variance_weight_as_loss_and_a_finite_gradient():
    constant = jnp.ones((4, 3))
    loss, gradient = jax.value_and_grad(vicreg)(constant, constant, **WEIGHTS)
    assert loss == pytest.approx(25 * 0.99)
    assert np.isfinite(gradient).all()

"""The Barlow Twins loss on views whose correlations are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.losses.barlow_twins import correlation_loss, cross_correlation

# Columns of a Hadamard matrix: mean 0, variance 1, uncorrelated.
DECORRELATED = jnp.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def loss_between(z_a, z_b, **weights):
    return correlation_loss(cross_correlation(z_a, z_b), **weights)


def test_equal_decorrelated_views_have_zero_barlow_twins_loss():
    assert loss_between(DECORRELATED, DECORRELATED, redundancy_weight=1.0) == pytest.approx(0, abs=1e-8)


def test_uncorrelated_views_have_loss_one_a_dimension_and_swapped_dimensions_add_the_weight():
    # View b has dimensions 0 and 1 swapped: c_00 = c_11 = 0, c_22 = 1, c_01 = c_10 = 1.
    swapped = DECORRELATED[:, jnp.array([1, 0, 2])]
    loss = loss_between(DECORRELATED, swapped, redundancy_weight=0.25)
    assert loss == pytest.approx(2 + 0.25 * 2, rel=1e-4)
    scaled = loss_between(DECORRELATED, swapped, redundancy_weight=0.25, scale=0.1)
    assert scaled == pytest.approx(0.1 * 2.5, rel=1e-4)


def test_opposite_views_have_loss_four_a_dimension():
    assert loss_between(DECORRELATED, -DECORRELATED, redundancy_weight=1.0) == pytest.approx(12, rel=1e-4)


def test_the_cross_correlation_is_the_textbook_correlation():
    random = np.random.default_rng(0)
    z_a, z_b = random.normal(3, 2, (20, 4)), random.normal(-1, 5, (20, 4))
    expected = np.corrcoef(z_a.T, z_b.T)[:4, 4:]
    actual = cross_correlation(jnp.asarray(z_a, jnp.float32), jnp.asarray(z_b, jnp.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_the_loss_is_invariant_to_shift_and_scale_of_a_dimension():
    random = np.random.default_rng(1)
    z_a, z_b = (jnp.asarray(random.normal(size=(16, 3)), jnp.float32) for _ in range(2))
    moved = z_b * jnp.array([2.0, 30.0, 0.5]) + jnp.array([5.0, -1.0, 0.0])
    plain = loss_between(z_a, z_b, redundancy_weight=0.5)
    assert loss_between(z_a, moved, redundancy_weight=0.5) == pytest.approx(float(plain), rel=1e-3)


def test_collapsed_views_have_loss_one_a_dimension_and_a_finite_gradient():
    constant = jnp.ones((4, 3))
    loss, gradient = jax.value_and_grad(loss_between)(constant, constant, redundancy_weight=1.0)
    assert loss == 3
    assert np.isfinite(gradient).all()


def test_the_gradient_matches_finite_differences():
    random = np.random.default_rng(2)
    z_a, z_b, direction = (jnp.asarray(random.normal(size=(8, 3)), jnp.float32) for _ in range(3))

    def along(step):
        return loss_between(z_a + step * direction, z_b, redundancy_weight=0.5)

    numeric = (along(1e-2) - along(-1e-2)) / 2e-2
    assert jax.grad(along)(0.0) == pytest.approx(float(numeric), rel=1e-2)

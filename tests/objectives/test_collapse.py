"""The collapse numbers in cases with known answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.objectives.collapse import embedding_std, participation_ratio


def test_participation_ratio_counts_equally_used_directions():
    # All sign patterns of three dimensions: covariance is the identity. Twelve more dimensions stay constant.
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    assert participation_ratio(jnp.asarray(signs)) == pytest.approx(3)
    padded = np.concatenate([signs, np.ones((8, 12))], axis=1)
    assert participation_ratio(jnp.asarray(padded)) == pytest.approx(3)


def test_participation_ratio_weighs_directions_by_their_variance():
    # Variances 4 and 1: (4 + 1)^2 / (16 + 1).
    signs = np.array([[2.0, 1], [2, -1], [-2, 1], [-2, -1]])
    assert participation_ratio(jnp.asarray(signs)) == pytest.approx(25 / 17)


def test_the_participation_ratio_of_a_line_is_one_and_of_a_point_zero():
    assert participation_ratio(jnp.outer(jnp.arange(5.0), jnp.array([1.0, 2.0, 3.0]))) == pytest.approx(1)
    assert participation_ratio(jnp.ones((5, 3))) == 0


def test_embedding_std_is_the_mean_over_dimensions():
    assert embedding_std(jnp.array([[1.0, 5.0], [3.0, 5.0]])) == pytest.approx(0.5)

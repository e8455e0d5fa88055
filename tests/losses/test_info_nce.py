"""The loss by hand, by a slow loop, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.losses.info_nce import info_nce, info_nce_losses

ALL = jnp.ones((3, 3), bool)


def test_equal_similarities_have_loss_log_of_their_number():
    assert info_nce_losses(jnp.zeros((3, 3)), ALL) == pytest.approx(np.log(3))


def test_a_row_by_hand_with_and_without_its_duplicate():
    similarities = jnp.log(jnp.array([[2.0, 1.0, 5.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    assert info_nce_losses(similarities, ALL)[0] == pytest.approx(np.log(8 / 2))
    without_last = ALL.at[0, 2].set(False)
    assert info_nce_losses(similarities, without_last)[0] == pytest.approx(np.log(3 / 2))


def test_a_positive_without_negatives_has_zero_loss_and_a_finite_gradient():
    nothing = jnp.zeros((3, 3), bool)
    losses, gradient = jax.value_and_grad(lambda s: info_nce_losses(s, nothing).sum())(jnp.ones((3, 3)))
    assert losses == 0
    assert np.array_equal(gradient, np.zeros((3, 3)))


def test_every_row_agrees_with_a_slow_loop():
    random = np.random.default_rng(0)
    similarities = random.normal(size=(7, 7)).astype(np.float32)
    is_candidate = random.uniform(size=(7, 7)) < 0.5
    expected = []
    for row in range(7):
        columns = [column for column in range(7) if is_candidate[row, column] or column == row]
        expected.append(-similarities[row, row] + np.log(sum(np.exp(similarities[row, c]) for c in columns)))
    np.testing.assert_allclose(
        info_nce_losses(jnp.asarray(similarities), jnp.asarray(is_candidate)), expected, rtol=1e-5
    )


def test_two_views_by_a_slow_loop_over_both_directions():
    random = np.random.default_rng(0)
    z_a, z_b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in random.normal(size=(2, 5, 3)))
    losses = []
    for queries, candidates in ((z_a, z_b), (z_b, z_a)):
        for row, query in enumerate(queries):
            weights = [np.exp(query @ candidate / 0.5) for candidate in candidates]
            losses.append(-np.log(weights[row] / sum(weights)))
    views = (jnp.asarray(z, jnp.float32) for z in (z_a, z_b))
    assert info_nce(*views, temperature=0.5) == pytest.approx(np.mean(losses), rel=1e-5)

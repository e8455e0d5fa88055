"""SimCLR's loss by hand and by a slow loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.losses.nt_xent import nt_xent


def unit_rows(seed, shape):
    rows = np.random.default_rng(seed).normal(size=shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_equal_views_have_loss_log_of_the_number_of_other_views():
    ones = jnp.tile(jnp.array([[0.6, 0.8]]), (4, 1))
    assert nt_xent(ones, ones, temperature=0.1) == pytest.approx(np.log(7), rel=1e-5)


def test_two_orthogonal_images_by_hand():
    # Every view has its partner at 1 / temperature and the two of the other image at 0.
    views = jnp.eye(2)
    expected = np.log(np.exp(2) + 2) - 2
    assert nt_xent(views, views, temperature=0.5) == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_one_image_has_zero_loss():
    loss, gradient = jax.value_and_grad(lambda z: nt_xent(z, z, temperature=0.5))(jnp.array([[0.6, 0.8]]))
    assert loss == 0
    assert np.isfinite(gradient).all()


def test_the_loss_agrees_with_a_slow_loop_over_views():
    z_a, z_b = unit_rows(0, (5, 3)), unit_rows(1, (5, 3))
    views = [*z_a, *z_b]
    losses = []
    for i, view in enumerate(views):
        similarity = {k: float(view @ other) / 0.2 for k, other in enumerate(views) if k != i}
        losses.append(np.log(sum(np.exp(value) for value in similarity.values())) - similarity[(i + 5) % 10])
    actual = nt_xent(jnp.asarray(z_a, jnp.float32), jnp.asarray(z_b, jnp.float32), temperature=0.2)
    assert actual == pytest.approx(np.mean(losses), rel=1e-5)

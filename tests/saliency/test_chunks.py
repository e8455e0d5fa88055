"""A weighted sum over many inputs, against a loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.saliency.chunks import map_sum


@pytest.mark.parametrize("chunk", [1, 3, 7, 10])
def test_the_sum_is_that_of_a_loop_whether_or_not_the_chunk_divides_the_count(chunk):
    random = np.random.default_rng(0)
    numbers, pictures, weights = random.normal(size=7), random.normal(size=(7, 2, 3)), random.normal(size=7)
    expected = np.zeros((2, 3))
    for number, picture, weight in zip(numbers, pictures, weights, strict=True):
        expected += weight * number * picture**2
    inputs = {"number": jnp.asarray(numbers, jnp.float32), "picture": jnp.asarray(pictures, jnp.float32)}
    total = map_sum(
        lambda one: one["number"] * one["picture"] ** 2, inputs, jnp.asarray(weights, jnp.float32), chunk=chunk
    )
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5)

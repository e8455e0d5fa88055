"""Batch normalization on CPUs: the mathematics' values and gradients, and those of Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.devices import tracing_for
from tll_jax.models.normalization import CpuBatchNorm, batch_norm, normalized


class Normalized(nn.Module):
    """`batch_norm` as backbones use it."""

    train: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps):
        return batch_norm(train=self.train, dtype=self.dtype, name="norm")(maps)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_two_values_become_minus_one_and_one():
    result, mean, var = normalized(jnp.array([[4.0], [8.0]]), jnp.array([3.0]), jnp.array([5.0]), 0.0)
    np.testing.assert_allclose(result, [[2], [8]])
    assert (mean.item(), var.item()) == (6, 4)


def test_gradient_is_that_of_the_formula_in_float64():
    maps, scale, bias, weights = draw(6, 5, 4, 3), draw(3) + 2, draw(3), draw(6, 5, 4, 3)[::-1]

    def loss(maps, scale, bias):
        return jnp.sum(weights * normalized(maps, scale, bias, 1e-5)[0] ** 2)

    def expected_loss(maps, scale, bias):
        mean = maps.mean((0, 1, 2))
        var = ((maps - mean) ** 2).mean((0, 1, 2))
        return jnp.sum(weights * ((maps - mean) / jnp.sqrt(var + 1e-5) * scale + bias) ** 2)

    found = jax.grad(loss, (0, 1, 2))(maps, scale, bias)
    with jax.enable_x64(True):
        exact = jax.grad(expected_loss, (0, 1, 2))(*(array.astype(jnp.float64) for array in (maps, scale, bias)))
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradient_is_orthogonal_to_shifts_and_to_the_normalized_maps():
    maps, weights = 3 * draw(64, 2) + 1, draw(64, 2)[::-1]
    one, zero = jnp.ones(2), jnp.zeros(2)
    gradient = jax.grad(lambda maps: jnp.sum(weights * normalized(maps, one, zero, 0.0)[0]))(maps)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-5)
    np.testing.assert_allclose((gradient * normalized(maps, one, zero, 0.0)[0]).sum(0), 0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_channel_has_a_finite_gradient(value):
    maps = jnp.full((8, 1), value)
    gradients = jax.grad(lambda *inputs: normalized(*inputs, 1e-5)[0][0, 0], (0, 1, 2))(maps, jnp.ones(1), jnp.ones(1))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_training_call_on_a_cpu_has_the_values_statistics_and_gradients_of_flax(dtype):
    module, maps = Normalized(dtype=dtype), (2 * draw(8, 4, 4, 3) + 1).astype(dtype)
    variables = module.init(jax.random.key(0), maps)

    def call(platform):
        def loss(params, maps):
            with tracing_for(platform):
                result, changed = module.apply(variables | {"params": params}, maps, mutable=["batch_stats"])
            return jnp.sum(result.astype(jnp.float32) ** 3), (result, changed)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], maps)

    ours, theirs = call("cpu"), call("tpu")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), ours[0], theirs[0])
    tolerance = {jnp.float32: 1e-4, jnp.bfloat16: 3e-2}[dtype]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        ),
        ours[1],
        theirs[1],
    )


def test_only_training_on_a_cpu_has_its_own_gradient():
    kinds = {}
    for platform, train in (("cpu", True), ("cpu", False), ("cuda", True)):
        with tracing_for(platform):
            kinds[platform, train] = type(batch_norm(train=train, dtype=jnp.float32, name="norm"))
    assert kinds == {("cpu", True): CpuBatchNorm, ("cpu", False): nn.BatchNorm, ("cuda", True): nn.BatchNorm}


def test_initial_variables_do_not_depend_on_the_platform():
    with tracing_for("cpu"):
        ours = Normalized().init(jax.random.key(0), draw(4, 3))
    theirs = Normalized().init(jax.random.key(0), draw(4, 3))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_training_step_on_a_cpu_reads_and_writes_the_maps_less_often_than_with_flax():
    module, maps = Normalized(), draw(64, 24, 24, 32)
    variables = module.init(jax.random.key(0), maps)

    def passes(platform):
        def loss(maps):
            with tracing_for(platform):
                return jnp.sum(jax.nn.relu(module.apply(variables, maps, mutable=["batch_stats"])[0]) ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(maps).compile()
        return round(compiled.cost_analysis()["bytes accessed"] / maps.nbytes)

    # Ten and fourteen with jax 0.10.2.
    assert passes("cpu") < passes("tpu")

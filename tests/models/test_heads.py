"""Heads have the layers their settings say, and unit length where asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.models.heads import (
    Classifier,
    Diagonal,
    Identity,
    Projection,
    Projector,
    RectifiedProjection,
    SpatialProjection,
)
from tll_jax.models.normalization import unit_length
from tll_jax.typing import Features

POOLED = jnp.asarray(np.random.default_rng(0).normal(size=(6, 10)), jnp.float32)
MAPS = tuple(
    jnp.asarray(np.random.default_rng(side).normal(size=(6, side, side, 3)), jnp.float32) for side in (4, 2, 1)
)


def outputs_and_parameters(settings, dtype=jnp.float32):
    module = settings.build(dtype=dtype)
    outputs, variables = module.init_with_output(jax.random.key(0), Features(MAPS, POOLED), train=False)
    return outputs, variables.get("params", {})


def count(parameters):
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def test_the_projector_has_no_biases_and_normalizes_all_but_the_last_layer():
    outputs, parameters = outputs_and_parameters(Projector(widths=(8, 7, 5)))
    assert outputs.shape == (6, 5)
    assert count(parameters) == 10 * 8 + 2 * 8 + 8 * 7 + 2 * 7 + 7 * 5


def test_the_classifier_is_one_linear_layer():
    outputs, parameters = outputs_and_parameters(Classifier(num_classes=3))
    kernel, bias = parameters["linear1"]["kernel"], parameters["linear1"]["bias"]
    np.testing.assert_allclose(outputs, POOLED @ kernel + bias, rtol=1e-5)
    assert count(parameters) == 33


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (Projection(widths=(4,)), 10 * 4 + 4),
        (Projection(widths=(8, 4)), 10 * 8 + 8 + 8 * 4 + 4),
        (Projection(widths=(8, 4), batch_norm=True), 10 * 8 + 16 + 8 * 4 + 4),
        (SpatialProjection(stages=(1,), width=4), 2 * 2 * 3 * 4 + 4),
        (SpatialProjection(stages=(1, 2), width=4), (2 * 2 * 3 + 3) * 4 + 4),
        (Diagonal(), 10),
        (RectifiedProjection(width=4), 10 * 4),
        (Identity(), 0),
    ],
)
def test_embeddings_have_unit_length_and_the_parameters_of_their_layers(settings, size):
    outputs, parameters = outputs_and_parameters(settings)
    assert count(parameters) == size
    np.testing.assert_allclose(np.linalg.norm(outputs, axis=1), 1, rtol=1e-5)


def test_diagonal_weights_are_initialized_to_one_and_clipped_at_zero():
    module = Diagonal().build(dtype=jnp.float32)
    features = Features((), jnp.asarray([[3.0, 4.0, 12.0]]))
    outputs, variables = module.init_with_output(jax.random.key(0), features, train=False)
    np.testing.assert_allclose(outputs, [[3 / 13, 4 / 13, 12 / 13]], rtol=1e-6)
    weights = {"params": {"weights": jnp.asarray([2.0, 2.0, -1.0])}}
    assert variables["params"]["weights"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(module.apply(weights, features, train=False), [[0.6, 0.8, 0]], rtol=1e-6)


def test_a_rectified_projection_has_no_negative_numbers():
    module = RectifiedProjection(width=2).build(dtype=jnp.float32)
    kernel = jnp.asarray([[1.0, -1.0], [0.0, -1.0]])
    outputs = module.apply(
        {"params": {"linear1": {"kernel": kernel}}}, Features((), jnp.asarray([[2.0, 1.0]])), train=False
    )
    np.testing.assert_allclose(outputs, [[1, 0]], rtol=1e-6)


def test_a_spatial_projection_depends_on_positions():
    module = SpatialProjection(stages=(1,), width=4).build(dtype=jnp.float32)
    here = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(1.0)
    there = jnp.zeros((1, 2, 2, 3)).at[0, 1, 1].set(1.0)
    variables = module.init(jax.random.key(0), Features((MAPS[0][:1], here), POOLED[:1]), train=False)
    one, other = (
        module.apply(variables, Features((MAPS[0][:1], maps), POOLED[:1]), train=False) for maps in (here, there)
    )
    kernel = variables["params"]["linear1"]["kernel"].reshape(2, 2, 3, 4)
    np.testing.assert_allclose(one[0], unit_length(kernel[0, 0].sum(0)), rtol=1e-5)
    np.testing.assert_allclose(other[0], unit_length(kernel[1, 1].sum(0)), rtol=1e-5)


def test_identity_without_normalization_changes_nothing():
    outputs, _ = outputs_and_parameters(Identity(normalize=False))
    np.testing.assert_array_equal(outputs, POOLED)


def test_heads_return_fp32_whatever_they_compute_in():
    outputs, parameters = outputs_and_parameters(Projection(widths=(8, 4), batch_norm=True), jnp.bfloat16)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype("float32")}


def test_the_zero_vector_keeps_its_length_and_has_a_finite_gradient():
    vectors = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit_length(vectors), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda v: jnp.sum(unit_length(v)[:, 0]))(vectors)).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Projector(widths=()), "widths"),
        (Projection(widths=(8, 0)), "widths"),
        (Classifier(num_classes=1), "num_classes is 1"),
        (SpatialProjection(stages=()), "stages is"),
        (SpatialProjection(stages=(0,)), "stages is"),
        (SpatialProjection(width=0), "widths"),
    ],
)
def test_impossible_heads_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong.check()

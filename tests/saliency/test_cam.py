"""The CAM family: closed forms where the rest of the network is linear, loops where it is not."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.saliency.cam import grad_cam, grad_cam_plus_plus, hires_cam, layer_cam

RANDOM = np.random.default_rng(0)
# The stage's map is the image itself, so that nothing is enlarged.
IMAGE = jnp.asarray(RANDOM.uniform(size=(4, 5, 3)), jnp.float32)
WEIGHTS = jnp.asarray(RANDOM.normal(size=(4, 5, 3)), jnp.float32)
ALL = [grad_cam, grad_cam_plus_plus, hires_cam, layer_cam]


class Split(NamedTuple):
    """A score of an image's maps."""

    rest: Callable[[jax.Array], jax.Array]
    maps: Callable[[jax.Array], jax.Array] = lambda image: image

    def __call__(self, image):
        return self.rest(self.maps(image))

    def split(self, image, stage):
        assert stage == 2
        return self.maps(image), self.rest


def squares(maps):
    """Its gradient is `WEIGHTS * maps`."""
    return jnp.sum(WEIGHTS * maps**2) / 2


def test_grad_cam_of_a_linear_head_on_mean_pooled_maps_is_the_class_activation_map():
    head = jnp.array([2.0, -1.0, -0.5])
    expected = np.maximum(np.einsum("hwc,c->hw", IMAGE, head), 0) / 20
    assert 0 < np.count_nonzero(expected) < 20
    heatmap = grad_cam(Split(lambda maps: head @ jnp.mean(maps, axis=(0, 1))), IMAGE, stage=2)
    np.testing.assert_allclose(heatmap, expected, rtol=1e-5, atol=1e-7)


def test_hires_cam_before_a_linear_rest_is_the_contribution_of_each_position():
    score = Split(lambda maps: jnp.sum(jnp.abs(WEIGHTS) * maps) - 3)
    heatmap = hires_cam(score, IMAGE, stage=2)
    np.testing.assert_allclose(heatmap, np.sum(np.abs(WEIGHTS) * IMAGE, axis=-1), rtol=1e-5)
    assert float(jnp.sum(heatmap)) - 3 == pytest.approx(float(score(IMAGE)), rel=1e-5)


def test_hires_and_layer_cam_are_those_of_a_loop():
    maps, gradients = np.asarray(IMAGE), np.asarray(WEIGHTS * IMAGE)
    hires, layer = np.zeros((4, 5)), np.zeros((4, 5))
    for row, column, channel in np.ndindex(4, 5, 3):
        hires[row, column] += maps[row, column, channel] * gradients[row, column, channel]
        layer[row, column] += maps[row, column, channel] * max(gradients[row, column, channel], 0)
    np.testing.assert_allclose(hires_cam(Split(squares), IMAGE, stage=2), np.maximum(hires, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer_cam(Split(squares), IMAGE, stage=2), layer, rtol=1e-4, atol=1e-6)


def test_grad_cam_plus_plus_is_that_of_a_loop():
    maps, gradients = np.asarray(IMAGE, np.float64), np.asarray(WEIGHTS * IMAGE, np.float64)
    total = np.zeros((4, 5))
    for channel in range(3):
        weight, spread = 0.0, maps[..., channel].sum()
        for row, column in np.ndindex(4, 5):
            slope = gradients[row, column, channel]
            # Equation 19 with the derivatives of exp(score): slope^2 and slope^3 times one factor.
            weight += slope**2 / (2 * slope**2 + spread * slope**3) * max(slope, 0)
        total += weight * maps[..., channel]
    heatmap = grad_cam_plus_plus(Split(squares), IMAGE, stage=2)
    np.testing.assert_allclose(heatmap, np.maximum(total, 0), rtol=1e-3)


@pytest.mark.parametrize("method", ALL)
def test_a_map_is_enlarged_linearly_to_the_image(method):
    # Two places with 0 and 1 / 3 and a gradient of 1 or 1 / 2 each: only the ratio of the four pixels is common to all.
    score = Split(
        jnp.mean if method is grad_cam else jnp.sum, lambda image: jnp.array([[[0.0], [1.0]]]) * jnp.mean(image)
    )
    heatmap = np.asarray(method(score, jnp.full((1, 4, 3), 0.5), stage=2))
    assert heatmap.shape == (1, 4)
    np.testing.assert_allclose(heatmap / heatmap.max(), [[0, 0.25, 0.75, 1]], atol=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_a_constant_score_has_a_zero_and_finite_map(method):
    assert not method(Split(lambda maps: jnp.float32(7.0)), IMAGE, stage=2).any()


@pytest.mark.parametrize("method", ALL)
def test_a_score_without_stages_is_refused(method):
    with pytest.raises(ValueError, match="SplitScore"):
        method(jnp.sum, IMAGE, stage=2)

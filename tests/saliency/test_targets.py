"""Pair scores and the paper's saliency, against closed forms on a linear embedder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.saliency.gradients import gradient, smoothed
from tll_jax.saliency.targets import cosine_to, explain_pair, mse_to

SHAPE = (4, 5, 3)
DIM = 6


def random_images(num_images, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(num_images, *SHAPE)), jnp.float32)


JACOBIAN = jnp.asarray(np.random.default_rng(1).normal(size=(DIM, *SHAPE)), jnp.float32)


def linear(image):
    return jnp.einsum("dhwc,hwc->d", JACOBIAN, image)


def curved(image):
    return jnp.tanh(0.3 * linear(image))


def test_mse_is_worked_by_hand():
    score = mse_to(lambda image: image.ravel()[:2], jnp.array([1.0, 3.0]))
    # ((0 - 1)^2 + (1 - 3)^2) / 2
    assert score(jnp.array([[[0.0, 1.0, 9.0]]])) == 2.5


def test_cosine_is_worked_by_hand_and_finite_at_a_zero_vector():
    score = cosine_to(lambda image: image.ravel()[:2], jnp.array([2.0, 0.0]))
    assert score(jnp.array([[[3.0, 4.0, 9.0]]])) == pytest.approx(0.6)
    black = jnp.zeros((1, 1, 3))
    assert score(black) == 0
    assert jnp.isfinite(gradient(score, black)).all()


def test_the_saliency_of_a_linear_embedder_is_its_closed_form():
    left, right = random_images(2)
    z_left, z_right = (np.einsum("dhwc,hwc->d", JACOBIAN, image) for image in (left, right))
    # 2 (z_left - z_right)^T J / D, then the largest channel; to the right image it has the other sign.
    signed = 2 * np.einsum("d,dhwc->hwc", z_left - z_right, JACOBIAN) / DIM
    heatmap_left, heatmap_right = explain_pair(linear, left, right, gradient)
    assert heatmap_left.shape == (4, 5)
    assert np.asarray(heatmap_left) == pytest.approx(np.abs(signed).max(axis=-1), rel=1e-4)
    assert np.asarray(heatmap_right) == pytest.approx(np.abs(signed).max(axis=-1), rel=1e-4)


def test_explaining_a_pair_is_the_gradient_to_both_images_at_once():
    left, right = random_images(2)
    both = jax.grad(lambda a, b: jnp.mean((curved(a) - curved(b)) ** 2), argnums=(0, 1))(left, right)
    for heatmap, derivative in zip(explain_pair(curved, left, right, gradient), both, strict=True):
        assert np.asarray(heatmap) == pytest.approx(np.abs(derivative).max(axis=-1), rel=1e-4, abs=1e-7)


def test_swapping_a_pair_swaps_its_heat_maps():
    left, right = random_images(2)
    one, other = explain_pair(curved, left, right, gradient), explain_pair(curved, right, left, gradient)
    assert np.array_equal(one[0], other[1])
    assert np.array_equal(one[1], other[0])


def test_a_mirrored_pair_has_mirrored_heat_maps():
    def mirror_blind(image):
        return curved(image) + curved(image[:, ::-1])

    left, right = random_images(2)
    upright = explain_pair(mirror_blind, left, right, gradient)
    mirrored = explain_pair(mirror_blind, left[:, ::-1], right[:, ::-1], gradient)
    for heatmap, flipped in zip(upright, mirrored, strict=True):
        assert np.asarray(flipped[:, ::-1]) == pytest.approx(np.asarray(heatmap), rel=1e-3, abs=1e-6)


def test_two_equal_images_have_nothing_to_explain_by_mse():
    (image,) = random_images(1)
    for heatmap in explain_pair(curved, image, image, gradient):
        assert not heatmap.any()


def test_another_target_explains_another_score():
    left, right = random_images(2)
    heatmaps = explain_pair(curved, left, right, gradient, target=cosine_to)
    expected = gradient(cosine_to(curved, curved(right)), left)
    assert np.array_equal(heatmaps[0], expected)


def test_many_pairs_are_explained_by_one_compilation():
    traces = []

    @jax.jit
    @jax.vmap
    def explain(left, right):
        traces.append(left.shape)
        method = smoothed(gradient, key=jax.random.key(0), noise=0.1, samples=3)
        return explain_pair(curved, left, right, method)

    lefts, rights = random_images(4, seed=2), random_images(4, seed=3)
    together = explain(lefts, rights)
    explain(rights, lefts)
    assert traces == [SHAPE]
    alone = partial(explain_pair, curved, method=smoothed(gradient, key=jax.random.key(0), noise=0.1, samples=3))
    for stacked, single in zip(together, alone(lefts[3], rights[3]), strict=True):
        assert np.asarray(stacked[3]) == pytest.approx(np.asarray(single), rel=1e-3, abs=1e-6)

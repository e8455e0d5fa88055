"""Targets by hand, and the saliency of [Munteanu 2022] against closed forms on a linear embedder."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.saliency.gradients import gradient, smoothed
from tll_jax.saliency.targets import (
    class_logit,
    cosine,
    dot,
    explain_pair,
    log_softmax_among,
    margin_over,
    mse,
    squared_l2,
)

SHAPE = (4, 5, 3)
DIM = 6


def random_images(num_images, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(num_images, *SHAPE)), jnp.float32)


JACOBIAN = jnp.asarray(np.random.default_rng(1).normal(size=(DIM, *SHAPE)), jnp.float32)


def linear(image):
    return jnp.einsum("dhwc,hwc->d", JACOBIAN, image)


def curved(image):
    return jnp.tanh(0.3 * linear(image))


def test_targets_of_two_embeddings_are_worked_by_hand():
    left, right = jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0])
    assert mse(left, right) == (1 + 16) / 2
    assert squared_l2(left, right) == 1 + 16
    assert dot(left, right) == 6
    assert cosine(left, right) == pytest.approx(6 / (5 * 2))


def test_the_cosine_is_finite_at_a_zero_vector():
    zero, other = jnp.zeros(2), jnp.array([2.0, 0.0])
    assert cosine(zero, other) == 0
    assert all(jnp.isfinite(side).all() for side in jax.grad(cosine, argnums=(0, 1))(zero, other))


def test_the_margin_over_a_foil_is_worked_by_hand_and_is_the_cosine_to_the_right_image():
    left, right, foil = jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0]), jnp.array([0.0, 7.0])
    assert margin_over(foil)(left, right) == pytest.approx(0.6 - 0.8)
    of_margin, of_cosine = (jax.grad(target, argnums=(0, 1))(left, right) for target in (margin_over(foil), cosine))
    np.testing.assert_allclose(of_margin[1], of_cosine[1], rtol=1e-6)
    assert not np.allclose(of_margin[0], of_cosine[0])


def test_the_log_softmax_target_is_worked_by_hand():
    left, right, others = jnp.array([5.0, 0.0]), jnp.array([1.0, 0.0]), jnp.array([[0.0, 2.0], [0.0, -1.0]])
    # Cosines 1, 0, 0 times log 2: shares 2, 1, 1.
    assert log_softmax_among(others, logit_scale=math.log(2))(left, right) == pytest.approx(math.log(0.5))


def test_a_class_logit_is_that_of_the_label():
    assert class_logit(lambda image: image.ravel()[:3], 1)(jnp.array([[[0.1, 0.7, 0.2]]])) == jnp.float32(0.7)


def test_an_asymmetric_target_gets_left_and_right_in_order():
    def target(left, right):
        return jnp.sum(left) + 2 * jnp.sum(right) + 3 * left[0]

    heatmap_left, heatmap_right = explain_pair(lambda image: image.ravel(), *random_images(2), gradient, target=target)
    assert heatmap_left[0, 0] == 4
    assert (heatmap_left.at[0, 0].set(1) == 1).all()
    assert (heatmap_right == 2).all()


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


def test_equal_images_have_zero_heat_maps_by_mse():
    (image,) = random_images(1)
    for heatmap in explain_pair(curved, image, image, gradient):
        assert not heatmap.any()


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

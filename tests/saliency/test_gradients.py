"""Gradient heat maps: axioms and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.saliency.gradients import (
    gradient,
    gradient_x_input,
    smooth_gradient,
    smoothed,
    square_gradient,
    variance_gradient,
)

IMAGE = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 5, 3)), jnp.float32)


def test_the_heat_map_of_a_linear_score_is_its_largest_absolute_weight():
    weights = jnp.array([[[1.0, -3.0, 2.0], [0.0, 0.5, -0.25]]])
    heatmap = gradient(lambda image: jnp.sum(weights * image), jnp.ones((1, 2, 3)))
    assert heatmap.tolist() == [[3.0, 0.5]]


def test_gradient_times_input_of_a_linear_score_is_its_contributions():
    weights = jnp.array([[[1.0, -3.0, 1.0], [0.0, 0.5, -0.25]]])
    image = jnp.array([[[1.0, 0.5, 0.25], [1.0, 1.0, 1.0]]])

    def score(image):
        return jnp.sum(weights * image)

    assert gradient_x_input(score, image).tolist() == [[-0.25, 0.25]]


@pytest.mark.parametrize("method", [gradient, gradient_x_input])
def test_a_constant_score_has_an_empty_heat_map(method):
    assert not method(lambda image: jnp.float32(7.0), IMAGE).any()


def test_pixels_without_influence_have_zero_saliency():
    heatmap = gradient(lambda image: jnp.sum(image[1, 2] ** 2), IMAGE)
    assert heatmap[1, 2] == 2 * IMAGE[1, 2].max()
    assert not heatmap.at[1, 2].set(0.0).any()


def test_smoothing_without_noise_is_the_method_itself():
    score = lambda image: jnp.sum(jnp.sin(3 * image))  # noqa: E731
    explain = smoothed(gradient, key=jax.random.key(0), noise=0.0, samples=5)
    assert np.asarray(explain(score, IMAGE)) == pytest.approx(np.asarray(gradient(score, IMAGE)), rel=1e-6)


def test_smoothing_is_the_mean_over_noisy_images_of_the_stated_width():
    # |d/dx x^2 / 2| = |x|, and of normal noise around 0 its mean is noise * sqrt(2 / pi).
    def method(score, image):
        return jnp.abs(jax.grad(score)(image))[..., 0]

    explain = smoothed(method, key=jax.random.key(0), noise=0.15, samples=400)
    heatmap = explain(lambda image: jnp.sum(image**2) / 2, jnp.zeros((16, 16, 3)))
    assert jnp.mean(heatmap) == pytest.approx(0.15 * np.sqrt(2 / np.pi), rel=0.01)


def test_squares_and_variance_over_noise_have_their_closed_forms():
    # The gradient of x^2 / 2 is x: around 0.2 it has mean 0.2 and variance noise^2 in each of three channels.
    def explain(method):
        options = {"key": jax.random.key(0), "samples": 4000, "chunk": 1000}
        return float(jnp.mean(method(lambda image: jnp.sum(image**2) / 2, jnp.full((8, 8, 3), 0.2), **options)))

    assert explain(smooth_gradient) == pytest.approx(0.2, rel=0.02)
    assert explain(square_gradient) == pytest.approx(0.2**2 + 0.15**2, rel=0.04)
    assert explain(variance_gradient) == pytest.approx(0.15**2, rel=0.04)


def noisy_gradients(score, image, *, key, noise, samples):
    """One after another, with the noise that the methods draw: [samples, h, w, 3]."""
    keys = jax.random.split(key, samples)
    explain = jax.jit(jax.grad(score))
    return np.stack([explain(image + noise * jax.random.normal(one, image.shape, image.dtype)) for one in keys])


def test_smoothgrad_averages_signed_gradients_and_its_option_absolute_ones():
    # A score whose gradient turns its sign where the noise leads.
    score = lambda image: jnp.sum(jnp.sin(9 * image[::-1] * image))  # noqa: E731
    options = {"key": jax.random.key(1), "noise": 0.3, "samples": 7}
    gradients = noisy_gradients(score, IMAGE, **options)
    signed = np.abs(gradients.mean(0)).max(-1)
    absolute = np.abs(gradients).max(-1).mean(0)
    np.testing.assert_allclose(smooth_gradient(score, IMAGE, **options), signed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(smoothed(gradient, **options)(score, IMAGE), absolute, rtol=1e-4)
    assert np.corrcoef(signed.ravel(), absolute.ravel())[0, 1] < 0.9
    np.testing.assert_allclose(square_gradient(score, IMAGE, **options), (gradients**2).mean(0).max(-1), rtol=1e-4)
    np.testing.assert_allclose(
        variance_gradient(score, IMAGE, **options), gradients.var(0).max(-1), rtol=1e-3, atol=1e-4
    )


def test_smoothgrad_of_an_even_score_at_its_minimum_is_near_zero_but_the_smoothed_gradient_is_not():
    # The gradient of x^2 / 2 is the noise itself: its mean over 400 copies is a twentieth of its size.
    score, image = lambda image: jnp.sum(image**2) / 2, jnp.zeros((4, 4, 3))
    options = {"key": jax.random.key(0), "samples": 400}
    assert smooth_gradient(score, image, **options).max() < 0.03
    assert smoothed(gradient, **options)(score, image).min() > 0.15


def test_the_chunk_size_does_not_change_the_smoothed_map():
    def explain(chunk):
        score = lambda image: jnp.sum(image**3)  # noqa: E731
        return np.asarray(variance_gradient(score, IMAGE, key=jax.random.key(0), noise=0.2, samples=7, chunk=chunk))

    np.testing.assert_allclose(explain(3), explain(7), rtol=1e-4, atol=1e-6)


def test_smoothing_is_deterministic_in_its_key():
    def explain(seed):
        method = smoothed(gradient, key=jax.random.key(seed), noise=0.2, samples=2)
        return np.asarray(method(lambda image: jnp.sum(image**3), IMAGE))

    assert np.array_equal(explain(1), explain(1))
    assert not np.array_equal(explain(1), explain(2))


def test_smoothing_composes_with_itself():
    inner = smoothed(gradient, key=jax.random.key(0), noise=0.1, samples=2)
    explain = smoothed(inner, key=jax.random.key(1), noise=0.1, samples=2)
    assert explain(lambda image: jnp.sum(image**3), IMAGE).shape == (4, 5)

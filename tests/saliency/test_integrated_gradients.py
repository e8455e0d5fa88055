"""Integrated Gradients: completeness, closed forms on polynomials, axioms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax.models.heads import Projection
from tll_jax.saliency.baselines import blurred, constant, flat, noise
from tll_jax.saliency.integrated_gradients import completeness_error, expected_gradients, integrated_gradients
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.targets import class_logit

IMAGE = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 5, 3)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 3)), jnp.float32)


def cubic(image):
    return jnp.sum(WEIGHTS * image**3)


def test_factors_of_a_product_have_equal_attributions():
    image = jnp.array([[[0.5, 0.0, 0.0], [0.0, 0.8, 0.0]]])
    heatmap = integrated_gradients(lambda one: one[0, 0, 0] * one[0, 1, 1], image, baseline=flat(0.0), steps=2)
    np.testing.assert_allclose(heatmap, [[0.2, 0.2]], rtol=1e-6)


@pytest.mark.parametrize(("steps", "chunk"), [(2, 2), (7, 3)])
def test_attributions_of_a_cubic_are_its_terms_minus_those_of_the_baseline(steps, chunk):
    expected = np.sum(WEIGHTS * (IMAGE**3 - 0.3**3), axis=-1)
    heatmap = integrated_gradients(cubic, IMAGE, baseline=flat(0.3), steps=steps, chunk=chunk)
    np.testing.assert_allclose(heatmap, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("baseline", [flat(1.0), blurred(1.0), noise(jax.random.key(3)), constant(IMAGE[::-1])])
def test_attributions_sum_to_the_change_from_any_baseline(baseline):
    def score(image):
        return cubic(image) + jnp.sum(image) ** 2

    heatmap = integrated_gradients(score, IMAGE, baseline=baseline, steps=3)
    rise = score(IMAGE) - score(baseline(IMAGE))
    assert float(jnp.sum(heatmap)) == pytest.approx(float(rise), rel=1e-4, abs=1e-4)


def test_baselines_match_their_names():
    assert (flat(0.5)(IMAGE) == 0.5).all()
    assert np.array_equal(constant(IMAGE)(1 - IMAGE), IMAGE)
    assert np.array_equal(noise(jax.random.key(0))(IMAGE), noise(jax.random.key(0))(1 - IMAGE))
    assert 0 < jnp.var(blurred(1.0)(IMAGE)) < 0.3 * jnp.var(IMAGE)


def test_attributions_of_a_network_sum_to_the_change_of_a_logit_within_one_percent():
    # Every ReLU and max pool that switches on the way costs an error of the order of a step.
    network = networks.small_resnet(Projection(widths=(4,), normalize=False), num_stages=2)
    (image,) = networks.images(1, 32)
    embed = NetworkEmbedding(network=network, variables=networks.filled_variables(network, image[None]))
    score, baseline = class_logit(embed, 3), flat(0.5)

    @jax.jit
    def explain(image):
        heatmap = integrated_gradients(score, image, baseline=baseline, steps=50, chunk=50)
        change = score(image) - score(baseline(image))
        return heatmap, change, completeness_error(score, image, heatmap, baseline=baseline)

    heatmap, change, missed = explain(image)
    assert abs(change) > 1
    assert float(jnp.sum(heatmap)) == pytest.approx(float(change), rel=0.01)
    assert missed < 0.01


def test_integrated_gradients_are_invariant_to_the_implementation():
    def by_tanh(image):
        return jnp.tanh(jnp.sum(WEIGHTS * image))

    def by_exponentials(image):
        # The same sum, from differences and means: methods that depend on the implementation would differ here.
        means = jnp.mean(image, axis=(0, 1))
        argument = jnp.sum(WEIGHTS * (image - means)) + jnp.sum(jnp.sum(WEIGHTS, axis=(0, 1)) * means)
        return 2 / (1 + jnp.exp(-2 * argument)) - 1

    explain = partial(integrated_gradients, image=IMAGE, baseline=flat(0.5))
    np.testing.assert_allclose(explain(by_tanh), explain(by_exponentials), rtol=1e-3, atol=1e-5)


def test_a_constant_score_has_an_empty_map():
    def score(image):
        return jnp.float32(7.0)

    key = jax.random.key(0)
    assert not integrated_gradients(score, IMAGE, baseline=flat(0.5)).any()
    assert not expected_gradients(score, IMAGE, references=IMAGE[None], key=key).any()


def test_expected_gradients_tend_to_the_mean_of_integrated_gradients_over_references():
    references = jnp.stack([jnp.full_like(IMAGE, 0.25), jnp.full_like(IMAGE, 0.75)])
    expected = np.sum(WEIGHTS * (IMAGE**3 - (0.25**3 + 0.75**3) / 2), axis=-1)
    explain = partial(expected_gradients, cubic, IMAGE, references=references, key=jax.random.key(0))
    np.testing.assert_allclose(explain(samples=20_000, chunk=2_000), expected, atol=0.03)
    assert np.abs(explain(samples=5) - expected).max() > 0.1


def test_the_completeness_error_is_worked_by_hand():
    # The sum rises from 3 to 6; the map accounts for 4.5 of these 3.
    heatmap = jnp.array([[4.0, 0.5]])
    assert completeness_error(jnp.sum, jnp.ones((1, 2, 3)), heatmap, baseline=flat(0.5)) == 0.5

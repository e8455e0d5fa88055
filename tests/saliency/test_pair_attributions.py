"""Pair attributions: the exact decomposition where the rest of the network is linear, closed forms, completeness."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax.errors import UserError
from tll_jax.models.heads import Projection
from tll_jax.saliency.decomposition import decompose, places
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.pair_attributions import (
    integrated_places,
    layer_integrated_gradients,
    pair_attributions,
)
from tll_jax.saliency.targets import EmbeddedScore, dot

SIZE = 32
LEFT, RIGHT, REFERENCE = networks.images(3, SIZE)
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def embedding(head):
    module = networks.tiny_network(head)
    return NetworkEmbedding(network=module, variables=networks.filled_variables(module, LEFT[None]))


class Empty(NamedTuple):
    """An embedding whose maps at a stage are zeros for the reference image."""

    embed: NetworkEmbedding

    def __call__(self, image):
        return self.embed(image)

    def split(self, image, stage):
        maps, rest = self.embed.split(image, stage)
        return jnp.where(jnp.all(image == 0.5), 0, maps), rest


@pytest.mark.parametrize("width", [3, 300], ids=["by outputs", "by places"])
def test_a_linear_head_on_the_maps_has_the_exact_decomposition_at_one_step(width):
    head = Projection(widths=(width,), normalize=False)
    embed = embedding(head)
    params = embed.variables["params"]["head"]
    exact = decompose(*(places(head, params, embed.features(image)) for image in (LEFT, RIGHT)), normalized=False)
    found = pair_attributions(
        Empty(embed), LEFT, RIGHT, stage=1, integrate=partial(integrated_places, grid=99, steps=1)
    )
    for part, expected in zip(found.parts, exact, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-6)
    # The error of 256 x 256 numbers in fp32.
    assert float(found.error()) == pytest.approx(0, abs=1e-5 * abs(float(found.similarity)))
    assert float(found.similarity) == pytest.approx(float(exact.total()), rel=1e-5)


def test_attributions_are_those_of_a_loop_over_places_features_and_steps():
    """Of two layers with a tanh: integrated Jacobians by a Riemann sum, place by place and feature by feature."""
    first, second = normal(2, 3, 2, 5), normal(5, 4)
    a, b, start = normal(2, 3, 2), normal(2, 3, 2), normal(2, 3, 2)

    def function(maps):
        return jnp.tanh(jnp.einsum("hwc,hwcd->d", maps, first) / 2) @ second

    jacobian = jax.jit(jax.jacfwd(function))

    def integrated(end):
        points = (np.arange(400) + 0.5) / 400
        return np.mean([np.asarray(jacobian(start + point * (end - start))) for point in points], axis=0)

    jacobians = integrated(a), integrated(b)
    expected = np.zeros((2, 3, 2, 3))
    for i, j, k, m in np.ndindex(2, 3, 2, 3):
        for c, e in np.ndindex(2, 2):
            pair = jacobians[0][:, i, j, c] @ jacobians[1][:, k, m, e]
            expected[i, j, k, m] += float((a - start)[i, j, c]) * pair * float((b - start)[k, m, e])
    sides = [integrated_places(function, start, end, steps=20) for end in (a, b)]
    found = decompose(*sides, normalized=False)
    np.testing.assert_allclose(found.pairs, expected, rtol=2e-3, atol=1e-4)
    rise = [function(end) - function(start) for end in (a, b)]
    assert float(jnp.sum(found.pairs)) == pytest.approx(float(jnp.dot(*rise)), rel=1e-4)


def test_the_completeness_error_of_a_nonlinear_network_decreases_with_steps():
    embed = embedding(Projection(widths=(8, 6)))
    options = {"stage": 1, "baseline": lambda image: REFERENCE}
    found = {
        steps: jax.jit(
            lambda steps=steps: pair_attributions(
                embed, LEFT, RIGHT, integrate=partial(integrated_places, steps=steps), **options
            )
        )()
        for steps in (1, 64)
    }
    cosine = jnp.dot(embed(LEFT), embed(RIGHT))
    assert float(found[64].similarity) == pytest.approx(float(cosine), abs=1e-5)
    assert abs(float(found[64].error())) < 5e-3
    assert abs(float(found[64].error())) < abs(float(found[1].error())) / 2


def test_both_jacobian_products_and_all_chunk_sizes_agree():
    embed = embedding(Projection(widths=(8, 6)))
    _, rest = embed.split(LEFT, 1)
    start, end = (embed.split(image, 1)[0] for image in (REFERENCE, LEFT))
    # 6 outputs are fewer than the 256 places; with 100 more, that are always 0, they are more.
    by_output = integrated_places(rest, start, end, grid=4, steps=3)
    wide = lambda maps: jnp.concatenate([rest(maps), jnp.zeros(100)])  # noqa: E731
    for chunk in (1, 7, 1000):
        by_place = integrated_places(wide, start, end, grid=4, steps=3, chunk=chunk)
        assert by_place.vectors.shape == (4, 4, 106)
        np.testing.assert_allclose(by_place.vectors[..., :6], by_output.vectors, rtol=1e-3, atol=1e-6)


def test_pixels_are_pooled_to_positions_by_area():
    weights = normal(6, 4, 3, 5)
    image = normal(6, 4, 3)
    found = pair_attributions(
        lambda image: jnp.einsum("hwc,hwcd->d", image, weights),
        image,
        image,
        baseline=jnp.zeros_like,
        integrate=partial(integrated_places, grid=3, steps=1),
    )
    pixels = np.einsum("hwc,hwcd->hwd", image, weights)
    # 6 rows in 3 parts: two each; 4 columns in 3 parts: the first and a third of the second.
    first = pixels[:2, 0].sum(axis=0) + pixels[:2, 1].sum(axis=0) / 3
    middle = pixels[2:4, 1].sum(axis=0) * 2 / 3 + pixels[2:4, 2].sum(axis=0) * 2 / 3
    assert float(found.parts.pairs[0, 0, 1, 1]) == pytest.approx(float(first @ middle), rel=1e-4)
    assert not found.parts.left.any()


def test_the_map_of_one_image_is_summed_over_positions_of_the_other():
    embed = embedding(Projection(widths=(6,)))
    score = EmbeddedScore(embed, lambda z: dot(z, embed(RIGHT)))
    heatmap = layer_integrated_gradients(score, LEFT, stage=1, steps=4)
    maps, rest = embed.split(LEFT, 1)
    places = integrated_places(rest, embed.split(jnp.full_like(LEFT, 0.5), 1)[0], maps, grid=99, steps=4)
    expected = jax.image.resize(places.vectors @ embed(RIGHT), (SIZE, SIZE), "linear")
    np.testing.assert_allclose(heatmap, expected, atol=1e-4 * float(jnp.abs(expected).max()))


def test_a_stage_of_a_plain_function_is_refused():
    with pytest.raises(UserError, match="in a function that has split"):
        pair_attributions(jnp.ravel, LEFT, RIGHT, stage=1)

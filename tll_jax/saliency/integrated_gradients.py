"""Integrated and expected gradients: path attributions, which sum to the change of the score."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tll_jax.saliency.baselines import GRAY, Baseline
from tll_jax.saliency.chunks import map_sum
from tll_jax.saliency.gradients import CHUNK
from tll_jax.typing import Score


def integrated_gradients(
    score: Score,
    image: Float[Array, "height width 3"],
    *,
    baseline: Baseline = GRAY,
    steps: int = 25,
    chunk: int = CHUNK,
) -> Float[Array, "height width"]:
    """Integrated Gradients: each pixel's contribution to score(image) - score(baseline), signed, summed over channels.

    The integral of the gradient along the straight path from the baseline is approximated by Gauss-Legendre quadrature
    with `steps` points; `completeness_error` measures the error.

    Source: Sundararajan, Taly and Yan 2017 (arXiv 1703.01365), equation 1.
    """
    start = baseline(image)
    # Points and weights on [-1, 1], halved; `at` shifts the points to [0, 1].
    points, weights = (jnp.asarray(values, image.dtype) / 2 for values in np.polynomial.legendre.leggauss(steps))

    def at(point: Float[Array, ""]) -> Float[Array, "height width 3"]:
        return jax.grad(score)(start + (point + 0.5) * (image - start))

    return jnp.sum((image - start) * map_sum(at, points, weights, chunk=chunk), axis=-1)


def expected_gradients(
    score: Score,
    image: Float[Array, "height width 3"],
    *,
    references: Float[Array, "references height width 3"],
    key: PRNGKeyArray,
    samples: int = 25,
    chunk: int = CHUNK,
) -> Float[Array, "height width"]:
    """Expected Gradients: Integrated Gradients averaged over the baselines `references`, by Monte Carlo.

    Each of `samples` draws is one reference and one point on its path. The map is signed and summed over channels; in
    expectation it sums to score(image) minus the references' mean score.

    Source: Erion et al. 2021 (arXiv 1906.10670), equation 5.
    """

    def once(sample_key: PRNGKeyArray) -> Float[Array, "height width"]:
        which, where = jax.random.split(sample_key)
        reference = references[jax.random.randint(which, (), 0, len(references))]
        point = jax.random.uniform(where, (), image.dtype)
        return jnp.sum((image - reference) * jax.grad(score)(reference + point * (image - reference)), axis=-1)

    return map_sum(once, jax.random.split(key, samples), jnp.full(samples, 1 / samples), chunk=chunk)


def completeness_error(
    score: Score,
    image: Float[Array, "height width 3"],
    heatmap: Float[Array, "height width"],
    *,
    baseline: Baseline = GRAY,
) -> Float[Array, ""]:
    """Relative error of completeness: |sum of the map - change| / |change|, change = score(image) - score(baseline)."""
    change = score(image) - score(baseline(image))
    return jnp.abs(jnp.sum(heatmap) - change) / jnp.maximum(jnp.abs(change), 1e-12)

"""Second-order attributions: contributions to a similarity of pairs of positions, one in each image.

For embeddings f(a) and g(b) and baselines r and s, the fundamental theorem of calculus gives f(a) = f(r) + sum_p v_p,
where v_p = int_0^1 J_f(r + t (a - r)) (a - r)_p dt is the contribution of position p to the change along the straight
path from the baseline. Hence (f(a) - f(r)) . (g(b) - g(s)) = sum_pq v_p . w_q for any differentiable f and g. If f and
g are linear in the positions, this is the exact decomposition (see `decomposition`).

Source: Moeller, Nikolaev and Pado 2023 (arXiv 2310.05703) and Moeller et al. 2024 (arXiv 2408.14153), equation 6.
Departures: the integrated Jacobians are summed over the features of a position before the matrix of pairs is formed,
and the integrals use Gauss-Legendre quadrature instead of equal steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.models.pooling import pooling_weights
from tll_jax.saliency.baselines import GRAY, Baseline
from tll_jax.saliency.chunks import map_sum
from tll_jax.saliency.decomposition import Decomposition, Places, decompose
from tll_jax.typing import Score

__all__ = ["PairAttributions", "integrated_places", "layer_integrated_gradients", "pair_attributions"]

STEPS, GRID, CHUNK = 8, 12, 64


class PairAttributions(NamedTuple):
    """A similarity as an approximate sum over pairs of positions."""

    parts: Decomposition
    """`pairs[i, j, k, l]` is the term of the changes of position (i, j) from the left and of (k, l) from the right
    baseline, `left` and `right` the terms of one image's changes and the other's baseline, `bias` the term of both
    baselines."""
    similarity: Float[Array, ""]
    """The dot product of the two embeddings."""

    def error(self) -> Float[Array, ""]:
        """Error of the quadrature: the sum of all terms minus the similarity; it goes to 0 with the number of steps."""
        return self.parts.total() - self.similarity


def pair_attributions(
    embed: Any,
    left: Float[Array, "height width 3"],
    right: Float[Array, "height width 3"],
    *,
    stage: int | str | None = None,
    baseline: Baseline = GRAY,
    integrate: Callable[..., Places] | None = None,
) -> PairAttributions:
    """Attribution of the dot product of two embeddings (their cosine at unit length) to pairs of positions.

    Args:
      embed: image `[height, width, 3]` in [0, 1] -> embedding `[dim]`; if a stage is given, it needs a `split` like
        that of `tll_jax.typing.SplitScore`.
      stage: attribute to positions of this stage's feature maps; by default, to those of the image. Inputs of the
        embedding other than these maps, such as a transformer's class token, are held constant and are part of the
        bias.
      baseline: baseline of an image; the baseline of feature maps is their value at the image's baseline.
      integrate: `integrated_places`, or with other options `partial(integrated_places, steps=16)`;
        `PairAttributions.error` measures its error.

    Raises:
      InvalidValue: there is no such stage, or `embed` is a plain function and a stage is given.
    """
    images = jnp.stack([left, right])

    def of_image(image: Float[Array, "height width 3"]) -> tuple[Places, Array]:
        function, start, end = _path(embed, image, baseline(image), stage)
        return (integrate or integrated_places)(function, start, end), function(end)

    # One program for both images in turn: half the compilation, and half the memory of both at once.
    places, embeddings = jax.lax.map(of_image, images)
    sides = (jax.tree.map(lambda leaf, side=side: leaf[side], places) for side in (0, 1))
    return PairAttributions(
        parts=decompose(*sides, normalized=False), similarity=jnp.dot(*embeddings, precision="highest")
    )


def integrated_places(
    function: Callable[[Float[Array, "height width channels"]], Float[Array, " dim"]],
    start: Float[Array, "height width channels"],
    end: Float[Array, "height width channels"],
    *,
    grid: int = GRID,
    steps: int = STEPS,
    chunk: int = CHUNK,
) -> Places:
    """Contribution of each position to function(end) - function(start) along the straight path, and function(start).

    The contributions, `vectors`, and function(start), `bias`, sum to function(end) up to the error of the quadrature.
    Each step takes one Jacobian-vector product for each position, or, if the function has fewer outputs than there are
    positions, one vector-Jacobian product for each output.

    Args:
      grid: largest number of positions a side; finer positions are pooled by area.
      steps: points of the quadrature.
      chunk: number of products in one batch; memory grows with it only.
    """
    rows, columns = (jnp.asarray(pooling_weights(min(side, grid), side), end.dtype) for side in end.shape[:2])
    change, bias = end - start, function(start)
    num_places, num_outputs = rows.shape[1] * columns.shape[1], bias.size
    masks = jnp.einsum("hr,wc->rchw", rows, columns).reshape(num_places, *end.shape[:2], 1)
    points, weights = (jnp.asarray(values, end.dtype) / 2 for values in np.polynomial.legendre.leggauss(steps))
    num_directions = min(num_places, num_outputs)

    def by_place(pullback: Callable[[Array], Any]) -> Float[Array, "places dim"]:
        # A pullback is linear, so its own pullback, at any point, is the Jacobian-vector product. Forward mode is not
        # defined for networks with custom gradients.
        product = jax.vjp(lambda back: pullback(back)[0], jnp.zeros_like(bias))[1]
        return jax.lax.map(lambda mask: product(mask * change)[0], masks, batch_size=min(chunk, num_places))

    def by_output(pullback: Callable[[Array], Any]) -> Float[Array, "places dim"]:
        def gradient(output: Float[Array, " dim"]) -> Float[Array, " places"]:
            shares = jnp.sum(pullback(output)[0] * change, axis=-1)
            return jnp.einsum("hw,hr,wc->rc", shares, rows, columns, precision="highest").ravel()

        return jax.lax.map(gradient, jnp.eye(num_outputs), batch_size=min(chunk, num_outputs)).T

    def at(point: Float[Array, ""]) -> Float[Array, "places dim"]:
        _, pullback = jax.vjp(function, start + (point + 0.5) * change)
        return (by_output if num_outputs < num_places else by_place)(pullback)

    vectors = map_sum(at, points, weights, chunk=max(1, chunk // num_directions))
    return Places(vectors.reshape(rows.shape[1], columns.shape[1], num_outputs), bias)


def layer_integrated_gradients(
    score: Score,
    image: Float[Array, "height width 3"],
    *,
    stage: int | str,
    baseline: Baseline = GRAY,
    steps: int = STEPS,
    chunk: int = CHUNK,
) -> Float[Array, "height width"]:
    """Integrated Gradients of a stage's feature maps: signed contributions to score(image) - score(baseline).

    The map has the resolution of the stage and is resized to that of the image by linear interpolation. If the score is
    the dot product with another embedding, it equals `pair_attributions` summed over the other image's positions, plus
    the terms with the other image's baseline.

    Source: Sundararajan et al. 2017 (arXiv 1703.01365), applied to a layer.
    """
    function, start, end = _path(score, image, baseline(image), stage)
    places = integrated_places(
        lambda maps: function(maps)[None], start, end, grid=max(end.shape[:2]), steps=steps, chunk=chunk
    )
    return jax.image.resize(places.vectors[..., 0], image.shape[:2], "linear")


def _path(function: Any, image: Array, reference: Array, stage: int | str | None) -> tuple[Any, Array, Array]:
    """Function of the image or of a stage's maps, and the start and end of its integration path."""
    if stage is None:
        return function, reference, image
    if not hasattr(function, "split"):
        raise InvalidValue(
            "the maps of a stage can be seen in a function that has split, as a SplitScore; without a stage the image "
            "itself is attributed"
        )
    maps, rest = function.split(image, stage)
    return rest, function.split(reference, stage)[0], maps

"""Second-order attributions: what each place of one image adds to a similarity together with each place of the other.

For embeddings f(a) and g(b) and references r and s without content, the fundamental theorem of calculus gives
f(a) = f(r) + sum_p v_p, where v_p = int_0^1 J_f(r + t (a - r)) (a - r)_p dt is the part of the change that place p
makes on the straight path from the reference. So (f(a) - f(r)) . (g(b) - g(s)) = sum_pq v_p . w_q, for whatever
differentiable f and g; where f and g are linear in the places this is the exact decomposition (see `decomposition`).

Source: Moeller, Nikolaev and Pado 2023 (arXiv 2310.05703) and Moeller et al. 2024 (arXiv 2408.14153), equation 6, whose
matrix of integrated Jacobians of all features is summed over the features of a place here before it is formed. The
integrals are by Gauss-Legendre quadrature instead of equal steps.
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
    """A similarity, approximately as a sum over pairs of places."""

    parts: Decomposition
    """`pairs[i, j, k, l]` is what the change of place (i, j) from the left reference and that of (k, l) from the right
    one add together; `left` and `right` what a change adds beside the other reference, `bias` the references alone."""
    similarity: Float[Array, ""]
    """The dot product of the two embeddings."""

    def error(self) -> Float[Array, ""]:
        """By how much the sum of all parts misses the similarity; 0 for enough steps."""
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
    """The dot product of two embeddings by pairs of places: their cosine where they have unit length.

    Args:
      embed: image `[height, width, 3]` in [0, 1] -> embedding `[dim]`; where a stage is given, with `split` as a
        `SplitScore` has it.
      stage: whose maps have the places; by default the image itself. What the embedding takes from the image by other
        ways than this stage's maps, such as a transformer's class token, stays as it is and is part of the bias.
      baseline: the reference of an image; of maps, their reference is what they are for that image.
      integrate: `integrated_places`, the default, or with other options: `partial(integrated_places, steps=16)`;
        `PairAttributions.error` is how exact it came out.

    Raises:
      InvalidValue: there is no such stage, or `embed` is a plain function and a stage is given.
    """
    images = jnp.stack([left, right])

    def of_image(image: Float[Array, "height width 3"]) -> tuple[Places, Array]:
        function, start, end = _path(embed, image, baseline(image), stage)
        return (integrate or integrated_places)(function, start, end), function(end)

    # One after the other by one program: half the compilation, and half the memory of both at once.
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
    """What each place's change adds to function(end) - function(start) on the straight path, `vectors`; and
    function(start), `bias`. Together they sum to function(end), up to the error of the quadrature.

    Per step it takes a product of the Jacobian with one direction a place, or where the function has fewer outputs than
    there are places, with one output each.

    Args:
      grid: places a side, at most; positions are joined by area, and a position that two places share counts in part.
      steps: points of the quadrature.
      chunk: how many directions pass the network together; memory grows with it alone.
    """
    rows, columns = (jnp.asarray(pooling_weights(min(side, grid), side), end.dtype) for side in end.shape[:2])
    change, bias = end - start, function(start)
    num_places, num_outputs = rows.shape[1] * columns.shape[1], bias.size
    masks = jnp.einsum("hr,wc->rchw", rows, columns).reshape(num_places, *end.shape[:2], 1)
    points, weights = (jnp.asarray(values, end.dtype) / 2 for values in np.polynomial.legendre.leggauss(steps))
    num_directions = min(num_places, num_outputs)

    def by_place(pullback: Callable[[Array], Any]) -> Float[Array, "places dim"]:
        # A pullback is linear, so that its own pullback, at any point, is the product with the Jacobian: networks with
        # gradients of their own have no forward mode.
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
    """What each place of a stage's maps adds to the score's rise from the baseline's maps; signed, of the stage's
    resolution, enlarged to the image's by linear interpolation.

    Where the score is the dot product with another embedding this is the sum over the other image's places of
    `pair_attributions`, and of what the place adds beside the other image's reference.

    Source: Sundararajan et al. 2017 (arXiv 1703.01365), on a layer; as `pair_attributions` for pairs.
    """
    function, start, end = _path(score, image, baseline(image), stage)
    places = integrated_places(
        lambda maps: function(maps)[None], start, end, grid=max(end.shape[:2]), steps=steps, chunk=chunk
    )
    return jax.image.resize(places.vectors[..., 0], image.shape[:2], "linear")


def _path(function: Any, image: Array, reference: Array, stage: int | str | None) -> tuple[Any, Array, Array]:
    """A function of the image or of a stage's maps, and where its path begins and ends."""
    if stage is None:
        return function, reference, image
    if not hasattr(function, "split"):
        raise InvalidValue(
            "the maps of a stage can be seen in a function that has split, as a SplitScore; without a stage the image "
            "itself is attributed"
        )
    maps, rest = function.split(image, stage)
    return rest, function.split(reference, stage)[0], maps

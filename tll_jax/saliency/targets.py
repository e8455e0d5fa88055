"""Targets of explanation: scalar functions of two embeddings, which become a score of either image.

A target is a function of the left and the right embedding, float `[dim]` each. `mse` and `squared_l2` are smaller for
more similar images, all others larger; methods that show only positive evidence (the CAM family, SBSM) need the latter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tll_jax.errors import InvalidValue
from tll_jax.saliency.networks import Attention
from tll_jax.typing import Saliency, Score

Embed = Callable[[Float[Array, "height width 3"]], Float[Array, " dim"]]
"""image `[h, w, 3]` in [0, 1] -> embedding."""
Target = Callable[[Float[Array, " dim"], Float[Array, " dim"]], Float[Array, ""]]


def mse(left: Float[Array, " dim"], right: Float[Array, " dim"]) -> Float[Array, ""]:
    """Mean squared difference.

    Its gradient to the left image is 2 (left - right)^T J / dim, which vanishes as a pair converges and weighs the
    dimensions in which the two differ.

    Source: [Munteanu 2022], whose saliency maps are gradients of MSE(z_left, z_right).
    """
    return jnp.mean((left - right) ** 2)


def squared_l2(left: Float[Array, " dim"], right: Float[Array, " dim"]) -> Float[Array, ""]:
    """Squared Euclidean distance."""
    return jnp.sum((left - right) ** 2)


def dot(left: Float[Array, " dim"], right: Float[Array, " dim"]) -> Float[Array, ""]:
    """Dot product."""
    return jnp.dot(left, right, precision="highest")


def cosine(left: Float[Array, " dim"], right: Float[Array, " dim"]) -> Float[Array, ""]:
    """Cosine similarity, in [-1, 1]."""
    # The epsilon keeps score and gradient finite at a zero vector.
    return optax.losses.cosine_similarity(left, right, epsilon=1e-8)


def margin_over(foil: Float[Array, " dim"]) -> Target:
    """Contrastive target: the cosine to the right image minus the cosine to another image with embedding `foil`.

    The heat map of the right image is that of the cosine, because the foil's term does not depend on it.
    """

    def margin(left: Float[Array, " dim"], right: Float[Array, " dim"]) -> Float[Array, ""]:
        return cosine(left, right) - cosine(left, foil)

    return margin


def log_softmax_among(others: Float[Array, "others dim"], *, logit_scale: float = 15.0) -> Target:
    """Target: log-probability of the right image in a softmax over the gallery's cosines times `logit_scale`.

    `others` are the embeddings of the rest of the gallery; 15 is the scale of `objectives.info_nce`.
    """

    def log_probability(left: Float[Array, " dim"], right: Float[Array, " dim"]) -> Float[Array, ""]:
        candidates = jnp.concatenate([right[None], others])
        return jax.nn.log_softmax(logit_scale * jax.vmap(lambda one: cosine(left, one))(candidates))[0]

    return log_probability


@dataclass(frozen=True)
class EmbeddedScore:
    """Score of an image by a function of its embedding; it has `split` if `embed` has it."""

    embed: Embed
    score_embedding: Callable[[Float[Array, " dim"]], Float[Array, ""]]

    def __call__(self, image: Float[Array, "height width 3"]) -> Float[Array, ""]:
        return self.score_embedding(self.embed(image))

    def split(
        self, image: Float[Array, "height width 3"], stage: int | str
    ) -> tuple[Float[Array, "h w channels"], Score]:
        """See `tll_jax.typing.SplitScore`.

        Raises:
          ValueError: `embed` has no `split`, or the network has no such stage.
        """
        split = getattr(self.embed, "split", None)
        if split is None:
            raise InvalidValue(
                "this method looks at the maps of a stage, and this embedding has none: give it a "
                "saliency.networks.NetworkEmbedding"
            )
        maps, rest = split(image, stage)
        return maps, lambda maps: self.score_embedding(rest(maps))

    def attention(self, image: Float[Array, "height width 3"]) -> Attention:
        """See `NetworkEmbedding.attention`.

        Raises:
          InvalidValue: `embed` is a plain function, or of a network without attention.
        """
        attention = getattr(self.embed, "attention", None)
        if attention is None:
            raise InvalidValue(
                "this method looks at attention weights, and this embedding shows none: give it a "
                "saliency.networks.NetworkEmbedding"
            )
        found: Attention = attention(image)
        return found._replace(rest=lambda changes: self.score_embedding(found.rest(changes)))


def class_logit(classify: Embed, label: int) -> EmbeddedScore:
    """Score of one class: its logit, for a network with outputs `[classes]`."""
    return EmbeddedScore(classify, lambda logits: logits[label])


def explain_pair(
    embed: Embed,
    left: Float[Array, "height width 3"],
    right: Float[Array, "height width 3"],
    method: Saliency,
    *,
    target: Target = mse,
) -> tuple[Float[Array, "height width"], Float[Array, "height width"]]:
    """Heat maps of both images of a pair.

    With `method=gradient` and `target=mse` this is the saliency of [Munteanu 2022], the gradient of MSE(z_left,
    z_right) with respect to both images: holding the other embedding constant changes neither partial derivative.
    `jax.jit(jax.vmap(...))` of it compiles once for any number of pairs of one size.
    """
    images = jnp.stack([left, right])

    def explain(image: Float[Array, "height width 3"], other: Float[Array, " dim"], is_left: Bool[Array, ""]) -> Any:
        return method(EmbeddedScore(embed, lambda z: jnp.where(is_left, target(z, other), target(other, z))), image)

    # One program for both sides: half the compilation.
    embeddings = jax.vmap(embed)(images)
    heatmap_left, heatmap_right = jax.vmap(explain)(images, embeddings[::-1], jnp.array([True, False]))
    return heatmap_left, heatmap_right

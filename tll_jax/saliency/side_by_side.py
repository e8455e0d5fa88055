"""Pairs explained by many methods, with whatever network they need."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from tll_jax.contracts import Activation, Head
from tll_jax.saliency.decomposition import Decomposition, decompose, places
from tll_jax.saliency.menu import Method
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.targets import Target, explain_pair

MakeNetwork = Callable[[Activation], nn.Module]
"""The trained network with this for every ReLU of its backbone, and no stage frozen."""
CHUNK = 8
"""How many pairs pass the network together."""


class Maps(NamedTuple):
    """A method's heat maps of both sides."""

    left: Float[np.ndarray, "pairs height width"]
    right: Float[np.ndarray, "pairs height width"]


def explain_by(
    methods: Mapping[str, Method],
    make_network: MakeNetwork,
    variables: Any,
    left: Float[Array, "pairs height width 3"],
    right: Float[Array, "pairs height width 3"],
    *,
    target: Target,
    chunk: int = CHUNK,
) -> dict[str, Maps]:
    """The maps of all pairs by every method; each method is compiled once.

    Raises:
      ValueError: a map holds values that are no numbers.
    """
    found = {}
    for name, method in methods.items():
        explain = explainer(method, make_network, target=target, chunk=min(chunk, len(left)))
        maps = Maps(*(np.asarray(side) for side in explain(variables, left, right)))
        if not all(np.isfinite(side).all() for side in maps):
            raise ValueError(f"{name} gave a map with values that are no numbers: is the network's output finite?")
        found[name] = maps
    return found


def explainer(method: Method, make_network: MakeNetwork, *, target: Target, chunk: int) -> Any:
    """A compiled function of variables, left and right images `[pairs, h, w, 3]` to the maps of both sides."""
    network = make_network(method.activation)

    @jax.jit
    def explain(variables: Any, left: Array, right: Array) -> tuple[Array, Array]:
        # The variables are an argument, so that all seeds of one network share the compiled program.
        embed = NetworkEmbedding(network=network, variables=variables)
        return jax.lax.map(
            lambda pair: explain_pair(embed, *pair, method.saliency, target=target), (left, right), batch_size=chunk
        )

    return explain


def decompose_pair(
    head: Head,
    network: nn.Module,
    variables: Any,
    left: Float[Array, "height width 3"],
    right: Float[Array, "height width 3"],
) -> Decomposition:
    """The cosine of a pair, place by place.

    Raises:
      ValueError: the head is not linear in the maps.
    """
    embed = NetworkEmbedding(network=network, variables=variables)
    params = variables["params"].get("head", {})
    sides = (places(head, params, embed.features(image)) for image in (left, right))
    return decompose(*sides)

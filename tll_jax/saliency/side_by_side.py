"""Many saliency methods applied to pairs, each with the network that it needs."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from tll_jax.data.pairs import SIDES
from tll_jax.devices import local_mesh, platform_of, tracing_for
from tll_jax.errors import InvalidValue
from tll_jax.files import read_arrays, write_arrays
from tll_jax.saliency.decomposition import Decomposition, decompose, places
from tll_jax.saliency.methods import DECOMPOSITION, Method
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.pair_attributions import PairAttributions, pair_attributions
from tll_jax.saliency.targets import Target, explain_pair
from tll_jax.typing import Activation, Head

logger = logging.getLogger(__name__)

MakeNetwork = Callable[[Activation], nn.Module]
"""activation -> the trained network with it in place of every ReLU of the backbone, without frozen stages."""
_ATTRIBUTED = "attributed places"
_FACTS = ("names", "cosine", "target", "layer", "descriptions", "more_alike_than")
CHUNK = 8
"""Pairs in one batch."""
MOST_PROGRAMS = 64
"""Methods whose compiled programs are cached."""


class Maps(NamedTuple):
    """Heat maps of both sides from one method."""

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
) -> dict[str, Maps]:
    """Heat maps of all pairs by every method; each method is compiled once, and logs a line when it is done.

    Raises:
      ValueError: a heat map has values that are not finite.
    """
    found = {}
    names = list(methods)
    for number, (name, method) in enumerate(methods.items(), start=1):
        start = time.perf_counter()
        explain = explainer(method, make_network, target=target, chunk=min(CHUNK, len(left)))
        maps = Maps(*(np.asarray(side) for side in explain(variables, left, right)))
        if not all(np.isfinite(side).all() for side in maps):
            raise InvalidValue(f"{name} gave a map with values that are no numbers: is the network's output finite?")
        found[name] = maps
        following = f"; next: {names[number]}" if number < len(names) else ""
        logger.info("%d of %d: %s done in %.1f s%s", number, len(names), name, time.perf_counter() - start, following)
    return found


def explainer(method: Method, make_network: MakeNetwork, *, target: Target, chunk: int) -> Any:
    """Compiled function (variables, left, right images `[pairs, h, w, 3]`) -> heat maps of both sides.

    Equal methods on equal networks share one function, and so one program, whatever their variables.
    """
    return _explainer(method, make_network(method.activation), target, chunk)


@lru_cache(MOST_PROGRAMS)
def _explainer(method: Method, network: nn.Module, target: Target, chunk: int) -> Any:
    @jax.jit
    def explain(variables: Any, left: Array, right: Array) -> tuple[Array, Array]:
        with tracing_for(platform_of(local_mesh())):
            embed = NetworkEmbedding(network=network, variables=variables)
            return jax.lax.map(
                lambda pair: explain_pair(embed, pair[0], pair[1], method.saliency, target=target),
                (left, right),
                batch_size=chunk,
            )

    return explain


def decompose_pair(
    head: Head,
    network: nn.Module,
    variables: Any,
    left: Float[Array, "height width 3"],
    right: Float[Array, "height width 3"],
) -> Decomposition:
    """Exact spatial decomposition of the cosine of a pair.

    Raises:
      ValueError: the head is not linear in the maps.
    """
    embed = NetworkEmbedding(network=network, variables=variables)
    params = variables["params"].get("head", {})
    sides = (places(head, params, embed.features(image)) for image in (left, right))
    return decompose(*sides)


def attribute_pair(
    network: nn.Module,
    variables: Any,
    left: Float[Array, "height width 3"],
    right: Float[Array, "height width 3"],
    *,
    stage: int,
) -> PairAttributions:
    """Attribution of the cosine of a pair to positions of a stage's feature maps, for any head; see
    `pair_attributions`.

    Norms of embeddings that do not have unit length are held constant.
    """
    embed = NetworkEmbedding(network=network, variables=variables)
    found = pair_attributions(embed, left, right, stage=stage)
    lengths = [jnp.maximum(jnp.linalg.norm(embed(image)), 1e-12) for image in (left, right)]
    return jax.tree.map(lambda values: values / (lengths[0] * lengths[1]), found)


@dataclass(frozen=True, kw_only=True)
class ExplainedPair:
    """The explanation of the similarity of two images: heat maps by several methods and the decomposition."""

    names: tuple[str, str]
    left: UInt8[np.ndarray, "height width 3"]
    right: UInt8[np.ndarray, "height width 3"]
    cosine: float
    """Cosine of the two embeddings."""
    target: str
    layer: str
    """Layer whose feature maps the CAM methods use."""
    descriptions: dict[str, str]
    """One line about each method's heat map."""
    maps: dict[str, tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]]
    decomposition: Decomposition | None
    """None if the head is not linear."""
    attributions: PairAttributions | None = None
    """Attribution of the cosine to positions of `layer`, if requested."""
    more_alike_than: float | None = None
    """Fraction of random pairs with a lower cosine, if it is known."""

    @property
    def places(self) -> Decomposition | None:
        """Terms of the cosine by position: the exact decomposition if there is one, else the attributions."""
        parts = self.decomposition
        return self.attributions.parts if parts is None and self.attributions is not None else parts

    def save(self, path: Path) -> None:
        """Write a .npz file that `load` reads."""
        facts = {name: getattr(self, name) for name in _FACTS}
        arrays: dict[str, Any] = {
            f"{name}/{side}": value
            for name, sides in self.maps.items()
            for side, value in zip(SIDES, sides, strict=True)
        }
        if self.decomposition is not None:
            arrays |= {f"{DECOMPOSITION}/{name}": value for name, value in self.decomposition._asdict().items()}
        if self.attributions is not None:
            parts, similarity = self.attributions
            arrays |= {f"{_ATTRIBUTED}/{name}": value for name, value in parts._asdict().items()}
            arrays[f"{_ATTRIBUTED}/similarity"] = similarity
        write_arrays(path, compressed=True, facts=json.dumps(facts), left=self.left, right=self.right, **arrays)

    @classmethod
    def load(cls, path: Path) -> "ExplainedPair":
        """Read the file that `save` wrote."""
        file = read_arrays(path)
        facts = json.loads(str(file["facts"]))
        if "words" in facts:
            # The name in 0.1.0.
            facts["descriptions"] = facts.pop("words")
        maps = {name: (file[f"{name}/left"], file[f"{name}/right"]) for name in facts["descriptions"]}

        def read(prefix: str) -> Decomposition | None:
            parts: list[Any] = [file[key] for name in Decomposition._fields if (key := f"{prefix}/{name}") in file]
            return Decomposition(*parts) if parts else None

        attributed = read(_ATTRIBUTED)
        return cls(
            **facts | {"names": tuple(facts["names"])},
            left=file["left"],
            right=file["right"],
            maps=maps,
            decomposition=read(DECOMPOSITION),
            attributions=None
            if attributed is None
            else PairAttributions(attributed, jnp.asarray(file[f"{_ATTRIBUTED}/similarity"])),
        )

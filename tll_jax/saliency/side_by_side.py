"""Pairs explained by many methods, with whatever network they need."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, UInt8

from tll_jax.data.pairs import SIDES
from tll_jax.devices import local_mesh, platform_of, tracing_for
from tll_jax.errors import InvalidValue
from tll_jax.files import read_arrays, write_arrays
from tll_jax.saliency.decomposition import Decomposition, decompose, places
from tll_jax.saliency.methods import Method
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.pair_attributions import PairAttributions, pair_attributions
from tll_jax.saliency.targets import Target, explain_pair
from tll_jax.typing import Activation, Head

MakeNetwork = Callable[[Activation], nn.Module]
"""The trained network with this for every ReLU of its backbone, and no stage frozen."""
DECOMPOSITION = "decomposition"
_ATTRIBUTED = "attributed places"
CHUNK = 8
"""How many pairs pass the network together."""
MOST_PROGRAMS = 64
"""How many methods keep their compiled programs."""


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
) -> dict[str, Maps]:
    """The maps of all pairs by every method; each method is compiled once.

    Raises:
      ValueError: a map holds values that are no numbers.
    """
    found = {}
    for name, method in tqdm.tqdm(methods.items(), "methods", disable=not sys.stderr.isatty()):
        explain = explainer(method, make_network, target=target, chunk=min(CHUNK, len(left)))
        maps = Maps(*(np.asarray(side) for side in explain(variables, left, right)))
        if not all(np.isfinite(side).all() for side in maps):
            raise InvalidValue(f"{name} gave a map with values that are no numbers: is the network's output finite?")
        found[name] = maps
    return found


def explainer(method: Method, make_network: MakeNetwork, *, target: Target, chunk: int) -> Any:
    """A compiled function of variables, left and right images `[pairs, h, w, 3]` to the maps of both sides.

    Equal methods on equal networks, whatever their variables, get one function, and so one program.
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
    """The cosine of a pair, place by place.

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
    """The cosine of a pair by the places of a stage's maps, whatever the head: see `pair_attributions`.

    Where the network's output has another length than 1, its length for each image is a constant.
    """
    embed = NetworkEmbedding(network=network, variables=variables)
    found = pair_attributions(embed, left, right, stage=stage)
    lengths = [jnp.maximum(jnp.linalg.norm(embed(image)), 1e-12) for image in (left, right)]
    return jax.tree.map(lambda values: values / (lengths[0] * lengths[1]), found)


@dataclass(frozen=True, kw_only=True)
class ExplainedPair:
    """All that is known of why two images count as alike."""

    names: tuple[str, str]
    left: UInt8[np.ndarray, "height width 3"]
    right: UInt8[np.ndarray, "height width 3"]
    cosine: float
    """Of the two embeddings."""
    target: str
    layer: str
    """Whose maps the CAM family looked at."""
    descriptions: dict[str, str]
    """Of each method's maps."""
    maps: dict[str, tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]]
    decomposition: Decomposition | None
    """None where the head is not linear."""
    attributions: PairAttributions | None = None
    """Of the cosine to places of `layer`, where they were asked for."""

    @property
    def places(self) -> Decomposition | None:
        """The cosine place by place: exactly where that is known, else by attributions."""
        parts = self.decomposition
        return self.attributions.parts if parts is None and self.attributions is not None else parts

    def save(self, path: Path) -> None:
        """Writes a .npz that `load` reads."""
        facts = {name: getattr(self, name) for name in ("names", "cosine", "target", "layer", "descriptions")}
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
        """What `save` wrote."""
        file = read_arrays(path)
        facts = json.loads(str(file["facts"]))
        if "words" in facts:
            # As 0.1.0 calls them.
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

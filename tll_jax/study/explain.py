"""Explanations of a trained model's similarities: saliency maps, and the decomposition of the cosine by places."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from tll_jax.data.archive import printable
from tll_jax.data.emoji import names_of
from tll_jax.devices import local_mesh, platform_of, tracing_for
from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import Embedder, head_embedding
from tll_jax.report.numbers import plural
from tll_jax.saliency.decomposition import ALLOWED as LINEAR_HEADS
from tll_jax.saliency.decomposition import Decomposition, contributions, is_linear
from tll_jax.saliency.gradients import gradient
from tll_jax.saliency.guided import guided_relu
from tll_jax.saliency.integrated_gradients import integrated_gradients
from tll_jax.saliency.methods import (
    DECOMPOSITION,
    DECOMPOSITION_DESCRIPTION,
    DEFAULT_METHODS,
    PAIR_ATTRIBUTIONS,
    Method,
    inapplicable,
    make_methods,
)
from tll_jax.saliency.networks import NetworkEmbedding, stage_name
from tll_jax.saliency.pair_attributions import PairAttributions
from tll_jax.saliency.side_by_side import (
    ExplainedPair,
    Maps,
    attribute_pair,
    decompose_pair,
    explain_by,
    explainer,
)
from tll_jax.saliency.targets import Target, cosine, mse
from tll_jax.serialize import Fingerprint
from tll_jax.study.folder import EXPLAINED, Explanation, RunFolder, Trained, can_be_read, is_done, mark_done
from tll_jax.study.keys import Evaluation, explain_key
from tll_jax.study.networks import explainable, make_embedder
from tll_jax.study.settings import Evaluate, Explain, Model
from tll_jax.typing import Backbone, Image, PairImages

logger = logging.getLogger(__name__)

NUM_REFERENCES = 32
EVERY = "all"
NOT_LINEAR = (
    f"needs one of the heads {LINEAR_HEADS}, and those on pooled features a backbone that pools by the mean of its maps"
)
CONTRIBUTIONS_BATCH = 16
MOST_RANDOM = 1000
PIXELS = "integrated-gradients"
# Of functions and numbers alone, so that models with equal networks share one program.
PIXELS_METHOD = Method(integrated_gradients, "each pixel's share in the score's rise from a gray picture")
LEAST_POSITIONS = 4
"""Least positions a side of the map that the CAM family takes by default; smaller maps locate nothing."""


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """Options of an explanation: methods, target, layer and signs."""

    target: Target = cosine
    target_name: str = "cosine"
    methods: Sequence[str] = ()
    """Names from `saliency.methods`, "decomposition", or "all"; if empty, `DEFAULT_METHODS` and "decomposition"."""
    layer: str = ""
    """The stage for the CAM family and pair attributions, such as "stem" or "stage3"; default: see `spatial_stage`."""
    signed: bool = False
    """Whether figures show positive and negative contributions in two colors."""
    random_cosines: np.ndarray | None = None
    """Cosines of random pairs, ascending, among which pages place the cosine; see `random_cosines`."""


ALL = ExplainRequest(methods=(EVERY,))


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """A trained model, ready to explain pairs.

    `references` are images from the same distribution as those explained, for methods such as expected gradients.
    """

    model: Model
    evaluate: Evaluate
    variables: Any
    references: Sequence[Image] = ()

    @classmethod
    def of(cls, model: Model, evaluate: Evaluate, trained: Trained, images: PairImages) -> "Explainer":
        """The explainer of a finished training; the first `NUM_REFERENCES` images are its references."""
        references = [images.left[at] for at in range(min(NUM_REFERENCES, len(images.ids)))]
        return cls(model=model, evaluate=evaluate, variables=trained.variables, references=references)

    def __call__(
        self, lefts: Sequence[Image], rights: Sequence[Image], names: Sequence[tuple[str, str]], request: ExplainRequest
    ) -> list[ExplainedPair]:
        """Explains pairs of uint8 images of any size; each method is compiled once for all pairs.

        Raises:
          ValueError: no such method or layer, a method that the head does not allow, or maps with NaN.
        """
        left, right = (np.stack([self._prepared(image) for image in side]) for side in (lefts, rights))
        floats = [jnp.asarray(side, jnp.float32) / 255 for side in (left, right)]
        stage = self._stage(request.layer)
        methods = self._methods(request, stage)
        counts = plural(len(left), "pair"), plural(len(methods), "method")
        logger.info("explain %s by %s, each of which is compiled first, which may take a minute", *counts)
        found = explain_by(
            methods,
            lambda activation: explainable(self.model, activation=activation),
            self._resident,
            *floats,
            target=request.target,
        )
        return [
            ExplainedPair(
                names=pair_names,
                left=left[at],
                right=right[at],
                cosine=similarity,
                target=request.target_name,
                layer=stage_name(stage),
                descriptions={name: method.description for name, method in methods.items()},
                maps={name: (maps.left[at], maps.right[at]) for name, maps in found.items()},
                decomposition=decomposition,
                attributions=attributions,
                more_alike_than=_fraction_below(similarity, request.random_cosines),
            )
            for at, (pair_names, similarity, decomposition, attributions) in enumerate(
                zip(
                    names,
                    self._cosines(*floats),
                    self._decompositions(request, *floats),
                    self._attributions(PAIR_ATTRIBUTIONS in methods, stage, *floats),
                    strict=True,
                )
            )
        ]

    def recommended(self, lefts: Sequence[Image], rights: Sequence[Image]) -> dict[str, Maps]:
        """Signed maps of the recommended methods for a report: the pixels, and the places if the head is linear.

        The target is the cosine, with which the methods were graded.
        """
        floats = [
            jnp.asarray(np.stack([self._prepared(image) for image in side]), jnp.float32) / 255
            for side in (lefts, rights)
        ]
        explain = explainer(
            PIXELS_METHOD,
            lambda activation: explainable(self.model, activation=activation),
            target=cosine,
            chunk=1,
        )
        found = {PIXELS: Maps(*map(np.asarray, explain(self._resident, *floats)))}
        if self._is_linear():
            parts = self._decompositions(ExplainRequest(methods=(DECOMPOSITION,)), *floats)
            sides = zip(*(one.heatmaps() for one in parts if one is not None), strict=True)
            found[DECOMPOSITION] = Maps(*(np.stack([np.asarray(places) for places in side]) for side in sides))
        return found

    def choices(self) -> dict[str, str]:
        """Descriptions of the methods that this model allows, by name."""
        known = {name: method.description for name, method in self._all_methods(self._stage()).items()}
        return known | ({DECOMPOSITION: DECOMPOSITION_DESCRIPTION} if self._is_linear() else {})

    def inapplicable(self) -> dict[str, str]:
        """The methods that this model cannot be explained by, and why."""
        missing = inapplicable(self._all_methods(self._stage()))
        return missing | ({} if self._is_linear() else {DECOMPOSITION: NOT_LINEAR})

    def embed(self, images: Sequence[Image]) -> np.ndarray:
        """Embeddings of uint8 images of any size, `[images, dim]`."""
        return self._embedder(len(images))(self._resident, images)

    def contributions(self, images: Sequence[Image]) -> np.ndarray:
        """Contributions of stages and places to the embeddings: float32 `[images, stages, height, width, dim]`.

        See `saliency.decomposition.contributions`.
        """
        prepared = np.stack([self._prepared(image) for image in images])
        # Padded to a power of two: few shapes, so few programs are compiled.
        size = min(CONTRIBUTIONS_BATCH, _power_of_two(len(prepared)))
        found = []
        for start in range(0, len(prepared), size):
            block = prepared[start : start + size]
            padded = np.concatenate([block, np.repeat(block[:1], size - len(block), axis=0)])
            found.append(np.asarray(self._contributions(self._resident, padded))[: len(block)])
        return np.concatenate(found)

    @cached_property
    def _resident(self) -> Any:
        """The variables on the device, which no call copies there again."""
        return jax.device_put(self.variables)

    @cached_property
    def _contributions(self) -> Any:
        network, head = explainable(self.model), self.model.head
        if not self._is_linear():
            raise InvalidValue(f"the embedding of the head {head} is no sum over places: it {NOT_LINEAR}")

        @jax.jit
        def contribute(variables: Any, images: jax.Array) -> jax.Array:
            with tracing_for(platform_of(local_mesh())):
                features: Any
                features, _ = network.apply(variables, images.astype(jnp.float32) / 255, train=False)
            params = variables["params"].get("head", {})
            return jax.vmap(lambda one: contributions(head, params, jax.tree.map(lambda maps: maps[None], one)))(
                features
            )

        return contribute

    def _embedder(self, num_images: int) -> Embedder:
        # The smallest batch that fits: two pictures must not take the time of 256.
        evaluate = replace(self.evaluate, batch_size=min(self.evaluate.batch_size, _power_of_two(num_images)))
        return make_embedder(head_embedding(explainable(self.model)), evaluate, local_mesh())

    def _cosines(self, left: jax.Array, right: jax.Array) -> list[float]:
        network = explainable(self.model)

        @jax.jit
        @partial(jax.vmap, in_axes=(None, 0, 0))
        def cosines(variables: Any, left: jax.Array, right: jax.Array) -> jax.Array:
            embed = NetworkEmbedding(network=network, variables=variables)
            return cosine(embed(left), embed(right))

        return cosines(self._resident, left, right).tolist()

    def _decompositions(self, request: ExplainRequest, left: jax.Array, right: jax.Array) -> list[Decomposition | None]:
        is_open = not request.methods or EVERY in request.methods
        if DECOMPOSITION not in request.methods and not (is_open and self._is_linear()):
            return [None] * len(left)
        if not self._is_linear():
            raise InvalidValue(f"{DECOMPOSITION} {NOT_LINEAR}; {PAIR_ATTRIBUTIONS} are for any")
        logger.info("compile the %s", DECOMPOSITION)
        network = explainable(self.model)
        decomposed = jax.jit(lambda *inputs: decompose_pair(self.model.head, network, *inputs))
        return [jax.tree.map(np.asarray, decomposed(self._resident, *pair)) for pair in zip(left, right, strict=True)]

    def _attributions(
        self, wanted: bool, stage: int, left: jax.Array, right: jax.Array
    ) -> list[PairAttributions | None]:
        if not wanted:
            return [None] * len(left)
        logger.info("compile the %s", PAIR_ATTRIBUTIONS)
        network = explainable(self.model)

        @jax.jit
        def attribute(variables: Any, left: jax.Array, right: jax.Array) -> PairAttributions:
            with tracing_for(platform_of(local_mesh())):
                return attribute_pair(network, variables, left, right, stage=stage)

        return [jax.tree.map(np.asarray, attribute(self._resident, *pair)) for pair in zip(left, right, strict=True)]

    def _is_linear(self) -> bool:
        return is_linear(self.model.head, self.model.backbone)

    def _stage(self, layer: str = "") -> int:
        return spatial_stage(self.model, self.variables, size=self.evaluate.geometry.size, layer=layer)

    def _prepared(self, image: Image) -> Image:
        return self.evaluate.geometry(np.random.default_rng(0), image)

    def _all_methods(self, stage: int) -> dict[str, Method]:
        references = [self._prepared(image) for image in self.references[:NUM_REFERENCES]]
        return make_methods(
            size=self.evaluate.geometry.size,
            stage=stage,
            references=jnp.asarray(np.stack(references), jnp.float32) / 255 if references else None,
            **applicability(self.model),
        )

    def _methods(self, request: ExplainRequest, stage: int) -> dict[str, Method]:
        known = self._all_methods(stage)
        unknown = sorted(set(request.methods) - {*known, EVERY, DECOMPOSITION})
        if unknown:
            allowed = ", ".join([*known, DECOMPOSITION])
            missing = {name: reason for name, reason in inapplicable(known).items() if name in unknown}
            if missing:
                raise InvalidValue("; ".join(f"{name} {reason}" for name, reason in missing.items()))
            raise InvalidValue(
                f"there is no method {', '.join(unknown)}; for this model there are {allowed}, or {EVERY}"
            )
        names = known if EVERY in request.methods else request.methods or DEFAULT_METHODS
        return {name: known[name] for name in names if name in known}


def applicability(model: Model) -> dict[str, Any]:
    """Properties of the network that determine the applicable methods, as arguments of `make_methods`."""
    backbone, pooling = model.backbone, getattr(model.backbone, "pooling", None)
    if pooling is not None and not shows_attention(backbone):
        pooling = None
    elif pooling is not None and hasattr(model.head, "stages"):
        # The head reads the patches.
        pooling = "mean"
    return {
        "pooling": pooling,
        # A backbone without ReLUs does not change with the activation in their place.
        "has_relu": backbone.build(dtype=jnp.float32) != backbone.build(dtype=jnp.float32, activation=guided_relu),
    }


def shows_attention(backbone: Backbone) -> bool:
    """Whether a backbone sows its attention weights, as `VisionTransformerModule` does."""
    module, size = backbone.build(dtype=jnp.float32), getattr(backbone, "patch_size", 64)
    sown = jax.eval_shape(
        lambda image: module.init(jax.random.key(0), image, train=False, mutable=True),
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
    )
    return any(path[-1] == "weights" for path in flatten_dict(sown.get("intermediates", {})))


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def spatial_stage(model: Model, variables: Any, *, size: int, layer: str = "") -> int:
    """The index of the stage whose maps the CAM family shows, for images of `size` pixels.

    Args:
      layer: its name; by default the last stage with at least 4 positions a side.

    Raises:
      ValueError: no stage has a map of more than one position, or the named one has none.
    """
    network = explainable(model)
    shapes = jax.eval_shape(
        lambda variables, image: NetworkEmbedding(network=network, variables=variables).features(image).stages,
        variables,
        jax.ShapeDtypeStruct((size, size, 3), jnp.float32),
    )
    # Later stages than these do not affect the embedding.
    used = getattr(model.head, "stages", ()) or [getattr(model.backbone, "last_pooled_stage", len(shapes) - 1)]
    sides = {stage_name(number): min(shape.shape[1:3]) for number, shape in enumerate(shapes[: max(used) + 1])}
    spatial = {name: side for name, side in sides.items() if side > 1}
    if not spatial:
        raise InvalidValue(f"no stage of this network has a map of more than one position at {size} pixels")
    if layer and layer not in spatial:
        raise InvalidValue(f"there is no layer {layer!r} with a map; there are {', '.join(spatial)}")
    large = [name for name, side in spatial.items() if side >= LEAST_POSITIONS] or list(spatial)
    return list(sides).index(layer or large[-1])


def random_cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines of left and right pictures of different pairs, ascending.

    Args:
      left: embeddings of the left pictures, `[pairs, dim]`; of many pairs `MOST_RANDOM`, evenly spaced, are taken.
      right: likewise.
    """
    chosen = np.linspace(0, len(left) - 1, min(MOST_RANDOM, len(left))).round().astype(int)
    left, right = (
        side[chosen] / np.maximum(np.linalg.norm(side[chosen], axis=1, keepdims=True), 1e-12) for side in (left, right)
    )
    return np.sort((left @ right.T)[~np.eye(len(chosen), dtype=bool)])


def random_cosines_of(run: RunFolder) -> np.ndarray | None:
    """`random_cosines` of the test pairs of a run; None where it has no embeddings of its present variables."""
    try:
        embeddings = run.embeddings()
    except (FileNotFoundError, InvalidValue):
        return None
    return random_cosines(embeddings.left, embeddings.right)


def _fraction_below(value: float, ascending: np.ndarray | None) -> float | None:
    return (
        float(np.searchsorted(ascending, value) / len(ascending)) if ascending is not None and len(ascending) else None
    )


def write_recommended(
    open_explainer: Callable[[], Explainer], images: PairImages, run: RunFolder, *, key: Fingerprint
) -> None:
    """Writes maps of the recommended methods for all explained pairs, which the report shows first."""
    ids = [one["id"] for one in run.explained()]
    if not ids or (is_done(run.path, key, "recommended") and can_be_read(run.recommended_file)):
        return
    logger.info("explain %s: %s by the recommended methods", run.path, plural(len(ids), "pair"))
    run.write_recommended(ids, open_explainer().recommended(*_sides(images, ids)))
    mark_done(run.path, key, "recommended")


def _sides(images: PairImages, ids: Sequence[str]) -> list[list[Image]]:
    """The left and the right pictures of pairs."""
    positions = [list(images.ids).index(id) for id in ids]
    return [[side[at] for at in positions] for side in (images.left, images.right)]


def write_pages(
    open_explainer: Callable[[], Explainer],
    images: PairImages,
    settings: Explain,
    run: RunFolder,
    *,
    key: Fingerprint,
    request: ExplainRequest = ALL,
) -> None:
    """Writes a page with all methods for `settings.num_pages` of the explained pairs, best and worst in turn."""
    # Matplotlib, which is imported when a page is written.
    from tll_jax.report.explanation import write_explanation

    if settings.num_pages == 0:
        return
    explained = run.explained()
    kinds = [[one["id"] for one in explained if one["kind"] == kind] for kind in ("best", "worst")]
    in_turn = [id for ids in itertools.zip_longest(*kinds) for id in ids if id is not None]
    chosen = in_turn[: settings.num_pages]
    pages = [run.page_folder(id) for id in chosen]
    if is_done(run.path, key, "pages") and can_be_read(*(page / EXPLAINED for page in pages)):
        return
    explainer = open_explainer()
    logger.info("explain %s: pairs %s by all methods", run.path, printable(", ".join(chosen)))
    lefts, rights = _sides(images, chosen)
    known = names_of(images.ids)
    names = [(f"{known[id]} left", f"{known[id]} right") for id in chosen]
    request = replace(request, random_cosines=random_cosines_of(run))
    for page, found in zip(pages, explainer(lefts, rights, names, request), strict=True):
        write_explanation(found, page)
    mark_done(run.path, key, "pages")


def explain_model(
    model: Model,
    trained: Trained,
    images: PairImages,
    settings: Explain,
    evaluate: Evaluate,
    evaluation: Evaluation,
) -> None:
    """Writes saliency maps (gradient of the MSE) of the test pairs of best and of worst mean reciprocal rank."""
    run, key = evaluation.run, explain_key(evaluation, settings)
    if is_done(run.path, key, "explain") and run.are_explained():
        logger.info("explain %s: up to date, skipped", evaluation.label)
        return
    found = evaluation.read()
    order = np.argsort(-(1 / found).mean(0), kind="stable")
    chosen = [(int(i), "best") for i in order[: settings.num_best]]
    chosen += [(int(i), "worst") for i in order[::-1][: settings.num_worst]]
    explain = explainer(
        Method(gradient, "the saliency of [Munteanu 2022]"),
        lambda activation: explainable(model, activation=activation),
        target=mse,
        chunk=1,
    )
    variables = jax.device_put(trained.variables)
    rng = np.random.default_rng(0)
    run.remove_explanations()
    explained = []
    for position, kind in chosen:
        pair = [evaluate.geometry(rng, side[position]) for side in (images.left, images.right)]
        left, right = (jnp.asarray(image, jnp.float32) / 255 for image in pair)
        heatmap_left, heatmap_right = explain(variables, left[None], right[None])
        explained.append(
            Explanation(
                id=images.ids[position],
                rank=int(found[0, position]),
                kind=kind,
                left=pair[0],
                right=pair[1],
                heatmap_left=np.asarray(heatmap_left[0]),
                heatmap_right=np.asarray(heatmap_right[0]),
            )
        )
        run.write_explanation(explained[-1])
    run.write_explained(explained)
    mark_done(run.path, key, "explain")

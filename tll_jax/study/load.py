"""Trained models and model files for use in Python: embed, rank, explain, export."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from tll_jax import ranking, serialize
from tll_jax.data.geometry import PillowResize
from tll_jax.data.imaging import read_image
from tll_jax.devices import local_mesh
from tll_jax.errors import InvalidValue, MissingFile, missing_package
from tll_jax.evaluation import gallery
from tll_jax.evaluation.embed import BatchEmbedder, Embedding, head_embedding, unit_embedding
from tll_jax.files import check_writable, write_whole
from tll_jax.model_files import ModelFile, is_model_file, model_path, read_model_file
from tll_jax.models.heads import Identity
from tll_jax.models.torch_files import weight_files_in
from tll_jax.models.weight_files import is_weight_file, open_weights
from tll_jax.models.weights import state_dict
from tll_jax.renamed import FORMER_SYSTEMS, PRESENT_SYSTEMS
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.explain import NUM_REFERENCES, Explainer, ExplainRequest
from tll_jax.study.folder import RunFolder, Trained, left_pictures, read_picture, read_settings
from tll_jax.study.model_file import network_settings, open_model_file
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.settings import Evaluate, Model
from tll_jax.systems.ensemble import kind_of, with_seed
from tll_jax.systems.linear import fitted_network, why_no_network
from tll_jax.training import checkpoint
from tll_jax.training.state import initial_shapes
from tll_jax.typing import Image, System

PRETRAINED_BATCH = 32
"""How many images a pretrained network embeds at a time."""
MODEL_FILE = "file"
"""The kind under which results list a model file."""
Picture = Image | str | PathLike[str]
"""uint8 `[height, width, 3]`, RGB, of any size; or the path of an image file."""


@dataclass(frozen=True)
class Explanation:
    """The explanation of a pair: saliency maps by method, and the decomposition of the cosine by places."""

    pair: ExplainedPair

    @property
    def cosine(self) -> float:
        """Cosine similarity of the two embeddings, in [-1, 1]."""
        return self.pair.cosine

    @property
    def maps(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Maps of the first and of the second image by method: float32 `[height, width]`, the network's input size."""
        return dict(self.pair.maps)

    def write(self, folder: str | PathLike[str]) -> Path:
        """Writes a page with figures and arrays into `folder`; returns the page's path."""
        # Matplotlib, which embedding and ranking need not wait for.
        from tll_jax.report.explanation import write_explanation

        return write_explanation(self.pair, Path(folder))


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model from a model file or from the folder of a run, ready to embed, rank and explain."""

    source: Path
    """The model file, or the run folder."""
    explainer: Explainer
    file: ModelFile | None = None
    """The model file's content; None where the model came from a run folder."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the network's settings, weights and geometry: equal where embeddings are equal.

        For a model file, `model_files.read_model_file(path).fingerprint` gives the same without importing JAX.
        """
        if self.file is not None:
            return self.file.fingerprint
        # Trained variables hold what the pretrained weights have become.
        settings = network_settings(replace(self.explainer.model, weights=None), self.explainer.evaluate)
        return serialize.fingerprint([settings, gallery.content_hash(self.explainer.variables)])

    @property
    def image_size(self) -> int:
        """Side of the network's square input, in pixels."""
        return self.explainer.evaluate.geometry.size

    @cached_property
    def embedder(self) -> BatchEmbedder:
        """A compiled function of prepared batches of a fixed size, for loops that decode by themselves:

        `embedder(uint8 [batch_size, image_size, image_size, 3]) -> float32 [batch_size, dim]`, unit vectors. It has
        `batch_size`, `image_size`, `batch_shape`, and `geometry(numpy.random.default_rng(0), image)`, which prepares a
        decoded picture.
        """
        explainer = self.explainer
        return BatchEmbedder(
            unit_embedding(siamese(explainer.model)),
            explainer.variables,
            explainer.evaluate.geometry,
            batch_size=explainer.evaluate.batch_size,
            mesh=local_mesh(),
        )

    def embed(self, images: Sequence[Picture] | np.ndarray) -> Float32[np.ndarray, "images dim"]:
        """Embeddings of images: the head's output.

        Args:
          images: arrays uint8 `[height, width, 3]` of any sizes, or one array `[images, height, width, 3]`; or paths.

        Raises:
          InvalidValue: no images, or an array of another type or shape.
          BrokenImage: a file that is no image that can be read.
        """
        if not len(images):
            raise InvalidValue("images is empty; give at least one image")
        return self.explainer.embed([_image(image) for image in images])

    def rank(
        self, queries: Sequence[Picture] | np.ndarray, gallery: Sequence[Picture] | np.ndarray, k: int = 10
    ) -> tuple[Int32[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        """The `k` nearest gallery images of every query, nearest first, and their scores.

        The score is the negative squared Euclidean distance of the embeddings, by which a study ranks; the cosine of
        embeddings of unit length is `1 + score / 2`.

        Args:
          queries: images as in `embed`, or their embeddings, float `[queries, dim]`.
          gallery: likewise.
          k: at most the number of gallery images are returned.
        """
        if k < 1:
            raise InvalidValue(f"k is {k}; it must be at least 1")
        embedded, candidates = self._embeddings(queries), self._embeddings(gallery)
        k = min(k, len(candidates))
        neighbors = np.asarray(ranking.embedding_top_k(embedded, candidates, k, mesh=local_mesh()))
        return neighbors, -np.sum((embedded[:, None] - candidates[neighbors]) ** 2, axis=-1)

    def explain(self, a: Picture, b: Picture, *, methods: Sequence[str] = (), layer: str = "") -> Explanation:
        """Explains the similarity of two images by saliency maps and the decomposition of their cosine.

        Args:
          methods: names from `methods()`, or "all"; by default `DEFAULT_METHODS` and the decomposition.
          layer: the stage for the CAM family and pair attributions, such as "stem" or "stage3"; by default the last one
            with at least 4 positions a side.
        """
        names = tuple(_name(picture, place) for picture, place in ((a, "left"), (b, "right")))
        request = ExplainRequest(methods=tuple(methods), layer=layer)
        (pair,) = self.explainer([_image(a)], [_image(b)], [(names[0], names[1])], request)
        return Explanation(pair)

    def methods(self) -> dict[str, str]:
        """Descriptions of the saliency methods that this model allows, by name."""
        return self.explainer.choices()

    def contributions(
        self, images: Sequence[Picture] | np.ndarray
    ) -> Float32[np.ndarray, "images stages height width dim"]:
        """The contribution of every stage of the network and every place of each image to its unit-length embedding.

        They sum to the embedding, so the cosine of two images is the sum of the dot products of all pairs of their
        contributions. A fitted model has one entry for each stage that its head reads (four in the default model, from
        textures to parts of objects) and 4 x 4 places; a trained model has one stage, and the positions of its last map
        as places.

        Returns:
          float32 `[images, stages, height, width, dim]`.

        Raises:
          InvalidValue: the head is not linear, so the sum does not exist; no images.
        """
        if not len(images):
            raise InvalidValue("images is empty; give at least one image")
        return self.explainer.contributions([_image(image) for image in images])

    def decompose(self, a: Picture, b: Picture) -> Float32[np.ndarray, "height width height width"]:
        """The cosine of two images as a sum over pairs of places, `[h, w, h, w]`; 4 x 4 places in the default model.

        Entry `[i, j, k, l]` is the joint contribution of row i, column j of the first image and row k, column l of the
        second one.

        Raises:
          InvalidValue: the head is not linear.
        """
        left, right = (one.sum(axis=0) for one in self.contributions([a, b]))
        return np.einsum("hwd,kld->hwkl", left, right)

    def export(self, path: str | PathLike[str]) -> Path:
        """Writes the backbone as .safetensors, with PyTorch's parameter names; returns the path."""
        _export(self.explainer.model, self.explainer.variables, Path(path))
        return Path(path)

    def _embeddings(self, images: Any) -> np.ndarray:
        if isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind == "f":
            return images.astype(np.float32)
        return self.embed(images)


def holds_weights(path: Path) -> bool:
    """Whether a path is a file of pretrained weights, or a folder with one that is not a run's; of any family."""
    if not path.is_dir():
        return is_weight_file(path)
    return any(map(is_weight_file, weight_files_in(path))) and not RunFolder(path).is_run


def load(model: str | PathLike[str], *, trusted: Collection[str] = ()) -> LoadedModel:
    """Loads a model from a model file or a run folder, ready to embed, rank and explain.

    Args:
      model: a model file (.safetensors) that `tll fit` wrote; a file or folder of pretrained weights that
        `from_weights` reads; the folder of a run, `STUDY/models/<name>/seed-<k>` or
        `STUDY/systems/<name>`, which is fitted again; or "default": the model that `make look-alike` has written into
        the cache folder, or else the one that comes with the package.
      trusted: your own packages whose settings classes the model's settings may name.

    Raises:
      MissingFile: there is no such file, the folder is not a run's, or its variables are gone.
      MissingPackage: the packages of `tll_jax[find]` are not installed, and it is a file.
      DamagedFile: the file is truncated.
      InvalidValue: it is no model file of this version, its weights are not those it was fitted on, or its settings
        name a class of a package that is not trusted.
    """
    path = model_path(fspath(model))
    file = read_model_file(path) if is_model_file(path) and not holds_weights(path) else None
    return LoadedModel(source=path, explainer=open_explainer(path, trusted=trusted), file=file)


def load_run(folder: Path, *, trusted: Collection[str] = ()) -> tuple[Model, Evaluate, Trained]:
    """Loads a network from a trained model's folder, from a fitted linear system's folder, from a model file, or
    from a file or folder of pretrained weights.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
      InvalidValue: the system is no network, or the weights do not fit; says why.
    """
    path = model_path(folder)
    if holds_weights(path):
        return _pretrained_run(path)
    if is_model_file(path):
        model, evaluate, variables = open_model_file(read_model_file(path), trusted=trusted)
        return model, evaluate, Trained(folder=path.parent, read=lambda: variables)
    if RunFolder(path).is_of_a_system:
        return _fitted_run(RunFolder(path))
    saved = RunFolder(folder).settings()
    model, evaluate = (serialize.from_json(saved[name], trusted=trusted) for name in ("settings", "evaluate"))
    # Reading needs only the shapes, so nothing is compiled.
    target = initial_shapes(siamese(model), size=evaluate.geometry.size)
    variables = checkpoint.load_variables((folder / saved["variables"]).resolve(), target)
    return model, evaluate, Trained(folder=folder, read=lambda: variables)


def _pretrained_run(path: Path) -> tuple[Model, Evaluate, Trained]:
    """Pretrained weights as a network: the family's own image feature, of pictures that are prepared as it does."""
    opened = open_weights(path)
    model = Model(backbone=opened.backbone, head=Identity())
    evaluate = Evaluate(geometry=PillowResize(**opened.preprocessing._asdict()), batch_size=PRETRAINED_BATCH)
    variables = {name: {"backbone": values} for name, values in opened.variables.items()}
    return model, evaluate, Trained(folder=path, read=lambda: variables)


def _fitted_run(run: RunFolder) -> tuple[Model, Evaluate, Trained]:
    """The network of a system of a study, fitted again; systems that are no networks are refused before fitting."""
    saved = serialize.from_json(read_settings(run.study)["settings"])
    if run.name in saved.systems and (reason := why_no_network(saved.systems[run.name])):
        raise InvalidValue(f"{run.path} is no network that could be embedded with, written or explained: {reason}")
    _, _, system = load_system(run.path)
    network = fitted_network(system)
    model = Model(backbone=network.backbone, weights=network.weights, head=network.head)
    evaluate = Evaluate(geometry=network.geometry, batch_size=network.batch_size)
    return model, evaluate, Trained(folder=run.path, read=network.variables)


def load_system(folder: Path) -> tuple[str, str, System]:
    """Loads the system of a run folder or model file, ready to score: its name, its kind and the system.

    The run folder of a system holds no fitted numbers, so the system is fitted again on the pairs of its study.

    Raises:
      FileNotFoundError: the folder is not a run's, or what it needs is gone.
      ValueError: the study's pairs or their parts have changed.
    """
    path = model_path(folder)
    run = RunFolder(path)
    is_file = is_model_file(path) or holds_weights(path)
    if not is_file and run.is_of_a_system:
        return _load_fitted(run)
    model, evaluate, trained = load_run(path)
    embedder = make_embedder(head_embedding(siamese(model)), evaluate, local_mesh())
    system = Embedding(embedder=embedder, variables=trained.variables)
    return (path.stem, MODEL_FILE, system) if is_file else (run.settings()["model"], "model", system)


def _load_fitted(run: RunFolder) -> tuple[str, str, System]:
    saved = serialize.from_json(read_settings(run.study)["settings"])
    names = (run.name, PRESENT_SYSTEMS.get(run.name), FORMER_SYSTEMS.get(run.name))
    name = next((name for name in names if name in saved.systems), None)
    if name is None:
        raise MissingFile(
            f"{run.path.resolve()} is not of a system in config.systems of its study: it cannot be fitted again"
        )
    system, fold = saved.systems[name], 0
    if run.seed is not None:
        system, fold = with_seed(system, run.seed), saved.seeds.index(run.seed)
    pairs = saved.pairs.open()
    manifest = saved.split.make(pairs, fold=fold)
    if sorted(run.ranks().ids) != manifest.test:
        raise InvalidValue(f"{run.study} tested other pairs than its split draws now: its data or manifest has changed")
    system.fit(*(pairs.images(pairs.indices(ids)) for ids in (manifest.train, manifest.validation)))
    return name, kind_of(system), system


def export(folder: Path, out: Path) -> int:
    """Writes the backbone of a trained model as .safetensors, with PyTorch's parameter names: those of its file of
    pretrained weights, if it started from one.

    The file's metadata hold the settings. A ResNet of width 64 with the large stem and plain shortcuts loads into
    torchvision's, except for the classifier: use `load_state_dict(state, strict=False)`, or set `fc` to `Identity`.
    Running variances are biased, unlike those of PyTorch's training, and the metadata note that; converting them would
    need the batch sizes of all averaged steps.

    Returns:
      The number of tensors.

    Raises:
      ImportError: `tll_jax[weights]` is not installed.
      ValueError: `out` is not named .safetensors.
    """
    model, _, trained = load_run(folder)
    return _export(model, trained.variables, out)


def _export(model: Model, variables: Any, out: Path) -> int:
    if out.suffix != ".safetensors":
        raise InvalidValue(f"--out is {out}; it must end in .safetensors")
    check_writable(out)
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise missing_package("export", "weights") from error
    backbone = {collection: values["backbone"] for collection, values in variables.items() if "backbone" in values}
    state = state_dict(model.backbone, backbone)
    metadata = {"format": "pt", "backbone": json.dumps(serialize.to_json(model.backbone)), "running_var": "biased"}
    write_whole(out, save(state, metadata=metadata))
    return len(state)


def open_explainer(folder: Path, *, trusted: Collection[str] = ()) -> Explainer:
    """Loads a network by `load_run` as an `Explainer`; test images in its study's folder are the references.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    model, evaluate, trained = load_run(folder, trusted=trusted)
    path = model_path(folder)
    is_run = not is_model_file(path) and not holds_weights(path)
    kept = left_pictures(RunFolder(folder).study)[:NUM_REFERENCES] if is_run else []
    references = [read_picture(path) for path in kept]
    return Explainer(model=model, evaluate=evaluate, variables=trained.variables, references=references)


def _image(picture: Picture) -> Image:
    if isinstance(picture, str | PathLike):
        return read_image(Path(fspath(picture)))
    image = np.asarray(picture)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InvalidValue(
            f"an image is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, 3], RGB from 0 to 255"
        )
    return image


def _name(picture: Picture, place: str) -> str:
    return Path(fspath(picture)).name if isinstance(picture, str | PathLike) else place

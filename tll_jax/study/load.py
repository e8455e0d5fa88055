"""A trained model in a program of one's own: embed, rank, explain, export."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from tll_jax import ranking, serialize
from tll_jax.contracts import Image, System
from tll_jax.data.imaging import read_image
from tll_jax.devices import local_mesh
from tll_jax.errors import InvalidValue, MissingFile, missing_package
from tll_jax.evaluation.embed import Embedding, head_embedding
from tll_jax.files import check_writable, write_whole
from tll_jax.models.weights import state_dict
from tll_jax.report.explanation import write_explanation
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.explain import NUM_REFERENCES, Asked, Explainer
from tll_jax.study.folder import RunFolder, Trained, kept_pictures, read_picture, read_settings
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.settings import Arm, Evaluate
from tll_jax.systems.ensemble import kind_of, with_seed
from tll_jax.training import checkpoint
from tll_jax.training.state import initial_shapes

Picture = Image | str | PathLike[str]
"""uint8 `[height, width, 3]`, RGB, of any size; or the path of an image file."""


@dataclass(frozen=True)
class Explanation:
    """Why two images count as alike: maps by method, and the similarity place by place."""

    pair: ExplainedPair

    @property
    def cosine(self) -> float:
        """Of the two embeddings, in [-1, 1]."""
        return self.pair.cosine

    @property
    def maps(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By method: float32 `[height, width]` for the first and for the second image, at the network's input size."""
        return dict(self.pair.maps)

    def write(self, folder: str | PathLike[str]) -> Path:
        """Writes a page with figures and arrays into `folder`; returns the page's path."""
        return write_explanation(self.pair, Path(folder))


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model from the folder of a run."""

    folder: Path
    explainer: Explainer

    def embed(self, images: Sequence[Picture] | np.ndarray) -> Float32[np.ndarray, "images dim"]:
        """Embeddings of images.

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
        asked, candidates = self._embeddings(queries), self._embeddings(gallery)
        k = min(k, len(candidates))
        neighbors = np.asarray(ranking.embedding_top_k(asked, candidates, k, mesh=local_mesh()))
        return neighbors, -np.sum((asked[:, None] - candidates[neighbors]) ** 2, axis=-1)

    def explain(self, a: Picture, b: Picture, *, methods: Sequence[str] = (), layer: str = "") -> Explanation:
        """Why the images count as alike.

        Args:
          methods: names of `methods()`, or "all"; by default a few that say most.
          layer: of the CAM family, "stem" or "stage3"; by default the last one with a map of 4 positions a side.
        """
        names = tuple(_name(picture, place) for picture, place in ((a, "left"), (b, "right")))
        asked = Asked(methods=tuple(methods), layer=layer)
        (pair,) = self.explainer([_image(a)], [_image(b)], [(names[0], names[1])], asked)
        return Explanation(pair)

    def methods(self) -> dict[str, str]:
        """The saliency methods that this model can be explained by, and what each says."""
        return self.explainer.choices()

    def export(self, path: str | PathLike[str]) -> Path:
        """Writes the backbone as .safetensors, under the names that PyTorch users know it by; returns the path."""
        export(self.folder, Path(path))
        return Path(path)

    def _embeddings(self, images: Any) -> np.ndarray:
        if isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind == "f":
            return images.astype(np.float32)
        return self.embed(images)


def load(folder: str | PathLike[str], *, trusted: Collection[str] = ()) -> LoadedModel:
    """A trained model from the folder of a run, `STUDY/arms/<name>/seed-<k>`.

    Args:
      trusted: packages of one's own whose settings classes the run's settings may name.

    Raises:
      MissingFile: the folder is not a run's, or its variables are gone.
      InvalidValue: its settings are not of this version, or name a class of a package that is not trusted.
    """
    path = Path(folder)
    return LoadedModel(folder=path, explainer=open_explainer(path, trusted=trusted))


def load_run(folder: Path, *, trusted: Collection[str] = ()) -> tuple[Arm, Evaluate, Trained]:
    """A trained arm from its run folder.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    saved = RunFolder(folder).settings()
    arm, evaluate = (serialize.from_json(saved[name], trusted=trusted) for name in ("settings", "evaluate"))
    # Shapes are enough to read into: nothing is compiled.
    target = initial_shapes(siamese(arm), size=evaluate.geometry.size)
    variables = checkpoint.load_variables((folder / saved["variables"]).resolve(), target)
    return arm, evaluate, Trained(folder=folder, read=lambda: variables)


def load_system(folder: Path) -> tuple[str, str, System]:
    """What a run folder ranked, ready to score: its name, its kind, and a trained arm or a fitted system.

    A system keeps nothing but its settings, so it is fitted again, on the same pairs of its study.

    Raises:
      FileNotFoundError: the folder is not a run's, or what it needs is gone.
      ValueError: the study's pairs or their parts have changed.
    """
    run = RunFolder(folder)
    if run.is_of_a_system:
        return _load_fitted(run)
    arm, evaluate, trained = load_run(folder)
    embedder = make_embedder(head_embedding(siamese(arm)), evaluate, local_mesh())
    return run.settings()["arm"], "arm", Embedding(embedder=embedder, variables=trained.variables)


def _load_fitted(run: RunFolder) -> tuple[str, str, System]:
    saved = serialize.from_json(read_settings(run.study)["settings"])
    if run.name not in saved.systems:
        raise MissingFile(
            f"{run.path.resolve()} is not of a system in config.systems of its study: it cannot be fitted again"
        )
    system, fold = saved.systems[run.name], 0
    if run.seed is not None:
        system, fold = with_seed(system, run.seed), saved.seeds.index(run.seed)
    pairs = saved.pairs.open()
    manifest = saved.split.make(pairs, fold=fold)
    if sorted(run.ranks().ids) != manifest.test:
        raise InvalidValue(f"{run.study} tested other pairs than its split draws now: its data or manifest has changed")
    system.fit(*(pairs.images(pairs.indices(ids)) for ids in (manifest.train, manifest.validation)))
    return run.name, kind_of(system), system


def export(folder: Path, out: Path) -> int:
    """Writes the backbone of a trained arm as .safetensors, under the names that PyTorch users know it by: those of
    its file of pretrained weights, if it started from one.

    Its settings stand in the file's metadata. A ResNet of width 64 with the large stem and plain shortcuts fits
    torchvision's, whose classifier it lacks: `load_state_dict(state, strict=False)`, or set `fc` to `Identity` first.
    Running variances are biased, where PyTorch's own training keeps unbiased ones; the metadata say so, for a batch's
    size, which would be needed to convert them, is not known of every one that they remember.

    Returns:
      The number of tensors.

    Raises:
      ImportError: `tll_jax[weights]` is not installed.
      ValueError: `out` is not named .safetensors.
    """
    if out.suffix != ".safetensors":
        raise InvalidValue(f"--out is {out}; it must end in .safetensors")
    check_writable(out)
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise missing_package("export", "weights") from error
    arm, _, trained = load_run(folder)
    backbone = {
        collection: values["backbone"] for collection, values in trained.variables.items() if "backbone" in values
    }
    state = state_dict(arm.backbone, backbone)
    metadata = {"format": "pt", "backbone": json.dumps(serialize.to_json(arm.backbone)), "running_var": "biased"}
    write_whole(out, save(state, metadata=metadata))
    return len(state)


def open_explainer(folder: Path, *, trusted: Collection[str] = ()) -> Explainer:
    """A trained arm from its run folder, ready to explain pairs; test images that its study kept are its references.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    arm, evaluate, trained = load_run(folder, trusted=trusted)
    references = [read_picture(path) for path in kept_pictures(RunFolder(folder).study)[:NUM_REFERENCES]]
    return Explainer(arm=arm, evaluate=evaluate, variables=trained.variables, references=references)


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

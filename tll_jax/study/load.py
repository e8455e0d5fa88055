"""A trained model in a program of one's own: embed, rank, explain, export."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from tll_jax import ranking
from tll_jax.contracts import Image
from tll_jax.data.imaging import read_image
from tll_jax.devices import local_mesh
from tll_jax.errors import InvalidValue
from tll_jax.report.explanation import write_explanation
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.explain import Asked, Explainer
from tll_jax.study.other_pairs import export, open_explainer

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

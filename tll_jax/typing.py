"""Types shared by the subpackages: batches as NamedTuples, extension points as protocols."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
import optax

Image = np.ndarray
"""One decoded picture on the host: uint8 `[height, width, 3]`, RGB."""


class LabeledImage(NamedTuple):
    """One example of an image source. `label` is -1 where the source has no classes."""

    image: Image
    label: int


class Pair(NamedTuple):
    """One look-alike pair. Pairs with a (near-)identical image in common have equal `group`."""

    left: Image
    right: Image
    group: int


class ViewBatch(NamedTuple):
    """Two augmented views of the same images. Images `[batch, height, width, 3]`, uint8 from the host and
    float32 in [0, 1] after augmentation; labels int32 `[batch]`, -1 for none."""

    view_a: Any
    view_b: Any
    label: Any


class PairBatch(NamedTuple):
    """A batch of look-alike pairs: row i of `left` matches row i of `right` only; rows of equal `group` are
    never each other's negatives. Images as in `ViewBatch`; group int32 `[batch]`."""

    left: Any
    right: Any
    group: Any


class ImageBatch(NamedTuple):
    """A batch of evaluation images, padded to a fixed size: `mask` is False on padding rows."""

    image: Any
    index: Any
    mask: Any


class Features(NamedTuple):
    """A backbone's output: feature maps of all stages `[batch, h, w, channels]`, and pooled features `[batch, dim]`."""

    stages: tuple[jax.Array, ...]
    pooled: jax.Array


class Skipped(NamedTuple):
    """An image or pair that could not be used, and the reason."""

    name: str
    reason: str


@runtime_checkable
class ImageSource(Protocol):
    """Random access to single images, opened and checked."""

    num_classes: int
    skipped: list[Skipped]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> LabeledImage: ...
    def digest(self) -> str:
        """A hash of the source's names, sizes and labels."""
        ...


class PairImages(NamedTuple):
    """Pairs as two aligned lazy sequences of decoded images: `left[i]` matches `right[i]`.

    `groups`, int `[pairs]`, are equal for pairs with a (near-)identical picture in common.
    """

    ids: Sequence[str]
    left: Sequence[Image]
    right: Sequence[Image]
    groups: np.ndarray


@runtime_checkable
class FaceDetector(Protocol):
    """A function that counts faces; it may cache counts by content hash."""

    def __call__(self, images: Sequence[Image], hashes: Sequence[str]) -> np.ndarray:
        """Numbers of faces in the pictures, int `[images]`."""
        ...


@runtime_checkable
class PairSource(Protocol):
    """Random access to look-alike pairs, opened and checked; broken pairs are already left out."""

    ids: list[str]
    hashes: list[tuple[str, str]]
    """The content hashes of the left and of the right picture."""
    face_overrides: dict[str, list[int | None]]
    """Numbers of faces corrected by a person, `{id: [left, right]}`; None leaves the detector's count."""
    skipped: list[Skipped]

    @property
    def groups(self) -> np.ndarray:
        """Group numbers, int32 `[len]`, equal for pairs with a (near-)identical picture in common."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...
    def indices(self, ids: Iterable[str]) -> np.ndarray:
        """The positions of pairs by their ids."""
        ...

    def images(self, indices: Iterable[int]) -> PairImages:
        """The pairs at `indices`, decoded lazily."""
        ...

    def num_faces(self) -> np.ndarray:
        """Numbers of faces in the left and the right picture, int `[len, 2]`, with overrides applied."""
        ...

    def digest(self) -> str: ...


@runtime_checkable
class PairSettings(Protocol):
    """Settings of a set of pairs; `open` finds and checks it."""

    def open(self) -> PairSource: ...


@runtime_checkable
class SplitSettings(Protocol):
    """Settings of a split; `make` returns a `tll_jax.data.splits.Manifest` with the validation pairs of `fold`."""

    @property
    def faces(self) -> Any:
        """The face rule that keeps pairs out of testing and validation, a name in `tll_jax.data.faces.RULES`."""
        ...

    def make(self, pairs: PairSource, *, fold: int = 0) -> Any: ...


@runtime_checkable
class ImageSettings(Protocol):
    """Settings of a set of images; `open` finds and checks it. `held_out` are ids of (test) pairs whose images must not
    be in it, which concerns sources made from the pairs themselves. Images may be decoded at a reduced size as long as
    their shorter side keeps `shortest_side` pixels."""

    def open(self, *, held_out: frozenset[str], shortest_side: int | None = None) -> ImageSource: ...


Fits = Literal["nothing", "choice", "training"]
"""Degree to which a system's `fit` uses pairs: not at all; for a mean image and a choice among variants; to learn
parameters."""


@runtime_checkable
class System(Protocol):
    """A scorer of image similarity: a descriptor, a trained network, an ensemble. Classes inherit from it and override
    the defaults that do not hold for them."""

    @property
    def seed(self) -> int | None:
        """The seed of `fit`; None if it draws no random numbers."""
        return None

    @property
    def fits(self) -> Fits:
        """How `fit` uses the pairs. A system that uses any must not be ranked on the pairs that it was given."""
        return "training"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Fits parameters on the training pairs and chooses among variants on the validation pairs."""
        ...

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        """Similarities, float32 `[queries, gallery]`, larger for more alike."""
        ...


@runtime_checkable
class Geometry(Protocol):
    """Geometric augmentation on the host, beside decoding: uint8 of any size to uint8 `[size, size, 3]`."""

    size: int

    @property
    def shortest_side(self) -> int:
        """Least length of an image's shorter side, in pixels, for which no crop is enlarged."""
        ...

    def __call__(self, rng: np.random.Generator, image: Image) -> Image: ...


@runtime_checkable
class Augment(Protocol):
    """Photometric augmentation of one float image `[h, w, 3]` in [0, 1]; vmapped on the device."""

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array: ...


Activation = Callable[[jax.Array], jax.Array]
"""An elementwise activation function."""


@runtime_checkable
class Backbone(Protocol):
    """Settings of a feature extractor. The module it builds is called `(images, *, train, frozen_stages=0,
    remat=False)` with float images in [0, 1] and returns `Features`; the first `frozen_stages` stages run
    without gradient and with `train=False` (the stem counts as the first), and with `remat` the backward pass
    recomputes activations within the stages."""

    @property
    def num_stages(self) -> int:
        """The number of stages that can be frozen, the stem included."""
        ...

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        """Builds the module; its fields are hashable, so that equal modules share compiled programs.

        Args:
          activation: in place of every ReLU; equal values, perhaps with another gradient.
        """
        ...

    def torch_name(self, path: tuple[str, ...]) -> str:
        """The name in PyTorch's state dicts of the module at `path`, such as ("stage1", "block1", "norm1")."""
        ...


@runtime_checkable
class Weights(Protocol):
    """Settings of a file of pretrained weights for a backbone: a PyTorch state dict, .pth or .safetensors."""

    def find(self) -> Path:
        """The path of the file.

        Raises:
          ImportError: the package that holds it is not installed.
        """
        ...


@runtime_checkable
class Head(Protocol):
    """Settings of the head on a backbone. The module is called `(features: Features, *, train)`."""

    def build(self, *, dtype: Any) -> nn.Module: ...


@runtime_checkable
class Objective(Protocol):
    """A training objective. It is called under `flax.linen.apply(objective, network)`: it may call the bound
    `network(images, train=True)` several times and draw from the rng stream "sample"."""

    def head(self, *, num_classes: int) -> Head | None:
        """The head that this objective needs, or None for the model's own."""
        ...

    def __call__(self, network: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scalar loss, and scalar metrics by name."""
        ...


@runtime_checkable
class Separable(Protocol):
    """An objective whose loss and metrics are means over independent images, so that gradients can be accumulated."""

    def num_counted(self, batch: Any) -> jax.Array:
        """The number of images in the means."""
        ...


@runtime_checkable
class Reducing(Protocol):
    """An objective with a lower bound on the communication of its loss; without one, planning assumes every row of the
    outputs, forward and back."""

    def num_reduced(self, outputs: Sequence[tuple[int, ...]]) -> int:
        """Lower bound on the values that a data-parallel step sums over the devices for the loss, forward and back.

        Args:
          outputs: the shapes `[rows, dim]` of the head's outputs, one a call of the network.
        """
        ...


@runtime_checkable
class Optimizer(Protocol):
    """Settings of an optimizer; schedules are functions of the step."""

    def build(self, *, num_steps: int, batch_size: int) -> optax.GradientTransformation: ...


Score = Callable[[jax.Array], jax.Array]
"""image `[h, w, 3]` in [0, 1] -> scalar: a class logit or the similarity to another image."""


@runtime_checkable
class SplitScore(Protocol):
    """A score that can be split after a stage of the network, for methods that use its feature maps."""

    def __call__(self, image: jax.Array) -> jax.Array: ...
    def split(self, image: jax.Array, stage: Any) -> tuple[jax.Array, Score]:
        """The feature map of a stage by its number or path, `[h, w, channels]`, and the rest of the score as a function
        of it."""
        ...


Saliency = Callable[[Score, jax.Array], jax.Array]
"""(score, image `[h, w, 3]`) -> heatmap `[h, w]`, unnormalized; the meaning of its sign depends on the method."""

Evaluator = Callable[[Any], Mapping[str, float]]
"""variables -> metrics by name; the training loop calls it between steps."""

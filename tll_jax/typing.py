"""The shapes that rooms hand to each other: batches as NamedTuples, extension points as protocols."""

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
    """One look-alike pair. `group` is equal for pairs that share a (near-)identical image."""

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
    """What a backbone returns: the map of every stage `[batch, h, w, channels]` and the pooled `[batch, dim]`."""

    stages: tuple[jax.Array, ...]
    pooled: jax.Array


class Skipped(NamedTuple):
    """An image or pair that could not be used, and why."""

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
        """A hash of what the source holds: names, sizes and labels."""
        ...


class PairImages(NamedTuple):
    """Pairs as two aligned lazy sequences of decoded images: `left[i]` matches `right[i]`.

    `groups`, int `[pairs]`, are equal for pairs that share a (near-)identical picture.
    """

    ids: Sequence[str]
    left: Sequence[Image]
    right: Sequence[Image]
    groups: np.ndarray


@runtime_checkable
class FaceDetector(Protocol):
    """Counts faces; whoever has seen a picture of the same content hash before need not look again."""

    def __call__(self, images: Sequence[Image], hashes: Sequence[str]) -> np.ndarray:
        """int `[images]`: the number of faces that each picture shows."""
        ...


@runtime_checkable
class PairSource(Protocol):
    """Random access to look-alike pairs, opened and checked; broken pairs are already left out."""

    ids: list[str]
    hashes: list[tuple[str, str]]
    """The content hash of the left and of the right picture."""
    face_overrides: dict[str, list[int | None]]
    """Numbers of faces that a person has set, `{id: [left, right]}`; None where the finding stands."""
    skipped: list[Skipped]

    @property
    def groups(self) -> np.ndarray:
        """int32 `[len]`: equal for pairs that share a (near-)identical picture."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...
    def indices(self, ids: Iterable[str]) -> np.ndarray:
        """The positions of pairs by their ids."""
        ...

    def images(self, indices: Iterable[int]) -> PairImages:
        """The pairs at `indices`, decoded when asked for."""
        ...

    def num_faces(self) -> np.ndarray:
        """int `[len, 2]`: how many faces the left and the right picture of a pair show, overrides included."""
        ...

    def digest(self) -> str: ...


@runtime_checkable
class PairSettings(Protocol):
    """Names a pair set; `open` finds and checks it."""

    def open(self) -> PairSource: ...


@runtime_checkable
class SplitSettings(Protocol):
    """How pairs are parted; `make` returns a `tll_jax.data.splits.Manifest`, its validation pairs those of `fold`."""

    @property
    def faces(self) -> Any:
        """The rule that keeps pairs from being tested or chosen on, a name in `tll_jax.data.faces.RULES`."""
        ...

    def make(self, pairs: PairSource, *, fold: int = 0) -> Any: ...


@runtime_checkable
class ImageSettings(Protocol):
    """Names an image set; `open` finds and checks it. `held_out` are the ids of pairs whose images must not
    be in it (the test pairs), which matters to sources made from the pairs themselves. Images may be decoded
    smaller than they are, as long as their shorter side keeps `shortest_side` pixels."""

    def open(self, *, held_out: frozenset[str], shortest_side: int | None = None) -> ImageSource: ...


Fits = Literal["nothing", "choice", "training"]
"""What a system's `fit` takes from pairs: nothing; a mean of images and a choice among variants; learned parameters."""


@runtime_checkable
class System(Protocol):
    """Anything that scores how alike images are: a descriptor, a trained network, an ensemble. Classes inherit from it
    and override what does not hold for them."""

    @property
    def seed(self) -> int | None:
        """The seed of what is learned; None where `fit` draws no random numbers."""
        return None

    @property
    def fits(self) -> Fits:
        """What `fit` takes from the pairs. What takes anything must not be ranked among the pairs that it was given."""
        return "training"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Learn from the training pairs; choose among variants on the validation pairs."""
        ...

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        """float32 `[queries, gallery]`, larger for more alike."""
        ...


@runtime_checkable
class Geometry(Protocol):
    """Geometric augmentation on the host, where the decoding is: uint8 in, uint8 of one fixed size out."""

    size: int

    @property
    def shortest_side(self) -> int:
        """How many pixels an image's shorter side needs for nothing to be enlarged."""
        ...

    def __call__(self, rng: np.random.Generator, image: Image) -> Image: ...


@runtime_checkable
class Augment(Protocol):
    """Photometric augmentation of one float image `[h, w, 3]` in [0, 1]; vmapped on the device."""

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array: ...


Activation = Callable[[jax.Array], jax.Array]
"""Maps to maps, value by value."""


@runtime_checkable
class Backbone(Protocol):
    """Settings of a feature extractor. The module it builds is called `(images, *, train, frozen_stages=0,
    remat=False)` with float images in [0, 1] and returns `Features`; the first `frozen_stages` stages run
    without gradient and with `train=False` (the stem counts as the first), and with `remat` the backward pass
    computes what lies between the stages again."""

    @property
    def num_stages(self) -> int:
        """How many stages can be frozen, the stem included."""
        ...

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        """`activation` stands for every ReLU: the same values, but perhaps another way back. The module's fields are
        hashable: equal modules share compiled programs."""
        ...

    def torch_name(self, path: tuple[str, ...]) -> str:
        """What PyTorch's state dicts call the module at `path`, ("stage1", "block1", "norm1") for example."""
        ...


@runtime_checkable
class Weights(Protocol):
    """Names a file of pretrained weights for a backbone: a state dict of PyTorch, .pth or .safetensors."""

    def find(self) -> Path:
        """Where the file is.

        Raises:
          ImportError: the package that holds it is not installed.
        """
        ...


@runtime_checkable
class Head(Protocol):
    """Settings of what stands on a backbone. The module is called `(features: Features, *, train)`."""

    def build(self, *, dtype: Any) -> nn.Module: ...


@runtime_checkable
class Objective(Protocol):
    """What a network is trained for. It is called under `flax.linen.apply(objective, network)`: it may call the
    bound `network(images, train=True)` several times and draw from the rng stream "sample"."""

    def head(self, *, num_classes: int) -> Head | None:
        """The head this objective needs, or None to use the model's own."""
        ...

    def __call__(self, network: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scalar loss, and scalar metrics beside it."""
        ...


@runtime_checkable
class Separable(Protocol):
    """An objective whose loss and metrics are means over images, each computed without the others: its
    batches can be cut into parts."""

    def num_counted(self, batch: Any) -> jax.Array:
        """How many images these are means over."""
        ...


@runtime_checkable
class Reducing(Protocol):
    """An objective that says what its loss sums over devices; others take every row of the outputs, twice."""

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
    """A score that can also be entered behind a stage of the network, for methods that look at its maps."""

    def __call__(self, image: jax.Array) -> jax.Array: ...
    def split(self, image: jax.Array, stage: Any) -> tuple[jax.Array, Score]:
        """The map `[h, w, channels]` of a stage, by its number or path, and the rest of the score as a function of
        it."""
        ...


Saliency = Callable[[Score, jax.Array], jax.Array]
"""(score, image `[h, w, 3]`) -> heatmap `[h, w]`, unnormalized; what its sign means is the method's to say."""

Evaluator = Callable[[Any], Mapping[str, float]]
"""variables -> metrics: what the training loop calls between steps."""

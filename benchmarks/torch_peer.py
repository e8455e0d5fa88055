"""The steps, inference and explanations of `steps`, and a search, as PyTorch users write them: channels_last, autocast
for bfloat16, eager or under torch.compile; on a GPU where there is one. For the benchmarks beside it, which import it
in a process of its own."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from steps import (
    EMBEDDING_STAGES,
    EMBEDDING_WIDTH,
    LABEL,
    NOISE,
    NUM_CLASSES,
    NUM_STEPS,
    PROJECTOR,
    SAMPLES,
    Finish,
    Row,
    Run,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tll_jax.data.geometry import RandomResizedCrop
from tll_jax.models import efficientnet_lite
from tll_jax.models.inverted_residual import StageSettings
from tll_jax.models.resnet import BLOCKS, IMAGENET_MEAN, IMAGENET_STD

CANNOT_COMPILE = torch._dynamo.exc.TorchDynamoException
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LUMA = (0.2989, 0.587, 0.114)


def prepare() -> None:
    """All usable cores; on a GPU the fastest convolutions, and TF32 for float32, which is what JAX takes, too."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")


def float32_error() -> float:
    """The largest error of a product of 1024 x 1024 float32 matrices, as a share of the largest value: about 1e-7 in
    float32, 1e-4 in TF32."""
    a, b = (np.random.default_rng(seed).standard_normal((1024, 1024)).astype(np.float32) for seed in (0, 1))
    exact = a.astype(np.float64) @ b
    found = (torch.from_numpy(a).to(DEVICE) @ torch.from_numpy(b).to(DEVICE)).cpu().numpy()
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def make_run(row: Row, batch: Any, *, compiled: bool) -> Run:
    """The measured function of `row` on `batch`, resident on the device."""
    torch.manual_seed(0)
    return {"inference": torch_inference, "smoothgrad": torch_smoothgrad}.get(row.task, torch_step)(
        row, batch, compiled=compiled
    )


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
        anchors = torch.arange(2 * len(left), device=left.device)
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
    """The optimizer of Barlow Twins, with the schedule of ours, by PyTorch's `_foreach` functions.

    On a GPU they take all parameters at once, because it would wait for Python in a loop over them, which the reference
    has; on a CPU one after the other, which is faster there, by 2 to 7 ms a step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, batch: int) -> None:
        kernels, others = [], []
        for parameter in parameters:
            (kernels if parameter.ndim > 1 else others).append(parameter)
        at_once = [(kernels, True), (others, False)]
        one_by_one = [([parameter], is_kernel) for group, is_kernel in at_once for parameter in group]
        self.groups = [
            (group, [torch.zeros_like(parameter) for parameter in group], is_kernel)
            for group, is_kernel in (at_once if DEVICE == "cuda" else one_by_one)
        ]
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
        for parameters, momentum, is_kernel in self.groups:
            gradients = [parameter.grad for parameter in parameters]
            if is_kernel:
                torch._foreach_add_(gradients, parameters, alpha=1e-6)
                weight_norms, gradient_norms = (
                    torch.stack(torch._foreach_norm(one)) for one in (parameters, gradients)
                )
                are_positive = (weight_norms > 0) & (gradient_norms > 0)
                trust = torch.where(are_positive, 0.001 * weight_norms / gradient_norms, 1.0)
                torch._foreach_mul_(gradients, list(trust.unbind()))
            torch._foreach_mul_(momentum, 0.9)
            torch._foreach_add_(momentum, gradients)
            torch._foreach_add_(parameters, momentum, alpha=-share * (0.2 if is_kernel else 0.0048))
            for parameter in parameters:
                parameter.grad = None


def torch_images(images: np.ndarray) -> torch.Tensor:
    """As channels_last, whose memory is that of `[batch, h, w, 3]`."""
    return torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)


def computing_in(row: Row) -> AbstractContextManager[None]:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=row.dtype == "bfloat16")


@torch.no_grad()
def augmented(images: torch.Tensor, *, blur: float, solarize: float) -> torch.Tensor:
    """Jitter, gray, blur and solarization of Barlow Twins, with draws of their own for every image, on the device."""

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, high)

    def gray_of(x: torch.Tensor) -> torch.Tensor:
        return (x * x.new_tensor(LUMA).reshape(1, 3, 1, 1)).sum(1, keepdim=True)

    x = (images * draw(0.6, 1.4)).clamp(0, 1)
    mean = gray_of(x).mean((2, 3), keepdim=True)
    x = (mean + draw(0.6, 1.4) * (x - mean)).clamp(0, 1)
    gray = gray_of(x)
    x = (gray + draw(0.8, 1.2) * (x - gray)).clamp(0, 1)
    x = torch.where(draw(0, 1) < 0.8, hue_moved(x, draw(-0.1, 0.1)), images)
    x = torch.where(draw(0, 1) < 0.2, gray_of(x).expand_as(x), x)
    radius = min(8, x.shape[-1] - 1)
    at = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-((at / draw(0.1, 2.0).reshape(-1, 1)) ** 2) / 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = x.reshape(1, -1, *x.shape[2:])
    flat = F.conv2d(flat, weights[:, None, :, None], padding=(radius, 0), groups=len(weights))
    flat = F.conv2d(flat, weights[:, None, None, :], padding=(0, radius), groups=len(weights))
    x = torch.where(draw(0, 1) < blur, flat.reshape_as(x), x)
    return torch.where((draw(0, 1) < solarize) & (x >= 0.5), 1 - x, x)


def hue_moved(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    per_chroma = 1 / torch.where(chroma > 0, chroma, 1)
    red, green, blue = x.unbind(1)
    first, second, third = (green - blue) * per_chroma, 2 + (blue - red) * per_chroma, 4 + (red - green) * per_chroma
    sextant = torch.where(value == red, first, torch.where(value == green, second, third))
    position = (sextant[:, None] + 6 * turns + x.new_tensor([5.0, 3.0, 1.0]).reshape(1, 3, 1, 1)) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(position, 4 - position).clamp(0, 1)


def torch_step(row: Row, batch: Any, *, compiled: bool) -> Run:
    step = stepper(row, compiled=compiled)
    a, b, label = torch_images(batch[0]), torch_images(batch[1]), torch.from_numpy(batch[2]).long().to(DEVICE)
    return lambda: step(a, b, label)


def stepper(row: Row, *, compiled: bool) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Finish]:
    """One training step of two views and a label each."""
    make = {"barlow": torch_barlow, "classification": torch_classification, "triplet": torch_triplet}[row.task]
    model, loss_of = make(row)
    model.to(DEVICE, memory_format=torch.channels_last)
    optimizer = TorchLars(model.parameters(), batch=row.batch)
    if compiled:
        loss_of = torch.compile(loss_of)

    def step(a: torch.Tensor, b: torch.Tensor, label: torch.Tensor) -> Finish:
        views = [a.float() / 255, b.float() / 255]
        if row.is_augmented:
            views = [augmented(views[0], blur=1.0, solarize=0.0), augmented(views[1], blur=0.1, solarize=0.2)]
        with computing_in(row):
            loss = loss_of(*views, label)
        loss.backward()
        optimizer.step()
        return partial(check_loss, row, loss)

    return step


class TwoCrops(Dataset):
    """Two random crops of every JPEG file of a folder, decoded and cropped with OpenCV, as we do it."""

    def __init__(self, folder: str, size: int) -> None:
        self.paths = sorted(Path(folder).glob("*.jpg"))
        self.crop = RandomResizedCrop(size=size, scale=(0.08, 1.0))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        rng = np.random.default_rng()
        return self.crop(rng, image), self.crop(rng, image), 0


def one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)


def make_loop(row: Row, folder: str, workers: int, *, compiled: bool) -> Run:
    """Steps on what the workers of a DataLoader decode and crop."""
    step, dataset = stepper(row, compiled=compiled), TwoCrops(folder, row.size)
    loader = DataLoader(
        dataset,
        row.batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=DEVICE == "cuda",
        persistent_workers=True,
        worker_init_fn=one_thread,
    )

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    endless = batches()

    def run() -> Finish:
        a, b, label = (part.to(DEVICE, non_blocking=True) for part in next(endless))
        return step(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2), label)

    return run


def check_loss(row: Row, loss: torch.Tensor) -> None:
    assert math.isfinite(loss.item()), row.name


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def torch_inference(row: Row, batch: Any, *, compiled: bool) -> Run:
    backbone = TorchEfficientNetLite0() if row.depth is None else TorchResNet(row.depth, pooled_shortcuts=False)
    backbone.to(DEVICE, memory_format=torch.channels_last).eval()

    def embed(images: torch.Tensor) -> torch.Tensor:
        return backbone(images)[-1].mean((2, 3))

    return embedding_run(embed, batch[0], row, compiled=compiled)


def embedding_run(
    embed: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray, row: Any, *, compiled: bool
) -> Run:
    """Inference on uint8 images that lie on the device; `row` has the dtype."""
    call, resident = torch.compile(embed) if compiled else embed, torch_images(images)

    @torch.inference_mode()
    def run() -> Finish:
        with computing_in(row):
            call(resident.float() / 255)
        return wait

    return run


def torch_smoothgrad(row: Row, batch: Any, *, compiled: bool) -> Run:
    """All noisy images of a batch at once."""
    backbone = TorchResNet(row.depth, pooled_shortcuts=row.depth == 18)
    classifier = nn.Linear(backbone.channels, NUM_CLASSES[row.depth])
    nn.ModuleList([backbone, classifier]).to(DEVICE, memory_format=torch.channels_last).eval()

    def logits(images: torch.Tensor) -> torch.Tensor:
        return classifier(backbone(images)[-1].mean((2, 3)))[:, LABEL]

    call = torch.compile(logits) if compiled else logits
    images = torch_images(batch[0]).float() / 255

    def run() -> Finish:
        many = (images + NOISE * torch.randn(SAMPLES, *images.shape, device=images.device)).flatten(0, 1)
        many = many.contiguous(memory_format=torch.channels_last).requires_grad_()
        with computing_in(row):
            total = call(many).sum()
        (gradients,) = torch.autograd.grad(total, many)
        gradients.abs().amax(1).reshape(SAMPLES, len(images), row.size, row.size).mean(0)
        return wait

    return run


def make_search(num_candidates: int, dim: int, num_queries: int, k: int, block: int, *, compiled: bool) -> Run:
    """The `k` best inner products of random unit vectors, `block` candidates at a time, on the device."""
    assert not compiled
    generator = torch.Generator(DEVICE).manual_seed(0)

    def unit(num: int) -> torch.Tensor:
        return F.normalize(torch.randn(num, dim, device=DEVICE, generator=generator))

    candidates, queries = unit(num_candidates), unit(num_queries)

    @torch.inference_mode()
    def run() -> Finish:
        # Ours ranks by float32 products, so the peer does, too.
        torch.set_float32_matmul_precision("highest")
        values, columns = [], []
        for start in range(0, num_candidates, block):
            best = torch.topk(queries @ candidates[start : start + block].T, k)
            values.append(best.values)
            columns.append(best.indices + start)
        winners = torch.topk(torch.cat(values, 1), k).indices
        return torch.cat(columns, 1).gather(1, winners).cpu

    return run

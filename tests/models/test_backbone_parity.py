"""Pretrained backbones compute what transformers computes, from files as transformers saves them.

benchmarks/backbone_parity.py --tiny --write wrote the files and what transformers' classes compute.
"""

import json
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.backbone_parity import differences, photo
from tll_jax.data.geometry import PillowResize
from tll_jax.models.preprocessing import ImageConfig
from tll_jax.models.torch_files import find_weights, tensor_shapes
from tll_jax.models.weight_files import describe, from_weights, open_weights
from tll_jax.models.weight_names import place_of
from tll_jax.models.weights import shapes_of, state_dict, torch_shapes

FOLDER = Path(__file__).parents[1] / "data" / "backbones"
CASES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@cache
def shapes_of_real_sizes():
    return json.loads((FOLDER / "shapes.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_that_of_transformers(case):
    """At another size than the weights'; operations one by one, for transformers of equal shapes share them."""
    is_convolutional = "convnext" in case
    size = "38x65" if is_convolutional else "24x40"
    gaps = differences(FOLDER / case, jnp.float32, sizes=(size,), compiled=is_convolutional)
    assert len(gaps) >= 4
    assert max(gaps.values()) < 1e-5, gaps


def test_half_precision_stays_within_two_percent():
    gaps = differences(FOLDER / "dinov2-registers", jnp.bfloat16, sizes=("32x32",))
    assert max(gaps.values()) < 2e-2


@pytest.mark.parametrize("case", CASES)
def test_exported_weights_have_the_names_and_values_of_the_imported_file(case):
    path = find_weights(FOLDER / case)
    backbone, variables, _, _ = open_weights(path)
    saved, exported = load_file(path), state_dict(backbone, variables)
    not_needed = {name for name in saved if "pooler" in name or name.endswith("mask_token")}
    assert exported.keys() == saved.keys() - not_needed
    for name, value in exported.items():
        np.testing.assert_array_equal(value, saved[name], err_msg=name)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "processed" in load_file(FOLDER / case / "reference.safetensors")]
)
def test_preprocessing_equals_that_of_the_image_processor(case):
    _, preprocessing, _ = describe(FOLDER / case)
    expected = load_file(FOLDER / case / "reference.safetensors")["processed"]
    found = PillowResize(**preprocessing._asdict())(np.random.default_rng(0), photo())
    np.testing.assert_array_equal(found, expected)


# Without a config of preprocessing: what the released ones say, or the image processors' defaults. Size, shortest
# edge, filter, then mean and deviation of red.
TABLE = {
    "vit": (32, 0, "bilinear", 0.5, 0.5),
    "deit": (32, 36, "bicubic", 0.485, 0.229),
    "dinov2": (224, 256, "bicubic", 0.485, 0.229),
    "dinov2-registers": (224, 256, "bicubic", 0.485, 0.229),
    "dinov3": (224, 0, "bilinear", 0.485, 0.229),
    "clip": (32, 32, "bicubic", 0.48145466, 0.26862954),
    "siglip": (32, 0, "bicubic", 0.5, 0.5),
    "siglip2": (32, 0, "bilinear", 0.5, 0.5),
    "convnext": (224, 256, "bicubic", 0.485, 0.229),
    "dinov3-convnext": (224, 0, "bilinear", 0.485, 0.229),
}


@pytest.mark.parametrize("case", TABLE)
def test_without_a_config_of_preprocessing_the_familys_table_holds_and_is_noted(case, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(FOLDER / case / name)
    backbone, preprocessing, notes = describe(tmp_path)
    assert (*preprocessing[:3], backbone.mean[0], backbone.std[0]) == TABLE[case]
    assert any("no config of preprocessing" in note for note in notes)


SIZES = (
    *("vit-h14", "deit-ti16", "dino-b16", "dinov2-s14", "dinov2-g14-registers", "dinov3-l16", "dinov3-7b16"),
    *("clip-b32", "clip-l14-336", "siglip-so400m14", "siglip2-b16-naflex", "convnext-l", "dinov3-convnext-t"),
)


@pytest.mark.parametrize("case", SIZES)
def test_names_and_shapes_of_real_sizes_are_those_of_transformers(case, monkeypatch):
    stored = shapes_of_real_sizes()[case]
    depth = stored["config"].get("num_hidden_layers", 1)
    depths = stored["config"].get("depths")
    # One block of each kind is enough, for all are equal.
    shapes = {name.replace("*", "0"): tuple(shape) for name, shape in stored["shapes"].items()}
    every = {
        name.replace("*", str(number)): tuple(shape)
        for name, shape in stored["shapes"].items()
        for number in range(depth if depths is None else 1 + ("*" in name))
    }
    monkeypatch.setattr("tll_jax.models.weight_files.find_weights", lambda path: path)
    config = {key: value for key, value in stored["config"].items() if key != "depths"}
    monkeypatch.setattr("tll_jax.models.weight_files.read_configs", lambda file: (config, ImageConfig()))
    monkeypatch.setattr("tll_jax.models.weight_files.tensor_shapes", lambda path: every)
    backbone, _, _ = describe(case)
    if depths is None:
        assert backbone.depth == depth
        backbone.depth = 1
    else:
        backbone.depths = (1, 1, 1, 1)
    expected = {}
    for name, shape in torch_shapes(shapes_of(backbone), backbone.torch_name).items():
        place = place_of(backbone.names, backbone.prefix, name)
        expected[place.name] = place.shape(shape)
    shapes = {name: shape for name, shape in shapes.items() if "pooler" not in name and "mask_token" not in name}
    assert expected == shapes


def test_settings_from_a_weight_file_can_have_another_pooling():
    backbone = from_weights(FOLDER / "clip")
    assert backbone.weights.find() == FOLDER / "clip" / "model.safetensors"
    assert (backbone.pooling, backbone.projection) == ("class", 12)
    assert not backbone.pools_by_mean
    backbone = from_weights(FOLDER / "clip", pooling="mean")
    assert backbone.pools_by_mean
    assert tensor_shapes(backbone.weights.find())["visual_projection.weight"] == (12, 16)

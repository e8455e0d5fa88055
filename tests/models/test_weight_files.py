"""Files of weights in every layout, and the wrong ones that are refused by tensor."""

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from tll_jax.errors import InvalidValue, MissingFile
from tll_jax.models.convnext import ConvNeXt
from tll_jax.models.torch_files import read_state_dict, shards_of
from tll_jax.models.vit import VisionTransformer
from tll_jax.models.weight_files import describe, from_weights, open_weights
from tll_jax.models.weight_names import LAYOUTS, place_of
from tll_jax.models.weights import content_of, load_backbone, shapes_of, state_dict

FOLDER = Path(__file__).parents[1] / "data" / "backbones"
TINY = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 24, "patch_size": 8, "image_size": 32}
# What a layout can hold.
SETTINGS = {
    "transformers-vit": {"distillation_token": True},
    "transformers-dinov2": {"layer_scale": True, "num_registers": 3},
    "transformers-dinov2-gated": {"layer_scale": True, "gated": True},
    "transformers-dinov3": {"layer_scale": True, "positions": "rotary", "biases": ("query", "value")},
    "transformers-clip": {"pre_norm": True, "patch_bias": False, "projection": 6},
    "transformers-siglip": {"class_token": False, "pooling": "attention"},
    "transformers-siglip2": {"class_token": False, "pooling": "attention"},
    "timm": {"layer_scale": True, "num_registers": 2, "class_position": False},
    "timm-gated": {"gated": True, "mlp_width": 32},
    "timm-dinov3": {
        **{"layer_scale": True, "positions": "rotary", "num_registers": 4, "epsilon": 1e-5},
        "biases": ("query", "value"),
    },
    "timm-dinov3-gated": {
        **{"layer_scale": True, "positions": "rotary", "num_registers": 4, "gated": True, "nonlinearity": "silu"},
        "biases": (),
    },
    "facebook-dinov2": {"layer_scale": True, "num_registers": 3},
    "facebook-dinov2-gated": {"layer_scale": True, "gated": True},
    "facebook-dinov3": {"layer_scale": True, "positions": "rotary", "num_registers": 4},
    "facebook-dinov3-gated": {"layer_scale": True, "positions": "rotary", "num_registers": 4, "gated": True},
    "openai": {"pre_norm": True, "patch_bias": False, "projection": 6},
}


def random_variables(backbone, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes_of(backbone))


def backbone_of(layout, prefix=""):
    if "convnext" in layout:
        return ConvNeXt(widths=(4, 6, 8, 10), depths=(1, 1, 2, 1), names=layout, prefix=prefix)
    return VisionTransformer(**(TINY | SETTINGS[layout]), names=layout, prefix=prefix)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_is_recognized_by_its_tensors_and_survives_export_and_import(layout, tmp_path):
    backbone = backbone_of(layout, "image.")
    variables = random_variables(backbone)
    state = state_dict(backbone, variables)
    extra = {"image.mask_token": np.zeros((1, 16), np.float32), "text.logit": np.ones(1, np.float32)}
    if layout.startswith("facebook-dinov3"):
        extra["image.rope_embed.periods"] = np.ones(4, np.float32)
    save_file(state | extra, tmp_path / "model.safetensors")
    found = open_weights(tmp_path)
    assert (found.backbone.names, found.backbone.prefix) == (layout, "image.")
    for name, value in SETTINGS.get(layout, {}).items():
        assert getattr(found.backbone, name) == value
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
    again = state_dict(found.backbone, found.variables)
    assert again.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(again[name], state[name], err_msg=name)


def test_exported_names_are_those_of_other_packages():
    names = {
        ("timm", "blocks.3.attention.key.weight"): "blocks.3.attn.qkv.weight",
        ("timm-dinov3", "blocks.3.attention.key.weight"): "blocks.3.attn.qkv.weight",
        ("timm-dinov3", "blocks.3.attention.value.bias"): "blocks.3.attn.v_bias",
        ("timm-dinov3", "tokens.registers"): "reg_token",
        ("timm-dinov3-gated", "blocks.0.scale2"): "blocks.0.gamma_2",
        ("timm-dinov3-gated", "blocks.0.mlp.gate.weight"): "blocks.0.mlp.fc1_g.weight",
        ("timm-dinov3-gated", "blocks.0.mlp.expand.bias"): "blocks.0.mlp.fc1_x.bias",
        ("facebook-dinov2", "tokens.registers"): "register_tokens",
        ("facebook-dinov2-gated", "blocks.0.mlp.gate.bias"): "blocks.0.mlp.w12.bias",
        ("facebook-dinov3", "tokens.registers"): "storage_tokens",
        ("openai", "blocks.11.attention.value.bias"): "visual.transformer.resblocks.11.attn.in_proj_bias",
        ("openai", "projection.weight"): "visual.proj",
        ("openai", "tokens.positions"): "visual.positional_embedding",
        ("facebook-convnext", "stages.1.reduce.weight"): "downsample_layers.1.1.weight",
        ("timm-convnext", "stages.2.blocks.8.depthwise.bias"): "stages.2.blocks.8.conv_dw.bias",
        ("timm-convnext", "last.norm.weight"): "head.norm.weight",
    }
    for (layout, name), expected in names.items():
        assert place_of(layout, "visual." if layout == "openai" else "", name).name == expected


def test_fused_tensors_are_query_key_and_value_in_this_order():
    backbone = backbone_of("timm")
    variables = random_variables(backbone)
    attention = variables["params"]["stage2"]["attention"]
    fused = state_dict(backbone, variables)["blocks.1.attn.qkv.weight"]
    for number, name in enumerate(("query", "key", "value")):
        for out, inside in np.ndindex(16, 16):
            assert fused[16 * number + out, inside] == attention[name]["kernel"][inside, out]


def test_masked_biases_of_dinov3_are_zero(tmp_path):
    backbone = backbone_of("facebook-dinov3")
    state = state_dict(backbone, random_variables(backbone))
    mask = np.repeat(np.float32([1, 0, 1]), 16)
    for number in range(2):
        name = f"blocks.{number}.attn.qkv.bias"
        state |= {f"{name}_mask": mask, name: np.where(mask, state[name], np.nan)}
    save_file(state, tmp_path / "model.safetensors")
    attention = open_weights(tmp_path).variables["params"]["stage1"]["attention"]
    assert not attention["key"]["bias"].any()
    assert attention["query"]["bias"].all()


def edited(tmp_path, case="dinov2", *, config=None, state=None):
    """A copy of a committed checkpoint with changes."""
    shutil.copytree(FOLDER / case, tmp_path / case)
    folder = tmp_path / case
    if config:
        said = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(said))
    if state:
        tensors = dict(load_file(folder / "model.safetensors"))
        state(tensors)
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("encoder.layer.1.norm2.bias"), r"lack 'encoder\.layer\.1\.norm2\.bias'"),
        (
            lambda state: state.update({"encoder.layer.0.mlp.fc1.weight": np.zeros((9, 16), np.float32)}),
            r"'encoder\.layer\.0\.mlp\.fc1\.weight' is of shape \(9, 16\), but this network needs \(64, 16\)",
        ),
        (
            lambda state: state.update({"encoder.layer.0.extra.weight": np.zeros(3, np.float32)}),
            r"1 tensors that this network has not: encoder\.layer\.0\.extra\.weight",
        ),
        (lambda state: state.update({"layernorm.bias": np.full(16, np.nan, np.float32)}), r"not finite"),
        (
            lambda state: state.update({"embeddings.position_embeddings": np.zeros((1, 8, 16), np.float32)}),
            "8 positions, which are no square",
        ),
        (
            lambda state: state.pop("embeddings.patch_embeddings.projection.weight"),
            "of no family that is known; .* known are ViT, DeiT, DINO, DINOv2",
        ),
        # A number of blocks that no machine could build.
        (
            lambda state: state.update({"encoder.layer.999999.norm1.weight": np.zeros(16, np.float32)}),
            r"lack 'encoder\.layer\.2\.norm1\.weight'",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if name.endswith("norm1.weight")],
            r"lack 'encoder\.layer\.0\.norm1\.weight'",
        ),
        (
            lambda state: state.update({"encoder.layer.0.mlp.fc2.weight": np.zeros(9, np.float32)}),
            r"'encoder\.layer\.0\.mlp\.fc2\.weight' is of shape \(9,\); it must have 2 axes",
        ),
        (
            lambda state: state.update({"embeddings.patch_embeddings.projection.weight": np.zeros((), np.float32)}),
            r"projection\.weight' is of shape \(\); it must have 2 or 4 axes",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_tensor(tmp_path, change, message):
    with pytest.raises(InvalidValue, match=message):
        open_weights(edited(tmp_path, state=change))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "swin"}, "model_type 'swin', which is not known; known are vit, deit, .*dinov3_convnext"),
        ({"model_type": "vit"}, "config.json says 'vit', but the tensors are named as those of 'transformers-dinov2'"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3, but by the tensors it is 2"),
        ({"num_attention_heads": "two"}, "num_attention_heads 'two'; it must be a positive number"),
        ({"num_attention_heads": 3}, "num_heads is 3; it must be a divisor"),
        ({"num_attention_heads": 2.0}, "num_attention_heads 2.0; it must be a positive number"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'; known are gelu"),
        ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\]; known are gelu"),
        ({"model_type": ["vit"]}, "model_type .*, which is not known"),
        ({"layer_norm_eps": [1]}, r"layer_norm_eps \[1\]; it must be a positive number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan; it must be a positive number"),
    ],
)
def test_a_config_that_cannot_be_or_contradicts_the_tensors_is_refused(tmp_path, config, message):
    with pytest.raises(InvalidValue, match=message):
        from_weights(edited(tmp_path, config=config))


@pytest.mark.parametrize(
    "content", [b"[1]", b"{", b"\xff", b"[" * 10**5, b" " * (2**24 + 1)], ids=lambda content: len(content)
)
def test_a_damaged_config_is_refused_by_name(tmp_path, content):
    folder = edited(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InvalidValue, match=r"config\.json"):
        from_weights(folder)


def with_images(tmp_path, case, config, name="preprocessor_config.json"):
    """A copy of a committed checkpoint with another config of preprocessing."""
    folder = edited(tmp_path, case)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / name).write_text(json.dumps(config))
    return folder


# Configs as they are in released files, most of them of older versions of transformers; the expected ones were compared
# with what its image processors on Pillow make of them, bit by bit.
RELEASED = {
    "deit": (
        {"feature_extractor_type": "DeiTFeatureExtractor", "crop_size": 224, "do_center_crop": True, "size": 256},
        (224, 256, "bicubic", True),
    ),
    "convnext": (
        {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "resample": 3, "size": 224},
        (224, 256, "bicubic", False),
    ),
    "dinov3-convnext": (
        {"image_processor_type": "DINOv3ViTImageProcessorFast", "resample": 2, "size": {"height": 224, "width": 224}},
        (224, 0, "bilinear", False),
    ),
    "clip": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 224, "do_center_crop": True, "size": 224},
        (224, 224, "bicubic", False),
    ),
    "vit": (
        {"feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 384, "do_rescale": True},
        (384, 0, "bilinear", False),
    ),
    "dinov3": (
        {"do_center_crop": None, "crop_size": None, "resample": 2, "size": {"height": 224, "width": 224}},
        (224, 0, "bilinear", False),
    ),
}


@pytest.mark.parametrize("case", RELEASED)
def test_configs_of_preprocessing_mean_what_they_mean_to_transformers(tmp_path, case):
    config, expected = RELEASED[case]
    assert describe(with_images(tmp_path, case, config))[1] == expected


def test_from_384_pixels_on_convnext_sees_the_whole_picture(tmp_path):
    config = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": None, "size": {"shortest_edge": 384}}
    assert describe(with_images(tmp_path, "convnext", config))[1] == (384, 0, "bicubic", False)


def test_the_image_processor_of_newer_processors_is_read(tmp_path):
    # As CLIPProcessor.save_pretrained of transformers 5 writes it.
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 40}}
    images |= {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "resample": 2}
    config = {"image_processor": images, "processor_class": "CLIPProcessor"}
    backbone, preprocessing, notes = describe(with_images(tmp_path, "clip", config, "processor_config.json"))
    assert preprocessing == (32, 40, "bilinear", False)
    assert (backbone.mean, backbone.std, notes) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ())


def written(folder, layout, config, prefix="", *, name="model.safetensors", settings=None):
    """A weight file in a layout with the config of its package."""
    backbone = backbone_of(layout, prefix)
    for field, value in (settings or {}).items():
        setattr(backbone, field, value)
    save_file(state_dict(backbone, random_variables(backbone)), folder / name)
    for file, content in config.items():
        (folder / file).write_text(json.dumps(content))


SIGLIP = {"class_token": False, "pooling": "attention", "layer_scale": False, "num_registers": 0}


@pytest.mark.parametrize(
    ("mode", "crop", "expected"),
    [
        ("center", 0.9, (224, 248, "bicubic", False)),
        ("squash", 0.9, (224, 248, "bicubic", True)),
        (None, None, (224, 256, "bicubic", False)),
    ],
)
def test_configs_of_timm_crop_as_timm_does(tmp_path, mode, crop, expected):
    config = {"architecture": "vit_tiny_patch8", "pretrained_cfg": {"input_size": [3, 224, 224], "crop_mode": mode}}
    config["pretrained_cfg"] |= {"crop_pct": crop, "interpolation": "bicubic", "mean": [0.1] * 3, "std": [0.2] * 3}
    written(tmp_path, "timm", {"config.json": config})
    backbone, preprocessing, notes = describe(tmp_path)
    assert (preprocessing, backbone.mean, backbone.std) == (expected, (0.1,) * 3, (0.2,) * 3)
    assert notes == ("no config has the number of heads: it is taken to be 1",)


def test_siglip_of_open_clip_sees_the_whole_picture_with_a_config_and_without(tmp_path):
    images = {"mean": [0.4] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": {"embed_dim": 16}, "preprocess_cfg": images}
    name = "open_clip_model.safetensors"
    for content, expected in (({"open_clip_config.json": config}, "bilinear"), ({}, "bicubic")):
        folder = tmp_path / expected
        folder.mkdir()
        written(folder, "timm", content, "visual.trunk.", name=name, settings=SIGLIP)
        backbone, preprocessing, _ = describe(folder)
        assert preprocessing == (32, 0, expected, False)
        assert backbone.mean == ((0.4,) * 3 if content else (0.5,) * 3)


def test_open_clips_file_beside_that_of_transformers_has_its_own_config(tmp_path):
    # As repositories hold both.
    folder = edited(tmp_path, "clip")
    images = {"mean": [0.4] * 3, "std": [0.5] * 3}
    config = {"open_clip_config.json": {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": images}}
    written(folder, "openai", config, "visual.", name="open_clip_model.safetensors")
    backbone, preprocessing, _ = describe(folder / "open_clip_model.safetensors")
    assert (backbone.names, backbone.nonlinearity, backbone.mean[0]) == ("openai", "quick-gelu", 0.4)
    assert preprocessing == (32, 32, "bicubic", False)
    assert describe(folder)[0].names == "transformers-clip"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resample": 0}, r"resample 0, which is not followed; it must be one of 1 \(lanczos\), 2 \(bilinear\)"),
        ({"resample": [3]}, r"resample \[3\], which is not followed"),
        ({"do_resize": False}, "do_resize false, which is not followed"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078.*; it must be 1 / 255"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean \[0.5, 0.5\]; it must be three numbers"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean .*; it must be three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std .*; it must be above 0"),
        ({"size": {"longest_edge": 224}}, "it must be height and width, or shortest_edge"),
        ({"size": {"height": 224, "width": 448}}, "only squares are read"),
        ({"size": 10**9}, "only squares are read, of sides from 1 to 8192 pixels"),
        (
            {"size": {"shortest_edge": 24}, "crop_size": 32, "do_center_crop": True},
            "crops 32 pixels from pictures of 24",
        ),
        ({"size": 30}, "prepared with 30 pixels, no multiple of the patch of 8"),
    ],
)
def test_configs_of_preprocessing_that_are_not_followed_are_refused(tmp_path, config, message):
    folder = with_images(tmp_path, "vit", config)
    with pytest.raises(InvalidValue, match=rf"model\.safetensors: .*{message}"):
        describe(folder)


def test_a_config_without_normalization_leaves_the_pixels_as_they_are(tmp_path):
    backbone, _, _ = describe(with_images(tmp_path, "vit", {"do_normalize": False, "size": 32}))
    assert (backbone.mean, backbone.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("layout", ["openai", "transformers-siglip", "timm", "transformers-convnext", "timm-convnext"])
def test_with_the_mean_as_pooling_the_tensors_of_other_poolings_are_not_needed(tmp_path, layout):
    written(tmp_path, layout, {}, settings=SIGLIP if layout == "timm" else None)
    backbone = from_weights(tmp_path, pooling="mean")
    loaded = load_backbone(backbone, backbone.weights)
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, shapes_of(backbone))
    assert backbone.pools_by_mean


@pytest.mark.parametrize(
    ("case", "pooling", "message"),
    [
        ("dinov2", "norm", "pooling is 'norm'; it must be"),
        ("dinov2", "attention", "for which .* has no tensors"),
        ("siglip", "class", "pooling is class; it must be mean or attention without a class token"),
    ],
)
def test_poolings_that_a_file_does_not_allow_are_refused(case, pooling, message):
    with pytest.raises(InvalidValue, match=message):
        from_weights(FOLDER / case, pooling=pooling)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_refused(tmp_path, name):
    folder = edited(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidValue, match=name) as refusal:
        from_weights(folder)
    assert str(refusal.value).count(name) == 1


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_half_precision_files_are_read_as_fp32(tmp_path, dtype):
    def halve(state):
        state.update({name: value.astype(dtype) for name, value in state.items()})

    found = open_weights(edited(tmp_path, state=halve)).variables
    full = open_weights(FOLDER / "dinov2").variables
    for half, value in zip(jax.tree.leaves(found), jax.tree.leaves(full), strict=True):
        assert half.dtype == np.float32
        np.testing.assert_array_equal(half, value.astype(dtype).astype(np.float32))


def shard(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    state = load_file(folder / "model.safetensors")
    placed = {name: names[number % 2] for number, name in enumerate(state)}
    for file in names:
        save_file({name: state[name] for name in state if placed[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_shards_are_read_as_one_file_and_all_of_them_count(tmp_path):
    folder = edited(tmp_path)
    shard(folder)
    backbone, variables, _, _ = open_weights(folder)
    jax.tree.map(np.testing.assert_array_equal, variables, open_weights(FOLDER / "dinov2").variables)
    before = content_of(backbone.weights)
    last = folder / "model-00002-of-00002.safetensors"
    save_file({name: value + 1 for name, value in load_file(last).items()}, last)
    assert content_of(backbone.weights) != before
    last.unlink()
    with pytest.raises(MissingFile, match="00002-of-00002"):
        open_weights(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "model.py", 3])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InvalidValue, match="index"):
        shards_of(path)


def test_folders_without_weights_or_with_several_files_are_refused(tmp_path):
    with pytest.raises(MissingFile, match=r"holds no weights; it should hold model\.safetensors"):
        from_weights(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidValue, match=r"holds 2 files of weights, a\.pth, b\.pth: name one"):
        from_weights(tmp_path)


def test_a_text_tower_is_ignored_and_logged(tmp_path, caplog):
    state = {f"vision_model.{name}": value for name, value in load_file(FOLDER / "clip/model.safetensors").items()}
    state = {name.replace("vision_model.vision_model", "vision_model"): value for name, value in state.items()}
    state["visual_projection.weight"] = state.pop("vision_model.visual_projection.weight")
    state |= {"text_model.encoder.weight": np.ones((3, 3), np.float32), "logit_scale": np.ones((), np.float32)}
    folder = edited(tmp_path, "clip")
    save_file(state, folder / "model.safetensors")
    with caplog.at_level(logging.INFO):
        found = open_weights(folder)
    assert "2 tensors are not of the image tower, or not needed: logit_scale, text_model" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, found.variables, open_weights(FOLDER / "clip").variables)


def test_without_its_projection_clip_gives_the_normalized_class_token(tmp_path):
    folder = edited(tmp_path, "clip", state=lambda state: state.pop("visual_projection.weight"))
    backbone, variables, _, _ = open_weights(folder)
    assert backbone.projection == 0
    images = jnp.full((2, 24, 40, 3), 0.25)
    whole = open_weights(FOLDER / "clip")
    projected = whole.backbone.build(dtype=jnp.float32).apply(whole.variables, images, train=False).pooled
    pooled = backbone.build(dtype=jnp.float32).apply(variables, images, train=False).pooled
    kernel = whole.variables["params"]["stage3"]["projection"]["kernel"]
    np.testing.assert_allclose(pooled @ kernel, projected, rtol=1e-4, atol=1e-5)


def test_a_torchscript_file_of_clip_is_read_without_its_code():
    """OpenAI's files are such; `torch.jit.save` wrote this one, of one convolution and attention."""
    state = read_state_dict(Path(__file__).parent / "reference" / "torchscript.pt")
    assert {name: value.shape for name, value in state.items()} == {
        "logit_scale": (),
        "visual.proj": (4, 2),
        "visual.conv1.weight": (4, 3, 2, 2),
        "visual.ln.weight": (4,),
        "visual.ln.bias": (4,),
        "visual.attn.in_proj_weight": (12, 4),
        "visual.attn.in_proj_bias": (12,),
        "visual.attn.out_proj.weight": (4, 4),
        "visual.attn.out_proj.bias": (4,),
    }
    assert state["logit_scale"] == 1
    np.testing.assert_array_equal(state["visual.ln.weight"], np.ones(4))


def test_clip_of_openai_is_recognized_by_tensors_of_its_files(tmp_path):
    backbone = backbone_of("openai", "visual.")
    state = state_dict(backbone, random_variables(backbone))
    save_file(state, tmp_path / "open.safetensors")
    assert describe(tmp_path / "open.safetensors")[0].nonlinearity == "gelu"
    save_file(state | {"input_resolution": np.array(32)}, tmp_path / "open.safetensors")
    found, _, notes = describe(tmp_path / "open.safetensors")
    assert (found.nonlinearity, found.epsilon) == ("quick-gelu", 1e-5)
    assert any("quick_gelu is assumed" in note for note in notes)

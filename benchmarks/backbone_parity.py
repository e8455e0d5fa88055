"""Compares pretrained backbones with transformers, layer by layer, at random weights.

pip install -e '.[bench,weights]'
python benchmarks/backbone_parity.py --write FOLDER         # by transformers, needs no JAX
python benchmarks/backbone_parity.py FOLDER                 # by tll_jax, needs no PyTorch; --json FILE keeps the rows
python benchmarks/backbone_parity.py --tiny --write tests/data/backbones      # what the suite compares with
python benchmarks/backbone_parity.py --shapes tests/data/backbones/shapes.json

`--write` saves checkpoints as transformers saves them, with every parameter drawn anew, and what its classes compute
from two random pictures of the weights' own size and of another one: all hidden states and the pooled output. Real
sizes up to `--parameters` are written as they are; larger ones at their depth with an eighth of their width.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def transformer(width, depth, heads, patch, image, **more):
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": image,
        **more,
    }


def mlp(width, depth, heads, patch, image, factor=4, **more):
    return transformer(width, depth, heads, patch, image, intermediate_size=int(factor * width), **more)


REGISTERS = {"num_register_tokens": 4}
GATED = {"use_gated_mlp": True, "hidden_act": "silu", **REGISTERS}
TINY = (16, 2, 2, 8, 32)
KINDS = {
    "vit": ("ViTModel", HALF),
    "dino": ("ViTModel", IMAGENET),
    "deit": ("DeiTModel", IMAGENET),
    "dinov2": ("Dinov2Model", IMAGENET),
    "dinov2-registers": ("Dinov2WithRegistersModel", IMAGENET),
    "dinov3": ("DINOv3ViTModel", IMAGENET),
    "clip": ("CLIPVisionModelWithProjection", CLIP),
    "siglip": ("SiglipVisionModel", HALF),
    "siglip2": ("Siglip2VisionModel", HALF),
    "convnext": ("ConvNextModel", IMAGENET),
    "dinov3-convnext": ("DINOv3ConvNextModel", IMAGENET),
}
"""By family: transformers' class, and mean and deviation of the channels."""

TINY_CASES = {
    "vit": ("vit", mlp(*TINY)),
    "deit": ("deit", mlp(*TINY)),
    "dinov2": ("dinov2", transformer(*TINY)),
    "dinov2-giant": ("dinov2", transformer(*TINY, use_swiglu_ffn=True)),
    "dinov2-registers": ("dinov2-registers", transformer(*TINY, **REGISTERS)),
    "dinov3": ("dinov3", mlp(*TINY, **REGISTERS)),
    "dinov3-7b": ("dinov3", mlp(*TINY, query_bias=False, value_bias=False, **GATED)),
    "clip": ("clip", mlp(*TINY, projection_dim=12)),
    "siglip": ("siglip", mlp(*TINY)),
    "siglip2": ("siglip2", mlp(*TINY)),
    "convnext": ("convnext", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]}),
    "dinov3-convnext": ("dinov3-convnext", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]}),
}
SMALL, BASE, LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)
REAL_CASES = {
    "vit-b16": ("vit", mlp(*BASE, 16, 224)),
    "vit-l16": ("vit", mlp(*LARGE, 16, 224)),
    "vit-h14": ("vit", mlp(1280, 32, 16, 14, 224)),
    "deit-ti16": ("deit", mlp(192, 12, 3, 16, 224)),
    "deit-s16": ("deit", mlp(*SMALL, 16, 224)),
    "deit-b16": ("deit", mlp(*BASE, 16, 224)),
    "dino-s8": ("dino", mlp(*SMALL, 8, 224)),
    "dino-s16": ("dino", mlp(*SMALL, 16, 224)),
    "dino-b16": ("dino", mlp(*BASE, 16, 224)),
    "dinov2-s14": ("dinov2", transformer(*SMALL, 14, 518)),
    "dinov2-b14": ("dinov2", transformer(*BASE, 14, 518)),
    "dinov2-l14": ("dinov2", transformer(*LARGE, 14, 518)),
    "dinov2-g14": ("dinov2", transformer(1536, 40, 24, 14, 518, use_swiglu_ffn=True)),
    "dinov2-s14-registers": ("dinov2-registers", transformer(*SMALL, 14, 518, **REGISTERS)),
    "dinov2-b14-registers": ("dinov2-registers", transformer(*BASE, 14, 518, **REGISTERS)),
    "dinov2-l14-registers": ("dinov2-registers", transformer(*LARGE, 14, 518, **REGISTERS)),
    "dinov2-g14-registers": ("dinov2-registers", transformer(1536, 40, 24, 14, 518, use_swiglu_ffn=True, **REGISTERS)),
    "dinov3-s16": ("dinov3", mlp(*SMALL, 16, 224, **REGISTERS)),
    "dinov3-s16plus": ("dinov3", mlp(*SMALL, 16, 224, 4, **GATED)),
    "dinov3-b16": ("dinov3", mlp(*BASE, 16, 224, **REGISTERS)),
    "dinov3-l16": ("dinov3", mlp(*LARGE, 16, 224, **REGISTERS)),
    "dinov3-h16plus": ("dinov3", mlp(1280, 32, 20, 16, 224, 4, **GATED)),
    "dinov3-7b16": ("dinov3", mlp(4096, 40, 32, 16, 224, 2, query_bias=False, value_bias=False, **GATED)),
    "clip-b32": ("clip", mlp(*BASE, 32, 224, projection_dim=512)),
    "clip-b16": ("clip", mlp(*BASE, 16, 224, projection_dim=512)),
    "clip-l14": ("clip", mlp(*LARGE, 14, 224, projection_dim=768)),
    "clip-l14-336": ("clip", mlp(*LARGE, 14, 336, projection_dim=768)),
    "clip-h14": ("clip", mlp(1280, 32, 16, 14, 224, hidden_act="gelu", projection_dim=1024)),
    "siglip-b16": ("siglip", mlp(*BASE, 16, 224)),
    "siglip-l16-256": ("siglip", mlp(*LARGE, 16, 256)),
    "siglip-so400m14": ("siglip", transformer(1152, 27, 16, 14, 384, intermediate_size=4304)),
    "siglip2-b16-naflex": ("siglip2", mlp(*BASE, 16, 256)),
    "convnext-t": ("convnext", {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]}),
    "convnext-s": ("convnext", {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3]}),
    "convnext-b": ("convnext", {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]}),
    "convnext-l": ("convnext", {"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]}),
    "dinov3-convnext-t": ("dinov3-convnext", {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]}),
    "dinov3-convnext-b": ("dinov3-convnext", {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]}),
}
OTHER = 24, 40
"""Height and width of the second pictures of tiny transformers: smaller and larger than the 32 of their positions."""


def pictures(height, width):
    """Two random pictures `[2, height, width, 3]` in [0, 1], by the generator that tests use, too."""
    return np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)


def photo():
    """A smooth random picture, uint8 `[45, 70, 3]`, for the image processors."""
    rows, columns, channels = np.ogrid[:45, :70, :3]
    return np.uint8(127 + 120 * np.sin(rows / 3 + channels) * np.cos(columns / 5 - rows * channels / 20))


def narrowed(settings):
    """The same depths with an eighth of the width."""
    small = dict(settings)
    if "hidden_sizes" in small:
        return small | {"hidden_sizes": [width // 8 for width in small["hidden_sizes"]]}
    heads = max(1, small["num_attention_heads"] // 8)
    width = settings["hidden_size"] // small["num_attention_heads"] * heads
    small |= {"hidden_size": width, "num_attention_heads": heads}
    return small | ({"intermediate_size": 4 * width} if "intermediate_size" in small else {})


def make_model(kind, settings):
    """transformers' model; on PyTorch's "meta" device if entered."""
    import transformers

    name = KINDS[kind][0]
    settings = dict(settings)
    if kind == "siglip2":
        settings["num_patches"] = (settings.pop("image_size") // settings["patch_size"]) ** 2
    kind_of_config = getattr(transformers, name).config_class
    return getattr(transformers, name)(kind_of_config(**settings)).eval()


def draw_parameters(model):
    """Draws every parameter anew, so that none is without effect; outputs keep about their scale."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith(("weight", "lambda1", "gamma", "scale_parameter"))
            if is_scale:
                parameter.copy_(0.7 + 0.1 * drawn)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * drawn)
            elif name.endswith(("token", "tokens", "embeddings", "position_embedding.weight", "probe")):
                parameter.copy_(0.3 * drawn)
            else:
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)


def reference_outputs(model, kind, images, patch):
    """All hidden states, the last one as the model returns it, and the pooled output."""
    import torch

    mean, std = KINDS[kind][1]
    pixels = torch.from_numpy((images - np.float32(mean)) / np.float32(std)).permute(0, 3, 1, 2)
    more = {"output_hidden_states": True}
    if kind in ("vit", "dino", "deit", "clip", "siglip"):
        more["interpolate_pos_encoding"] = True
    if kind == "siglip2":
        rows, columns = (side // patch for side in images.shape[1:3])
        patches = pixels.permute(0, 2, 3, 1).reshape(2, rows, patch, columns, patch, 3).permute(0, 1, 3, 2, 4, 5)
        pixels = patches.reshape(2, rows * columns, -1)
        more["pixel_attention_mask"] = torch.ones(2, rows * columns, dtype=torch.long)
        more["spatial_shapes"] = torch.tensor([[rows, columns]] * 2)
    with torch.no_grad():
        found = model(pixel_values=pixels, **more)
    outputs = {f"hidden{number}": value for number, value in enumerate(found.hidden_states)}
    outputs["last"] = found.last_hidden_state
    outputs["pooled"] = found.image_embeds if kind == "clip" else found.pooler_output
    if kind in ("vit", "dino", "deit"):
        # transformers' pooler is an addition of its own to what the family's authors take, the class token.
        outputs["pooled"] = found.last_hidden_state[:, 0]
    return {name: value.numpy() for name, value in outputs.items()}


def process(folder, kind, size):
    """Writes the image processor's config, and what it makes of a picture."""
    import transformers

    mean, std = KINDS[kind][1]
    processors = {
        "vit": ("ViTImageProcessorPil", {"size": {"height": size, "width": size}}),
        "siglip": ("SiglipImageProcessorPil", {"size": {"height": size, "width": size}}),
        "deit": ("DeiTImageProcessorPil", {"size": {"height": 36, "width": 36}, "crop_size": size}),
        "dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 36}, "crop_size": size}),
        "clip": ("CLIPImageProcessorPil", {"size": {"shortest_edge": size}, "crop_size": size}),
        "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": size}}),
    }
    name, settings = processors.get(kind, (None, {}))
    if name is None:
        return {}
    if "crop_size" in settings:
        settings["crop_size"] = {"height": size, "width": size}
    processor = getattr(transformers, name)(**settings, image_mean=mean, image_std=std)
    processor.save_pretrained(folder)
    pixels = processor(photo(), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    # Files of safetensors hold memory as it is, whatever the strides.
    return {"processed": np.ascontiguousarray(np.uint8(np.round((pixels * std + mean) * 255)))}


def write_case(folder, kind, settings, sizes, *, is_tiny):
    """A checkpoint as transformers saves it, and what it computes."""
    from safetensors.numpy import save_file

    model = make_model(kind, settings)
    draw_parameters(model)
    model.save_pretrained(folder)
    outputs = {}
    for height, width in sizes:
        found = reference_outputs(model, kind, pictures(height, width), settings.get("patch_size"))
        outputs |= {f"{height}x{width}.{name}": np.ascontiguousarray(value) for name, value in found.items()}
    outputs |= process(folder, kind, 32) if is_tiny else {}
    if kind in ("dino", "deit") and not (folder / "preprocessor_config.json").exists():
        mean, std = KINDS[kind][1]
        config = {"image_mean": mean, "image_std": std, "size": {"height": 224, "width": 224}, "resample": 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
    save_file(outputs, folder / "reference.safetensors")


def write(folder, cases, *, is_tiny, max_parameters):
    """All cases, each in a folder of its own."""
    import torch
    import transformers

    for name, (kind, settings) in cases.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in make_model(kind, settings).parameters())
        is_narrow = count > max_parameters
        used = narrowed(settings) if is_narrow else settings
        patch = settings.get("patch_size")
        if is_tiny:
            sizes = [(32, 32), OTHER] if patch else [(64, 64), (38, 65)]
        else:
            sizes = [(224, 224) if patch is None else (224 // patch * patch,) * 2]
        write_case(folder / name, kind, used, sizes, is_tiny=is_tiny)
        about = {"kind": kind, "class": KINDS[kind][0], "parameters": count, "narrowed": is_narrow}
        about |= {"transformers": transformers.__version__, "torch": torch.__version__}
        (folder / name / "about.json").write_text(json.dumps(about) + "\n")
        print(f"{name}: {count:,} parameters{', narrowed' if is_narrow else ''}", flush=True)


def write_shapes(path):
    """Names and shapes of all real sizes, with one row for the tensors of all blocks."""
    import re

    import torch

    rows = {}
    for name, (kind, settings) in REAL_CASES.items():
        with torch.device("meta"):
            model = make_model(kind, settings)
        # As in the files, which have other names than the modules.
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, model.state_dict())
        shapes = {}
        for tensor, value in state.items():
            shapes[re.sub(r"(?<=\blayer\.)\d+|(?<=\blayers\.)\d+", "*", tensor)] = list(value.shape)
        config = json.loads(model.config.to_json_string())
        kept = ("num_attention_heads", "layer_norm_eps", "hidden_act", "model_type", "rope_theta", "depths")
        config = {key: config[key] for key in (*kept, "num_hidden_layers") if key in config}
        rows[name] = {"config": config, "shapes": shapes}
    lines = [f"{json.dumps(name)}: {json.dumps(row, separators=(',', ':'))}" for name, row in rows.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def differences(folder, dtype, *, sizes=(), compiled=True):
    """The relative Frobenius norm of the difference from the reference, by what is compared; at some sizes, "24x40",
    or at all."""
    import jax
    from safetensors.numpy import load_file

    from tll_jax.models.weight_files import open_weights

    opened = open_weights(folder)
    module = opened.backbone.build(dtype=dtype)
    reference = load_file(folder / "reference.safetensors")
    found = {}
    apply = partial(module.apply, train=False)
    for size in sizes or sorted({name.split(".")[0] for name in reference if "." in name}):
        height, width = map(int, size.split("x"))
        images = pictures(height, width)
        features = (jax.jit(apply) if compiled else apply)(opened.variables, images)
        stored = {name.partition(".")[2]: value for name, value in reference.items() if name.startswith(f"{size}.")}
        pairs = {"pooled": (features.pooled, stored["pooled"])}
        for number, maps in enumerate(features.stages):
            expected = stored.get(f"hidden{number}")
            if "hidden_sizes" in _config(folder):
                # The first hidden state of DINOv3's class is the picture, not the stem's output.
                is_picture = number == 0 and expected.shape[1] == 3
                expected = None if is_picture else expected.transpose(0, 2, 3, 1)
            elif number == len(features.stages) - 1:
                # The last stage is the normalized one, which CLIP's class does not return.
                expected = None if "visual_projection.weight" in str(_names(folder)) else stored["last"]
            if expected is not None:
                count = maps.shape[1] * maps.shape[2]
                expected = expected if expected.ndim == 4 else expected[:, -count:].reshape(maps.shape)
                pairs[f"stage{number}"] = (maps, expected)
        for name, (ours, theirs) in pairs.items():
            gap = np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs.astype(np.float64))
            found[f"{size} {name}"] = float(gap)
    return found


def _config(folder):
    return json.loads((folder / "config.json").read_text())


def _names(folder):
    from tll_jax.models.torch_files import tensor_shapes

    return list(tensor_shapes(folder / "model.safetensors"))


def compare(folder):
    """A row for every case."""
    import jax.numpy as jnp

    rows = []
    for case in sorted(path for path in folder.iterdir() if (path / "about.json").exists()):
        about = json.loads((case / "about.json").read_text())
        row = {"case": case.name, **about}
        for dtype in (jnp.float32, jnp.bfloat16):
            gaps = differences(case, dtype)
            worst = max(gaps, key=gaps.get)
            row |= {jnp.dtype(dtype).name: gaps[worst], f"{jnp.dtype(dtype).name} at": worst}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="compare what was written there")
    parser.add_argument("--write", type=Path, help="write checkpoints and what transformers computes")
    parser.add_argument("--shapes", type=Path, help="write names and shapes of all real sizes")
    parser.add_argument("--tiny", action="store_true", help="tiny instances of every family")
    parser.add_argument("--parameters", type=float, default=1e8, help="larger models are narrowed")
    parser.add_argument("--json", type=Path, help="where the rows of a comparison go")
    parser.add_argument("--only", default="", help="names of cases, joined by commas; by default all")
    options = parser.parse_args()
    if options.shapes:
        write_shapes(options.shapes)
    if options.write:
        cases = TINY_CASES if options.tiny else REAL_CASES
        cases = {name: case for name, case in cases.items() if not options.only or name in options.only.split(",")}
        write(options.write, cases, is_tiny=options.tiny, max_parameters=options.parameters)
    if options.folder:
        rows = compare(options.folder)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()

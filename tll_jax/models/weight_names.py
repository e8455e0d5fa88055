"""Tensor names of vision transformers and ConvNeXt in weight files of several sources.

The sources are transformers, timm, OpenAI and facebookresearch. A layout is a table from canonical names, those of
`torch_name`, to the file's. Reading, export and messages use the same table.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from tll_jax.errors import InvalidValue

Shapes = Mapping[str, tuple[int, ...]]


class Place(NamedTuple):
    """A tensor in a weight file, or an equal part of one."""

    name: str
    """"*" is the number of a block, ">" that of a stage, and "?" is "weight" or "bias"."""
    part: int = 0
    parts: int = 1
    """Number of equal parts along the first axis, of which this is number `part`."""
    dropped: int = 0
    """Number of leading axes of length 1 that are missing in the file."""
    transposed: bool = False
    patches: bool = False
    """Whether the patch embedding is a matrix with channels last, as in SigLIP 2, rather than a convolution kernel."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the whole tensor in the file, from the canonical shape."""
        if self.patches and len(shape) == 4:
            return shape[0], shape[1] * shape[2] * shape[3]
        shape = shape[self.dropped :]
        shape = (self.parts * shape[0], *shape[1:])
        return shape[::-1] if self.transposed else shape

    def read(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Canonical tensor, from that of the file."""
        if self.patches and len(shape) == 4:
            width, channels, rows, columns = shape
            return value.reshape(width, rows, columns, channels).transpose(0, 3, 1, 2)
        if self.transposed:
            value = value.T
        size = len(value) // self.parts
        return value[self.part * size : (self.part + 1) * size].reshape(shape)

    def write(self, parts: list[np.ndarray]) -> np.ndarray:
        """Tensor of the file, from all its parts."""
        if self.patches and parts[0].ndim == 4:
            return parts[0].transpose(0, 2, 3, 1).reshape(len(parts[0]), -1)
        value = np.concatenate([part.reshape(part.shape[self.dropped :]) for part in parts])
        return value.T if self.transposed else value


def thirds(name: str) -> dict[str, Place]:
    """Query, key and value as three parts of one tensor."""
    return {kind: Place(name, part, 3) for part, kind in enumerate(("query", "key", "value"))}


def under(prefix: str, table: Mapping[str, "str | Place"]) -> dict[str, "str | Place"]:
    return {f"{prefix}.{name}": place for name, place in table.items()}


Layout = Mapping[str, "str | Place"]

TRANSFORMERS: Layout = {
    "patches": "embeddings.patch_embeddings.projection",
    "tokens.class": "embeddings.cls_token",
    "tokens.distillation": "embeddings.distillation_token",
    "tokens.registers": "embeddings.register_tokens",
    "tokens.positions": "embeddings.position_embeddings",
    "blocks.*.norm1": "encoder.layer.*.layernorm_before",
    "blocks.*.attention.query": "encoder.layer.*.attention.attention.query",
    "blocks.*.attention.key": "encoder.layer.*.attention.attention.key",
    "blocks.*.attention.value": "encoder.layer.*.attention.attention.value",
    "blocks.*.attention.output": "encoder.layer.*.attention.output.dense",
    "blocks.*.norm2": "encoder.layer.*.layernorm_after",
    "blocks.*.mlp.expand": "encoder.layer.*.intermediate.dense",
    "blocks.*.mlp.project": "encoder.layer.*.output.dense",
    "norm": "layernorm",
}
TRANSFORMERS_DINOV2: Layout = {
    **TRANSFORMERS,
    "blocks.*.norm1": "encoder.layer.*.norm1",
    "blocks.*.norm2": "encoder.layer.*.norm2",
    "blocks.*.scale1": "encoder.layer.*.layer_scale1.lambda1",
    "blocks.*.scale2": "encoder.layer.*.layer_scale2.lambda1",
    "blocks.*.mlp.expand": "encoder.layer.*.mlp.fc1",
    "blocks.*.mlp.project": "encoder.layer.*.mlp.fc2",
}
TRANSFORMERS_DINOV3: Layout = {
    "patches": "embeddings.patch_embeddings",
    "tokens.class": "embeddings.cls_token",
    "tokens.registers": "embeddings.register_tokens",
    "blocks.*.norm1": "layer.*.norm1",
    "blocks.*.attention.query": "layer.*.attention.q_proj",
    "blocks.*.attention.key": "layer.*.attention.k_proj",
    "blocks.*.attention.value": "layer.*.attention.v_proj",
    "blocks.*.attention.output": "layer.*.attention.o_proj",
    "blocks.*.scale1": "layer.*.layer_scale1.lambda1",
    "blocks.*.scale2": "layer.*.layer_scale2.lambda1",
    "blocks.*.norm2": "layer.*.norm2",
    "blocks.*.mlp.expand": "layer.*.mlp.up_proj",
    "blocks.*.mlp.gate": "layer.*.mlp.gate_proj",
    "blocks.*.mlp.project": "layer.*.mlp.down_proj",
    "norm": "norm",
}
TRANSFORMERS_CLIP: Layout = {
    "patches": "embeddings.patch_embedding",
    "tokens.class": Place("embeddings.class_embedding", dropped=2),
    "tokens.positions": Place("embeddings.position_embedding.weight", dropped=1),
    "pre_norm": "pre_layrnorm",
    "blocks.*.norm1": "encoder.layers.*.layer_norm1",
    "blocks.*.attention.query": "encoder.layers.*.self_attn.q_proj",
    "blocks.*.attention.key": "encoder.layers.*.self_attn.k_proj",
    "blocks.*.attention.value": "encoder.layers.*.self_attn.v_proj",
    "blocks.*.attention.output": "encoder.layers.*.self_attn.out_proj",
    "blocks.*.norm2": "encoder.layers.*.layer_norm2",
    "blocks.*.mlp.expand": "encoder.layers.*.mlp.fc1",
    "blocks.*.mlp.project": "encoder.layers.*.mlp.fc2",
    "norm": "post_layernorm",
    "pooler.probe": "head.probe",
    **under("pooler", thirds("head.attention.in_proj_?")),
    "pooler.output": "head.attention.out_proj",
    "pooler.norm": "head.layernorm",
    "pooler.mlp.expand": "head.mlp.fc1",
    "pooler.mlp.project": "head.mlp.fc2",
}
TIMM: Layout = {
    "patches": "patch_embed.proj",
    "tokens.class": "cls_token",
    "tokens.distillation": "dist_token",
    "tokens.registers": "reg_token",
    "tokens.positions": "pos_embed",
    "pre_norm": "norm_pre",
    "blocks.*.norm1": "blocks.*.norm1",
    **under("blocks.*.attention", thirds("blocks.*.attn.qkv.?")),
    "blocks.*.attention.output": "blocks.*.attn.proj",
    "blocks.*.scale1": "blocks.*.ls1.gamma",
    "blocks.*.scale2": "blocks.*.ls2.gamma",
    "blocks.*.norm2": "blocks.*.norm2",
    "blocks.*.mlp.expand": "blocks.*.mlp.fc1",
    "blocks.*.mlp.project": "blocks.*.mlp.fc2",
    "norm": "norm",
    "pooler.probe": "attn_pool.latent",
    "pooler.query": "attn_pool.q",
    "pooler.key": Place("attn_pool.kv.?", 0, 2),
    "pooler.value": Place("attn_pool.kv.?", 1, 2),
    "pooler.output": "attn_pool.proj",
    "pooler.norm": "attn_pool.norm",
    "pooler.mlp.expand": "attn_pool.mlp.fc1",
    "pooler.mlp.project": "attn_pool.mlp.fc2",
}
TIMM_DINOV3: Layout = {
    **TIMM,
    "blocks.*.attention.query.bias": "blocks.*.attn.q_bias",
    "blocks.*.attention.value.bias": "blocks.*.attn.v_bias",
    "blocks.*.scale1": "blocks.*.gamma_1",
    "blocks.*.scale2": "blocks.*.gamma_2",
}
FACEBOOK_DINOV2: Layout = {**TIMM, "tokens.registers": "register_tokens"}
FACEBOOK_DINOV3: Layout = {**TIMM, "tokens.registers": "storage_tokens"}
OPENAI: Layout = {
    "patches": "conv1",
    "tokens.class": Place("class_embedding", dropped=2),
    "tokens.positions": Place("positional_embedding", dropped=1),
    "pre_norm": "ln_pre",
    "blocks.*.norm1": "transformer.resblocks.*.ln_1",
    **under("blocks.*.attention", thirds("transformer.resblocks.*.attn.in_proj_?")),
    "blocks.*.attention.output": "transformer.resblocks.*.attn.out_proj",
    "blocks.*.norm2": "transformer.resblocks.*.ln_2",
    "blocks.*.mlp.expand": "transformer.resblocks.*.mlp.c_fc",
    "blocks.*.mlp.project": "transformer.resblocks.*.mlp.c_proj",
    "norm": "ln_post",
    "projection.weight": Place("proj", transposed=True),
}


def convnext(stem: tuple[str, str], reduce: tuple[str, str], block: str, last: str) -> dict[str, "str | Place"]:
    """Layout of ConvNeXt; `block` has the names of a block's layers, from depthwise to gamma."""
    depthwise, norm, expand, project, gamma = block.split()
    return {
        "stem.convolution": stem[0],
        "stem.norm": stem[1],
        "stages.>.reduce_norm": reduce[0],
        "stages.>.reduce": reduce[1],
        "stages.>.blocks.*.depthwise": depthwise,
        "stages.>.blocks.*.norm": norm,
        "stages.>.blocks.*.expand": expand,
        "stages.>.blocks.*.project": project,
        "stages.>.blocks.*.gamma": gamma,
        "last.norm": last,
    }


def each_under(prefix: str, names: str) -> str:
    return " ".join(f"{prefix}{name}" for name in names.split())


LAYOUTS: Mapping[str, Layout] = {
    "transformers-vit": TRANSFORMERS,
    "transformers-dinov2": TRANSFORMERS_DINOV2,
    "transformers-dinov2-gated": {
        **TRANSFORMERS_DINOV2,
        "blocks.*.mlp.gate": Place("encoder.layer.*.mlp.weights_in.?", 0, 2),
        "blocks.*.mlp.expand": Place("encoder.layer.*.mlp.weights_in.?", 1, 2),
        "blocks.*.mlp.project": "encoder.layer.*.mlp.weights_out",
    },
    "transformers-dinov3": TRANSFORMERS_DINOV3,
    "transformers-clip": {**TRANSFORMERS_CLIP, "projection": "/visual_projection"},
    "transformers-siglip": TRANSFORMERS_CLIP,
    "transformers-siglip2": {**TRANSFORMERS_CLIP, "patches": Place("embeddings.patch_embedding.?", patches=True)},
    "timm": TIMM,
    "timm-gated": {
        **TIMM,
        "blocks.*.mlp.gate": Place("blocks.*.mlp.fc1.?", 0, 2),
        "blocks.*.mlp.expand": Place("blocks.*.mlp.fc1.?", 1, 2),
    },
    "timm-dinov3": TIMM_DINOV3,
    "timm-dinov3-gated": {
        **TIMM_DINOV3,
        "blocks.*.mlp.gate": "blocks.*.mlp.fc1_g",
        "blocks.*.mlp.expand": "blocks.*.mlp.fc1_x",
    },
    "facebook-dinov2": FACEBOOK_DINOV2,
    "facebook-dinov2-gated": {
        **FACEBOOK_DINOV2,
        "blocks.*.mlp.gate": Place("blocks.*.mlp.w12.?", 0, 2),
        "blocks.*.mlp.expand": Place("blocks.*.mlp.w12.?", 1, 2),
        "blocks.*.mlp.project": "blocks.*.mlp.w3",
    },
    "facebook-dinov3": FACEBOOK_DINOV3,
    "facebook-dinov3-gated": {
        **FACEBOOK_DINOV3,
        "blocks.*.mlp.gate": "blocks.*.mlp.w1",
        "blocks.*.mlp.expand": "blocks.*.mlp.w2",
        "blocks.*.mlp.project": "blocks.*.mlp.w3",
    },
    "openai": OPENAI,
    "transformers-convnext": convnext(
        ("embeddings.patch_embeddings", "embeddings.layernorm"),
        ("encoder.stages.>.downsampling_layer.0", "encoder.stages.>.downsampling_layer.1"),
        each_under("encoder.stages.>.layers.*.", "dwconv layernorm pwconv1 pwconv2 layer_scale_parameter"),
        "layernorm",
    ),
    "transformers-dinov3-convnext": convnext(
        ("stages.0.downsample_layers.0", "stages.0.downsample_layers.1"),
        ("stages.>.downsample_layers.0", "stages.>.downsample_layers.1"),
        each_under("stages.>.layers.*.", "depthwise_conv layer_norm pointwise_conv1 pointwise_conv2 gamma"),
        "layer_norm",
    ),
    "facebook-convnext": convnext(
        ("downsample_layers.0.0", "downsample_layers.0.1"),
        ("downsample_layers.>.0", "downsample_layers.>.1"),
        each_under("stages.>.*.", "dwconv norm pwconv1 pwconv2 gamma"),
        "norm",
    ),
    "timm-convnext": convnext(
        ("stem.0", "stem.1"),
        ("stages.>.downsample.0", "stages.>.downsample.1"),
        each_under("stages.>.blocks.*.", "conv_dw norm mlp.fc1 mlp.fc2 gamma"),
        "head.norm",
    ),
}
FAMILIES = (
    "ViT, DeiT, DINO, DINOv2, DINOv3, CLIP's and SigLIP's image towers and ConvNeXt, "
    "as transformers, timm, open_clip, OpenAI and facebookresearch name their tensors"
)

IGNORED = re.compile(
    r"(.*\.)?(mask_token|position_ids|rope_embed\.periods|bias_mask|local_cls_norm\..*|num_batches_tracked)"
    r"|(pooler\.dense|classifier|cls_classifier|distillation_classifier|heads?|head_dist|norms\.3)\..*"
)
"""Tensors of the image tower that a backbone lacks: mask tokens of pretraining, classifiers, constants."""


def place_of(layout: str, prefix: str, name: str) -> Place | None:
    """Place in a layout of the tensor with a canonical name; None if the layout has none."""
    pattern = re.sub(r"^stages\.\d+", "stages.>", name)
    pattern = re.sub(r"\bblocks\.\d+", "blocks.*", pattern)
    table = LAYOUTS[layout]
    module, _, leaf = name.rpartition(".")
    whole = table.get(pattern)
    found = table.get(pattern.removesuffix(f".{leaf}")) if whole is None else whole
    if found is None:
        return None
    place = found if isinstance(found, Place) else Place(found if whole is not None else f"{found}.?")
    stage, block = (re.search(rf"\b{kind}\.(\d+)", module or name) for kind in ("stages", "blocks"))
    text = place.name.replace("?", leaf)
    text = text.replace(">", stage[1] if stage else "").replace("*", block[1] if block else "")
    # A name with a leading slash is outside the image tower.
    return place._replace(name=text.removeprefix("/") if text.startswith("/") else f"{prefix}{text}")


def recognize(shapes: Shapes) -> tuple[str, str]:
    """Layout of a state dict, and the prefix of its image tower's names.

    Raises:
      InvalidValue: the layout is unknown.
    """
    for signature, choose in SIGNATURES.items():
        names = [name for name in shapes if name == signature or name.endswith(f".{signature}")]
        # If there are a student and a teacher, the teacher is used.
        for name in sorted(names, key=lambda name: "teacher" not in name):
            prefix = name.removesuffix(signature)
            own = {rest.removeprefix(prefix): shape for rest, shape in shapes.items() if rest.startswith(prefix)}
            layout = choose(own)
            if layout is not None:
                return layout, prefix
    raise InvalidValue(
        f"the weights are of no family that is known; their first tensors are {some(shapes)}; known are {FAMILIES}"
    )


def _transformers(shapes: Shapes) -> str | None:
    if "encoder.layer.0.layer_scale1.lambda1" not in shapes:
        return "transformers-vit"
    is_gated = "encoder.layer.0.mlp.weights_in.weight" in shapes
    return "transformers-dinov2-gated" if is_gated else "transformers-dinov2"


def _transformers_later(shapes: Shapes) -> str | None:
    return "transformers-convnext" if "embeddings.layernorm.weight" in shapes else "transformers-dinov3"


def _transformers_pairs(shapes: Shapes) -> str | None:
    if "pre_layrnorm.weight" in shapes:
        return "transformers-clip"
    is_matrix = len(shapes["embeddings.patch_embedding.weight"]) == 2
    return "transformers-siglip2" if is_matrix else "transformers-siglip"


def _timm(shapes: Shapes) -> str | None:
    if "storage_tokens" in shapes or "rope_embed.periods" in shapes:
        return "facebook-dinov3-gated" if "blocks.0.mlp.w1.weight" in shapes else "facebook-dinov3"
    if "blocks.0.mlp.w12.weight" in shapes:
        return "facebook-dinov2-gated"
    is_pretraining = {"mask_token", "blocks.0.ls1.gamma"} <= shapes.keys() and "reg_token" not in shapes
    if "register_tokens" in shapes or is_pretraining:
        return "facebook-dinov2"
    # EVA and BEiT, which are not known, have positions or no registers.
    if {"blocks.0.gamma_1", "reg_token"} <= shapes.keys() and "pos_embed" not in shapes:
        return "timm-dinov3-gated" if "blocks.0.mlp.fc1_g.weight" in shapes else "timm-dinov3"
    fc1, fc2 = (shapes.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if "blocks.0.attn.qkv.weight" not in shapes or fc1 is None or fc2 is None:
        return None
    return "timm-gated" if fc1[0] == 2 * fc2[-1] else "timm"


SIGNATURES: Mapping[str, Any] = {
    "embeddings.patch_embeddings.projection.weight": _transformers,
    "embeddings.patch_embeddings.weight": _transformers_later,
    "embeddings.patch_embedding.weight": _transformers_pairs,
    "patch_embed.proj.weight": _timm,
    "conv1.weight": lambda shapes: "openai" if "transformer.resblocks.0.attn.in_proj_weight" in shapes else None,
    "stages.0.downsample_layers.0.weight": lambda shapes: "transformers-dinov3-convnext",
    "downsample_layers.0.0.weight": lambda shapes: "facebook-convnext",
    "stem.0.weight": lambda shapes: "timm-convnext" if "stages.0.blocks.0.conv_dw.weight" in shapes else None,
}


def renamed(
    state: Mapping[str, np.ndarray], needed: Shapes, *, layout: str, prefix: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors by their canonical names, and the file's names of unused tensors.

    Raises:
      InvalidValue: a tensor is missing or of another shape, or the image tower has one that the network lacks.
    """
    found, used = {}, set()
    for name, shape in needed.items():
        place = place_of(layout, prefix, name)
        if place is None:
            raise InvalidValue(f"weights of the kind {layout!r} have no {name!r}, which this network needs")
        if place.name not in state:
            raise InvalidValue(f"the weights lack {place.name!r}; they hold {len(state)} tensors, {some(state)}")
        value, expected = state[place.name], place.shape(shape)
        if value.shape != expected:
            raise InvalidValue(
                f"the weights' {place.name!r} is of shape {value.shape}, but this network needs {expected}"
            )
        mask = state.get(f"{place.name}_mask")
        if mask is not None:
            # DINOv3 saves biases of keys that its mask sets to zero; in some files they are NaN.
            value = np.where(mask == 0, 0, value)
            used.add(f"{place.name}_mask")
        found[name] = place.read(value, shape)
        used.add(place.name)
    left_over = [name for name in state if name not in used]
    of_pooling = pooling_tensors(layout, prefix)
    own = [
        name
        for name in left_over
        if name.startswith(prefix) and name not in of_pooling and not is_ignored(name.removeprefix(prefix))
    ]
    if prefix == "":
        own = [name for name in own if not TEXT.match(name)]
    if own:
        raise InvalidValue(f"the weights hold {len(own)} tensors that this network has not: {some(own)}")
    return found, left_over


def pooling_tensors(layout: str, prefix: str) -> set[str]:
    """Names in the file of the tensors that pool or project the last tokens; other poolings leave them unused."""
    modules = [name for name in LAYOUTS[layout] if name.startswith(("pooler.", "projection", "last."))]
    names = [name for module in modules for name in (module, f"{module}.weight", f"{module}.bias")]
    return {place.name for name in names if (place := place_of(layout, prefix, name)) is not None}


TEXT = re.compile(r"(text_model|text|text_projection|text_embed\w*|logit_scale|logit_bias|visual_projection)(\.|$)")
"""Tensors outside an image tower whose names have no prefix."""


def is_ignored(name: str) -> bool:
    return IGNORED.fullmatch(name) is not None


def exported(state: Mapping[str, np.ndarray], *, layout: str, prefix: str) -> dict[str, np.ndarray]:
    """Tensors by their names in a layout; the inverse of `renamed`."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    places = {}
    for name, value in state.items():
        place = place_of(layout, prefix, name)
        if place is None:
            raise InvalidValue(f"weights of the kind {layout!r} have no name for {name!r}; set the backbone's names")
        parts.setdefault(place.name, {})[place.part] = value
        places[place.name] = place
    return {name: np.ascontiguousarray(places[name].write(_all(parts[name], places[name].parts))) for name in parts}


def _all(parts: Mapping[int, np.ndarray], count: int) -> list[np.ndarray]:
    """All parts of a tensor, with zeros for parts that the network lacks, such as the key biases of DINOv3."""
    like = next(iter(parts.values()))
    return [parts.get(number, np.zeros_like(like)) for number in range(count)]


def some(names: Collection[str]) -> str:
    first = ", ".join(list(names)[:3])
    return f"{first} and others" if len(names) > 3 else first


def block_count(shapes: Shapes, pattern: str) -> int:
    """Number of blocks: that of the numbers at "*" in the names that match `pattern`.

    Raises:
      InvalidValue: the blocks are not numbered from 0 on.
    """
    expression = re.compile(re.escape(pattern).replace(r"\*", r"(\d{1,6})"))
    numbers = {int(match[1]) for name in shapes if (match := expression.match(name)) is not None}
    missing = sorted(set(range(len(numbers))) - numbers)
    if missing:
        raise InvalidValue(f"the weights lack {pattern.replace('*', str(missing[0]))!r}")
    return len(numbers)

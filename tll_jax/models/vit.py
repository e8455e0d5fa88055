"""Vision transformers: one class of settings for ViT, DeiT, DINO, DINOv2, DINOv3, CLIP, SigLIP and SigLIP 2."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tll_jax.devices import has_fused_attention, traced_platform
from tll_jax.errors import InvalidValue
from tll_jax.models.described import DescribedByFile
from tll_jax.models.stages import StagedModule, Tokens, mean_over_positions
from tll_jax.serialize import NO_IDENTITY
from tll_jax.typing import Activation

Interpolation = Literal["bicubic", "bicubic-antialiased", "bilinear-antialiased"]
Nonlinearity = Literal["gelu", "gelu-tanh", "quick-gelu", "silu"]


def gelu(x: Array) -> Array:
    """Exact GELU by the error function; `jax.nn.gelu` takes its complement, which costs twice as much on CPUs."""
    return x * (0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))))


NONLINEARITIES: Mapping[str, Callable[[Any], Any]] = {
    "gelu": gelu,
    "gelu-tanh": partial(nn.gelu, approximate=True),
    "quick-gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "silu": nn.silu,
}
INITIAL = nn.initializers.truncated_normal(0.02)


@dataclass(kw_only=True, unsafe_hash=True)
class VisionTransformer(DescribedByFile):
    """Settings of a vision transformer; the defaults are ViT-S/16.

    `weight_files.from_weights` derives them from a weight file. The stages are the stem (patch embedding and
    positions), one stage for each block, and the final normalization. Their maps `[batch, height / patch_size, width /
    patch_size, width]` are the patch tokens, without class token and registers. Height and width must be multiples of
    `patch_size`. There is no dropout and no stochastic depth.

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929); DeiT, Touvron et al. 2021 (2012.12877); DINO, Caron et al. 2021
    (2104.14294); DINOv2, Oquab et al. 2023 (2304.07193), with registers Darcet et al. 2024 (2309.16588); DINOv3,
    Simeoni et al. 2025 (2508.10104); CLIP, Radford et al. 2021 (2103.00020); SigLIP, Zhai et al. 2023 (2303.15343) and
    Tschannen et al. 2025 (2502.14786).
    """

    width: int = 384
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 6
    mlp_width: int = 1536
    """Hidden dimension of the MLPs."""
    patch_size: int = 16
    image_size: int = 224
    """Height and width in pixels of the learned positions; for other image sizes they are interpolated."""
    positions: Literal["learned", "rotary"] = "learned"
    """Learned position embeddings, or rotary ones (RoPE) of patch queries and keys, as in DINOv3."""
    interpolation: Interpolation = "bicubic"
    rotary_base: float = 100.0
    class_token: bool = True
    distillation_token: bool = False
    num_registers: int = 0
    class_position: bool = True
    """Whether the class and distillation tokens have learned positions."""
    pre_norm: bool = False
    """Whether tokens are normalized before the first block, as in CLIP."""
    patch_bias: bool = True
    biases: tuple[str, ...] = ("query", "key", "value")
    """Projections of the attention with a bias."""
    layer_scale: bool = False
    nonlinearity: Nonlinearity = "gelu"
    gated: bool = False
    """Whether MLPs multiply the activation by a second projection (SwiGLU if the nonlinearity is "silu")."""
    pooling: Literal["class", "mean", "attention"] = "class"
    """Pooled feature: the class token, the mean of the patch tokens, or attention pooling as in SigLIP. Spatial
    decomposition is exact for "mean" only."""
    projection: int = 0
    """Output dimension of a linear projection of the pooled feature, as in CLIP; 0 for none."""
    names: str = field(default="timm", metadata=NO_IDENTITY)

    @property
    def num_stages(self) -> int:
        return self.depth + 2

    @property
    def pools_by_mean(self) -> bool:
        """Whether the pooled feature is the mean of the last stage's map."""
        return self.pooling == "mean" and not self.projection

    @property
    def last_pooled_stage(self) -> int:
        """The last stage on whose maps the pooled feature depends; a class token reads those before the last block."""
        return self.depth - 1 if self.pooling == "class" else self.depth + 1

    def check(self) -> None:
        for name in ("width", "depth", "num_heads", "mlp_width", "patch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("num_registers", "projection"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.width % self.num_heads == 0, "num_heads", self.num_heads, f"a divisor of width, {self.width}")
        _require(self.image_size >= self.patch_size, "image_size", self.image_size, f"at least {self.patch_size}")
        if self.positions == "rotary":
            head = self.width // self.num_heads
            _require(head % 4 == 0, "num_heads", self.num_heads, "such that width / num_heads is a multiple of 4")
        _require(set(self.biases) <= {"query", "key", "value"}, "biases", self.biases, "of query, key and value")
        allowed = "mean or attention without a class token"
        _require(self.class_token or self.pooling != "class", "pooling", self.pooling, allowed)

    def check_size(self, size: int) -> None:
        """Raise InvalidValue unless square images of `size` pixels a side can be embedded."""
        require_divisible((size, size), self.patch_size)

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        """Build the module; `activation` is ignored, because there is no ReLU."""
        del activation
        return VisionTransformerModule(settings=self.without_file(), dtype=dtype)

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Canonical name of a tensor's module, to which all layouts are mapped, such as "blocks.0.attention.query"."""
        return torch_name(path, self.depth)


def torch_name(path: tuple[str, ...], depth: int) -> str:
    place, *modules = path
    if place == "stem":
        return ".".join(modules) or "tokens"
    number = int(place.removeprefix("stage"))
    names = modules if number > depth else ["blocks", str(number - 1), *modules]
    return ".".join(names) or "last"


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise InvalidValue(f"{name} is {value}; it must be {allowed}")


class VisionTransformerModule(StagedModule):
    """The Flax module of `VisionTransformer`.

    If the collection "intermediates" is mutable, every block sows its attention weights there, as
        "stage<k>/attention/weights" `[batch, heads, queries, keys]`, with the patch tokens last; the collection
    "perturbations", where it is given, is added to them.
    """

    settings: VisionTransformer
    dtype: Any

    def parts(self, images: Float[Array, "batch height width 3"]) -> tuple[list[nn.Module], Array]:
        """The stages and the normalized images.

        Raises:
          InvalidValue: height or width is not a multiple of the patch size.
        """
        settings, dtype = self.settings, self.dtype
        require_divisible(images.shape[1:3], settings.patch_size)
        is_last = [False] * (settings.depth - 1) + [settings.pooling == "class"]
        blocks = [Block(settings, dtype, apart, name=f"stage{number}") for number, apart in enumerate(is_last, 1)]
        last = Last(settings, dtype, name=f"stage{settings.depth + 1}")
        maps = (images - jnp.array(settings.mean)) / jnp.array(settings.std)
        return [Stem(settings, dtype, name="stem"), *blocks, last], maps

    def pool(self, last: Any, state: Tokens) -> Float[Array, "batch dim"]:
        pooled: Array = last.pool(state)
        return pooled


def require_divisible(shape: tuple[int, ...], patch_size: int) -> None:
    """Raise InvalidValue unless height and width are multiples of the patch size."""
    if any(side % patch_size or not side for side in shape):
        near = sorted({max(1, side // patch_size + step) * patch_size for side in shape for step in (0, 1)})
        raise InvalidValue(
            f"images are {shape[0]} x {shape[1]}, which the patch of {patch_size} pixels does not divide; sides must "
            f"be multiples of {patch_size}: {' or '.join(map(str, near))}, for example"
        )


class Stem(nn.Module):
    """Patch embedding, class token and registers, and learned positions."""

    settings: VisionTransformer
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Tokens:
        settings, width = self.settings, self.settings.width
        maps = PatchEmbedding(width, settings.patch_size, settings.patch_bias, self.dtype, name="patches")(images)
        kinds = {"class": settings.class_token, "distillation": settings.distillation_token}
        placed = [self.param(name, INITIAL, (1, 1, width)) for name, is_there in kinds.items() if is_there]
        others = jnp.concatenate([*placed, jnp.zeros((1, 0, width))], axis=1)
        if settings.positions == "learned":
            side = settings.image_size // settings.patch_size
            num_own = others.shape[1] if settings.class_position else 0
            table = self.param("positions", INITIAL, (1, num_own + side**2, width))
            if num_own:
                others = others + table[:, :num_own]
            grid = interpolated(table[0, num_own:].reshape(side, side, width), maps.shape[1:3], settings.interpolation)
            maps = maps + grid.astype(self.dtype)
        if settings.num_registers:
            registers = self.param("registers", INITIAL, (1, settings.num_registers, width))
            others = jnp.concatenate([others, registers], axis=1)
        tokens = Tokens(maps, jnp.broadcast_to(others.astype(self.dtype), (len(maps), *others.shape[1:])))
        return Tokens(*map(layer_norm(settings, self.dtype, "pre_norm"), tokens)) if settings.pre_norm else tokens


class PatchEmbedding(nn.Module):
    """Convolution whose strides are its kernel's size, as a matrix product: on CPUs a third faster for large patches.

    The parameters are "kernel" `[size, size, channels, features]` and, if `use_bias`, "bias".
    """

    features: int
    size: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        batch, height, width, channels = images.shape
        size, rows, columns = self.size, height // self.size, width // self.size
        kernel = self.param("kernel", INITIAL, (size, size, channels, self.features)).astype(self.dtype)
        pixels = images.astype(self.dtype).reshape(batch, rows, size, columns, size * channels)
        pixels = pixels.swapaxes(2, 3).reshape(batch, rows, columns, -1)
        maps = pixels @ kernel.reshape(-1, self.features)
        if self.use_bias:
            maps += self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(self.dtype)
        return maps


def layer_norm(settings: VisionTransformer, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    # The fast variance, a difference of two means, loses precision if the mean is large.
    return nn.LayerNorm(epsilon=settings.epsilon, dtype=dtype, use_fast_variance=False, name=name)


def joined(tokens: Tokens) -> Float[Array, "batch tokens channels"]:
    """All tokens as one sequence, with the patch tokens last."""
    maps, others = tokens
    return jnp.concatenate([others, maps.reshape(len(maps), -1, maps.shape[-1])], axis=1)


def split(sequence: Float[Array, "batch tokens channels"], like: Tokens) -> Tokens:
    """Inverse of `joined`; `like` has the shapes."""
    count, (height, width) = like.others.shape[1], like.maps.shape[1:3]
    maps = sequence[:, count:].reshape(len(sequence), height, width, sequence.shape[-1])
    return Tokens(maps, sequence[:, :count])


class Block(nn.Module):
    """Transformer block: self-attention and MLP, each with pre-normalization and a residual connection.

    With `apart`, patch tokens are computed apart from the others, so that a program that needs the class token alone
    computes of the patches their keys and values only.
    """

    settings: VisionTransformer
    dtype: Any
    apart: bool = False

    @nn.compact
    def __call__(self, tokens: Tokens, *, train: bool) -> Tokens:
        settings, dtype = self.settings, self.dtype
        sequence = joined(tokens)
        angles = None
        if settings.positions == "rotary":
            height, width = tokens.maps.shape[1:3]
            angles = rotary_angles(height, width, settings.width // settings.num_heads, settings.rotary_base)
        is_apart = self.apart and not self.is_mutable_collection("intermediates")
        counts = (tokens.others.shape[1],) if is_apart else ()
        scales: list[Any] = [1, 1]
        if settings.layer_scale:
            ones = nn.initializers.ones_init()
            scales = [self.param(name, ones, (settings.width,)).astype(dtype) for name in ("scale1", "scale2")]
        normalized = layer_norm(settings, dtype, "norm1")(sequence)
        outputs = Attention(settings, dtype, name="attention")(normalized, angles, counts)
        norm, mlp = layer_norm(settings, dtype, "norm2"), MLP(settings, dtype, name="mlp")
        parts = []
        for part, output in zip(jnp.split(sequence, counts, axis=1), outputs, strict=True):
            part = part + output * scales[0]
            parts.append(part + mlp(norm(part)) * scales[1])
        if not is_apart:
            return split(parts[0], tokens)
        others, patches = parts
        return Tokens(patches.reshape(tokens.maps.shape), others)


class Attention(nn.Module):
    """Multi-head self-attention."""

    settings: VisionTransformer
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch tokens channels"], angles: np.ndarray | None, counts: tuple[int, ...] = ()
    ) -> list[Float[Array, "batch _ channels"]]:
        """Outputs of all tokens, of which a part begins at each of `counts`."""
        settings = self.settings

        def heads(name: str) -> list[Array]:
            dense = nn.Dense(
                settings.width, use_bias=name in settings.biases, dtype=self.dtype, kernel_init=INITIAL, name=name
            )
            parts = jnp.split(tokens, counts, axis=1) if name == "query" else [tokens]
            found = [dense(part).reshape(*part.shape[:2], settings.num_heads, -1) for part in parts]
            if angles is not None and name != "value":
                found[-1] = rotated(found[-1], angles)
            return found

        queries, (key,), (value,) = map(heads, ("query", "key", "value"))
        if self.is_mutable_collection("intermediates"):
            # Perturbations are added: a gradient with respect to them is the gradient with respect to the weights.
            weights = self.perturb("weights", attention_weights(queries[0], key))
            self.sow("intermediates", "weights", weights)
            outputs = [jnp.einsum("bhqk,bkhd->bqhd", weights, value)]
        else:
            outputs = [attend(query, key, value) for query in queries]
        dense = nn.Dense(settings.width, dtype=self.dtype, kernel_init=INITIAL, name="output")
        return [dense(output.reshape(*output.shape[:2], -1)) for output in outputs]


def attention_weights(
    query: Float[Array, "batch queries heads dim"], key: Float[Array, "batch keys heads dim"]
) -> Float[Array, "batch heads queries keys"]:
    """Attention weights softmax(query . key / sqrt(dim)) over keys, computed in fp32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    return nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1).astype(query.dtype)


def attend(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys heads dim"],
    value: Float[Array, "batch keys heads dim"],
) -> Float[Array, "batch queries heads dim"]:
    """Scaled dot-product attention; by cuDNN for bfloat16 and more than one query on NVIDIA GPUs.

    The implementation is chosen before tracing, for the enclosing `devices.tracing_for`.
    """
    num_queries, _, dim = query.shape[1:]
    fits = query.dtype == jnp.bfloat16 and dim % 8 == 0 and dim <= 128 and num_queries > 1
    if fits and has_fused_attention(traced_platform()):
        return attend_in_even_numbers(query, key, value, implementation="cudnn")
    return attend_plainly(query, key, value)


def attend_in_even_numbers(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys heads dim"],
    value: Float[Array, "batch keys heads dim"],
    *,
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "batch queries heads dim"]:
    """`jax.nn.dot_product_attention`, with a masked token more where their number is odd.

    JAX (0.10 to 0.12) refuses to differentiate cuDNN's attention of an odd number of tokens, which is that of all
    networks with a class token.
    """
    numbers = query.shape[1], key.shape[1]
    query, key, value = (
        jnp.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, 0), (0, 0))) for array in (query, key, value)
    )
    lengths: dict[str, Any] = {}
    if (query.shape[1], key.shape[1]) != numbers:
        for name, number in zip(("query_seq_lengths", "key_value_seq_lengths"), numbers, strict=True):
            lengths[name] = jnp.full(len(query), number, jnp.int32)
    outputs = jax.nn.dot_product_attention(query, key, value, implementation=implementation, **lengths)
    return outputs[:, : numbers[0]]


def attend_plainly(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys heads dim"],
    value: Float[Array, "batch keys heads dim"],
) -> Float[Array, "batch queries heads dim"]:
    """Scaled dot-product attention on every platform, with the softmax in fp32.

    Queries are scaled and outputs are normalized, rather than scores and weights, which are larger for more tokens than
    dimensions: on CPUs this takes two thirds of the time of `jax.nn.dot_product_attention`.
    """
    scaled = query * query.shape[-1] ** -0.5
    by_head = [array.swapaxes(1, 2) for array in (scaled, key, value)]
    scores = jnp.matmul(by_head[0], by_head[1].mT, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    outputs = jnp.matmul(weights.astype(value.dtype), by_head[2], preferred_element_type=jnp.float32)
    outputs /= weights.sum(-1, keepdims=True)
    return outputs.astype(query.dtype).swapaxes(1, 2)


class MLP(nn.Module):
    """Two linear layers with a nonlinearity between them; three layers if `gated`."""

    settings: VisionTransformer
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch tokens channels"]) -> Float[Array, "batch tokens channels"]:
        settings = self.settings
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=INITIAL)
        hidden = dense(settings.mlp_width, name="expand")(tokens)
        nonlinearity = NONLINEARITIES[settings.nonlinearity]
        if settings.gated:
            hidden = nonlinearity(dense(settings.mlp_width, name="gate")(tokens)) * hidden
        else:
            hidden = nonlinearity(hidden)
        return dense(settings.width, name="project")(hidden)


class Last(nn.Module):
    """Final normalization, and pooling of its output."""

    settings: VisionTransformer
    dtype: Any

    def setup(self) -> None:
        settings = self.settings
        self.norm = layer_norm(settings, self.dtype)
        if settings.pooling == "attention":
            self.pooler = AttentionPooling(settings, self.dtype)
        if settings.projection:
            self.projection = nn.Dense(settings.projection, use_bias=False, dtype=self.dtype, kernel_init=INITIAL)

    def __call__(self, tokens: Tokens, *, train: bool) -> Tokens:
        return Tokens(*map(self.norm, tokens))

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        if self.settings.pooling == "class":
            pooled = tokens.others[:, 0]
        elif self.settings.pooling == "mean":
            pooled = mean_over_positions(tokens.maps)
        else:
            pooled = self.pooler(joined(tokens))
        return (self.projection(pooled) if self.settings.projection else pooled).astype(jnp.float32)


class AttentionPooling(nn.Module):
    """Attention pooling: a learned query's attention over all tokens, followed by a residual MLP.

    Source: Zhai et al. 2022 (arXiv 2106.04560).
    """

    settings: VisionTransformer
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch tokens channels"]) -> Float[Array, "batch channels"]:
        settings, width = self.settings, self.settings.width
        probe = jnp.tile(self.param("probe", INITIAL, (1, 1, width)).astype(self.dtype), (len(tokens), 1, 1))
        query, key, value = (
            nn.Dense(width, dtype=self.dtype, kernel_init=INITIAL, name=name)(inputs).reshape(
                *inputs.shape[:2], settings.num_heads, -1
            )
            for name, inputs in (("query", probe), ("key", tokens), ("value", tokens))
        )
        outputs = attend(query, key, value).reshape(len(tokens), 1, width)
        outputs = nn.Dense(width, dtype=self.dtype, kernel_init=INITIAL, name="output")(outputs)
        hidden = layer_norm(settings, self.dtype, "norm")(outputs)
        return (outputs + MLP(settings, self.dtype, name="mlp")(hidden))[:, 0]


@cache
def rotary_angles(height: int, width: int, dim: int, base: float) -> Float[np.ndarray, "patches dim"]:
    """Rotation angles, in radians, of each patch's queries and keys: for rows, then for columns, both twice.

    Coordinates of patch centers range from -1 to 1 over the image, for any image size; the `dim / 4` frequencies
    decrease from 2 pi to 2 pi / `base`.
    Source: Simeoni et al. 2025 (arXiv 2508.10104).
    """
    centers = [2 * (np.arange(length, dtype=np.float32) + 0.5) / length - 1 for length in (height, width)]
    frequencies = 2 * np.pi * np.float32(base) ** -np.arange(0, 1, 4 / dim, dtype=np.float32)
    places = np.stack(np.meshgrid(*centers, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = (places[:, :, None] * frequencies).reshape(len(places), -1)
    return np.tile(angles, 2).astype(np.float32)


def rotated(
    vectors: Float[Array, "batch tokens heads dim"], angles: Float[np.ndarray, "patches dim"]
) -> Float[Array, "batch tokens heads dim"]:
    """Rotary embedding of the last tokens, the patches: dimensions i and i + dim / 2 are rotated by the angles."""
    start = vectors.shape[1] - len(angles)
    others, patches = vectors[:, :start], vectors[:, start:]
    cosine, sine = (jnp.asarray(part[:, None], vectors.dtype) for part in (np.cos(angles), np.sin(angles)))
    first, second = jnp.split(patches, 2, axis=-1)
    turned = patches * cosine + jnp.concatenate([-second, first], axis=-1) * sine
    return jnp.concatenate([others, turned], axis=1)


def interpolated(
    grid: Float[Array, "rows columns channels"], shape: tuple[int, ...], interpolation: Interpolation
) -> Float[Array, "height width channels"]:
    """Position embeddings interpolated to a grid of another shape, as by PyTorch's `interpolate(size=shape)`."""
    if grid.shape[:2] == tuple(shape):
        return grid
    rows, columns = (
        interpolation_weights(old, new, interpolation) for old, new in zip(grid.shape[:2], shape, strict=True)
    )
    return jnp.einsum("hr,rkc,wk->hwc", rows, grid, columns, precision="highest")


@cache
def interpolation_weights(old: int, new: int, interpolation: Interpolation) -> Float[np.ndarray, "{new} {old}"]:
    """Weights of `old` values in each of `new` interpolated ones, without aligned corners; rows sum to 1.

    Antialiased kernels are stretched for downsampling, truncated at the border and normalized; the other one repeats
    the values at the border.
    Source: Keys 1981, with a = -3/4, and -1/2 with antialiasing, as in PyTorch.

    Examples:
      >>> interpolation_weights(2, 3, "bilinear-antialiased").round(2).tolist()
      [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    centers = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    if interpolation == "bicubic":
        taps = np.floor(centers) + np.arange(-1, 3)
        weights = np.zeros((new, old))
        places = np.clip(taps, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new)[:, None], places), _cubic(np.abs(centers - taps), a=-0.75))
        return weights.astype(np.float32)
    distances = np.abs(np.arange(old) - centers) / max(1, old / new)
    linear = interpolation == "bilinear-antialiased"
    weights = np.maximum(1 - distances, 0) if linear else _cubic(distances, a=-0.5)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic(x: np.ndarray, *, a: float) -> np.ndarray:
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))

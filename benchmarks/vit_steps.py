"""Inference and training steps of vision transformers that benchmarks measure; `torch_vit` has PyTorch's."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from steps import Finish, Run, jitted_embedding

from tll_jax.data.geometry import Resize
from tll_jax.devices import (
    ANY_PLATFORM,
    batch_sharded,
    make_mesh,
    platform_of,
    replicated,
    resident,
    to_devices,
    tracing_for,
)
from tll_jax.models.heads import Identity, Projection
from tll_jax.models.network import Network
from tll_jax.models.vit import VisionTransformer, attend
from tll_jax.models.weights import WeightFile
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.study.networks import make_program, recipe_of, siamese
from tll_jax.study.settings import Finetune, Loop, Lora, Model
from tll_jax.training.optimizers import AdamW, Lars
from tll_jax.training.state import init_variables, make_state
from tll_jax.training.step import NetworkLoss, make_step
from tll_jax.typing import PairBatch, ViewBatch

NUM_STEPS = 1000
PROJECTOR = (2048, 2048, 2048)
EMBEDDING_WIDTH, LOGIT_SCALE, LEARNING_RATE = 256, 15.0, 5e-4
LORA = Lora(rank=8, alpha=16.0, targets=("attention", "mlp"))
ATTENTION_CALL = "__cudnn$fmha"
"""Part of the names of cuDNN's attention, forward and backward, in compiled programs."""


def vit_s14() -> VisionTransformer:
    """DINOv2's, with positions for 224 pixels."""
    return VisionTransformer(patch_size=14, layer_scale=True)


def vit_b32() -> VisionTransformer:
    """CLIP's visual tower."""
    return VisionTransformer(
        width=768,
        num_heads=12,
        mlp_width=3072,
        patch_size=32,
        pre_norm=True,
        patch_bias=False,
        nonlinearity="quick-gelu",
        projection=512,
        epsilon=1e-5,
    )


NETWORKS: dict[str, Callable[[], VisionTransformer]] = {"vit-s/14": vit_s14, "vit-b/32": vit_b32}


@dataclass(frozen=True, kw_only=True)
class VitRow:
    """Settings of one line of a table."""

    task: str
    """ "inference", "barlow" or "lora"."""
    network: str
    """A key of `NETWORKS`."""
    batch: int
    dtype: str = "float32"
    """Dtype of the computation; parameters and losses stay float32."""
    is_tiny: bool = False
    """Whether the network is cut to two blocks and four patches."""

    @property
    def backbone(self) -> VisionTransformer:
        settings = NETWORKS[self.network]()
        if self.is_tiny:
            settings.depth, settings.image_size = 2, 2 * settings.patch_size
        return settings

    @property
    def size(self) -> int:
        return self.backbone.image_size

    @property
    def name(self) -> str:
        tiny, bf16 = "tiny " if self.is_tiny else "", " bf16" if self.dtype == "bfloat16" else ""
        return f"{self.task} {tiny}{self.network} {self.size}px batch {self.batch}{bf16}"

    @property
    def images(self) -> int:
        """How many a step or a batch is counted as."""
        return self.batch if self.task == "inference" else 2 * self.batch

    def views(self) -> np.ndarray:
        """Two random uint8 images for each of the batch, `[2, batch, size, size, 3]`."""
        shape = (2, self.batch, self.size, self.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def rows(tiny: bool) -> Iterator[VitRow]:
    """Rows for a GPU, the most important first."""
    for task, network, batch in (
        ("inference", "vit-s/14", 512),
        ("lora", "vit-b/32", 256),
        ("barlow", "vit-s/14", 128),
        ("inference", "vit-b/32", 1024),
    ):
        yield VitRow(task=task, network=network, batch=4 if tiny else batch, dtype="bfloat16", is_tiny=tiny)


class OurRun:
    """Makes the measured function of `row`, resident on the first device, and remembers its program."""

    def __init__(self, row: VitRow) -> None:
        self.row = row
        self._compiled: Any = None

    def __call__(self) -> Run:
        make = {"inference": self._inference, "barlow": self._barlow, "lora": self._lora}[self.row.task]
        return make()

    def attention_calls(self) -> int:
        return num_attention_calls(self._compiled)

    def _inference(self) -> Run:
        row, mesh = self.row, make_mesh(jax.devices()[:1])
        dtype = jnp.dtype(row.dtype)
        network = Network(row.backbone.build(dtype=dtype), Identity(normalize=False).build(dtype=dtype))
        variables = resident(init_variables(network, size=row.size, seed=0), mesh)
        images = jnp.asarray(row.views()[0])
        self._compiled = compiled = jitted_embedding(network, mesh).lower(variables, images).compile()
        return lambda: compiled(variables, images).block_until_ready

    def _barlow(self) -> Run:
        row, mesh = self.row, make_mesh(jax.devices()[:1])
        objective = BarlowTwins(projector=PROJECTOR)
        dtype = jnp.dtype(row.dtype)
        head = objective.head(num_classes=0)
        network = Network(row.backbone.build(dtype=dtype), head.build(dtype=dtype))
        optimizer = Lars().build(num_steps=NUM_STEPS, batch_size=row.batch)
        state = make_state(init_variables(network, size=row.size, seed=0), optimizer)
        step = make_step(
            NetworkLoss(network, objective), (Unchanged(), Unchanged()), optimizer, state_shardings=replicated(mesh)
        )
        return self._stepping(step, state, ViewBatch, mesh)

    def _lora(self) -> Run:
        row, mesh = self.row, make_mesh(jax.devices()[:1])
        finetune = Finetune(
            objective=InfoNCE(logit_scale=LOGIT_SCALE),
            geometry=Resize(size=row.size),
            augment=Unchanged(),
            optimizer=AdamW(learning_rate=LEARNING_RATE),
            loop=Loop(num_steps=NUM_STEPS, batch_size=row.batch, dtype=row.dtype),
            lora=LORA,
        )
        model = Model(
            backbone=row.backbone,
            head=Projection(widths=(EMBEDDING_WIDTH,)),
            weights=WeightFile(path="random"),
            finetune=finetune,
        )
        network = siamese(model)
        program = make_program(network, recipe_of(finetune), size=row.size, mesh=mesh)
        variables = init_variables(network, size=row.size, seed=0)
        trained, *base = program.split(variables, jax.random.key(0))
        return self._stepping(program.step, program.start(trained), PairBatch, mesh, *base)

    def _stepping(self, step: Any, state: Any, kind: Any, mesh: Any, *base: Any) -> Run:
        """Steps on one batch, from `state` on."""
        key = jax.random.key(0)
        state = jax.device_put(state, replicated(mesh), may_alias=False)
        batch = kind(*self.row.views(), np.arange(self.row.batch, dtype=np.int32))
        batch = to_devices(batch, batch_sharded(mesh))
        base = jax.device_put(base, replicated(mesh))
        self._compiled = compiled = step.lower(key, state, batch, *base).compile()

        def run() -> Finish:
            nonlocal state
            state, metrics = compiled(key, state, batch, *base)
            return partial(check_loss, self.row, metrics["loss"])

        return run


@dataclass(frozen=True)
class Unchanged:
    """The augmentation that changes nothing."""

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        del key
        return image


def check_loss(row: VitRow, loss: Any) -> None:
    assert math.isfinite(float(loss)), f"{row.name}: the loss is {float(loss)}"


ATTENTION_SHAPES = ((257, 6, 64), (50, 12, 64), (197, 3, 40))
"""Tokens, heads and dimensions of the rows, and odd ones."""


def attention_row(tokens: int, heads: int, dim: int) -> dict[str, Any]:
    """Largest relative differences of bfloat16 attention from float32's: as the networks choose it, and the plain one.

    Of outputs, and of gradients of queries, keys and values; each is divided by the largest value of float32's.
    """
    platform = platform_of(make_mesh(jax.devices()[:1]))
    random = np.random.default_rng(0).standard_normal((4, 8, tokens, heads, dim))
    arrays = [jnp.asarray(part, jnp.bfloat16) for part in random]
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(outputs_and_gradients(None))(*(array.astype(jnp.float32) for array in arrays))
    row: dict[str, Any] = {"row": f"attention {tokens} tokens, {heads} heads of {dim}, bf16", "differences": {}}
    for name, traced_for in (("plain", None), ("chosen", platform)):
        try:
            compiled = jax.jit(outputs_and_gradients(traced_for)).lower(*arrays).compile()
            found = compiled(*arrays)
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            return row | {"note": f"{name} attention is refused: {str(error).strip().splitlines()[0]}"}
        row["attention_calls"] = num_attention_calls(compiled)
        row["differences"][name] = [
            float(jnp.abs(one.astype(jnp.float32) - other).max() / jnp.abs(other).max())
            for one, other in zip(found, exact, strict=True)
        ]
    parts = (f"{name} {max(values):.1e}" for name, values in row["differences"].items())
    calls = f"{row['attention_calls']} calls of cuDNN in the chosen one"
    return row | {"note": f"largest difference from float32: {', '.join(parts)}; {calls}"}


def num_attention_calls(compiled: Any) -> int:
    return compiled.as_text().count(f'custom_call_target="{ATTENTION_CALL}')


def outputs_and_gradients(platform: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    """Function (queries, keys, values, gradient of the output) -> output and gradients of attention for `platform`."""

    def traced(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        with tracing_for(platform or ANY_PLATFORM):
            outputs, pullback = jax.vjp(attend, *arrays[:-1])
            return outputs, *pullback(arrays[-1])

    return traced

"""Steps, inference and explanations that benchmarks measure, put together as by configs; `torch_peer` has PyTorch's."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tll_jax.augment.recipes import barlow_view_a, barlow_view_b
from tll_jax.devices import batch_sharded, make_mesh, platform_of, replicated, resident, to_devices, tracing_for
from tll_jax.evaluation.embed import head_embedding
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.heads import Classifier, Identity, SpatialProjection
from tll_jax.models.network import Network
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classification
from tll_jax.objectives.triplet import Triplet
from tll_jax.saliency.gradients import gradient, smoothed
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.targets import class_logit
from tll_jax.training.optimizers import Lars
from tll_jax.training.state import init_variables, make_state
from tll_jax.training.step import NetworkLoss, make_step
from tll_jax.typing import Backbone, PairBatch, ViewBatch

NUM_STEPS = 1000
NUM_CLASSES = {18: 10, 50: 1000}
PROJECTOR = {18: (512, 512, 512), 50: (8192, 8192, 8192)}
EMBEDDING_STAGES, EMBEDDING_WIDTH = (2, 3, 4), 128
LABEL, NOISE, SAMPLES = 3, 0.15, 25

Finish = Callable[[], Any]
"""Waits for what was started, and checks it."""

Run = Callable[[], Finish]
"""Starts one step or one batch."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Settings of one line of a table."""

    task: str
    depth: int | None
    """Depth of a ResNet; None for EfficientNet-Lite0."""
    size: int
    batch: int
    dtype: str = "float32"
    """Dtype of the computation; parameters, statistics and losses stay float32."""
    is_augmented: bool = False
    """Whether a step also changes the views' colors and sharpness, as `augment.recipes` says for Barlow Twins."""

    @property
    def name(self) -> str:
        network = "efficientnet_lite0" if self.depth is None else f"resnet{self.depth}"
        others = (" bf16" if self.dtype == "bfloat16" else "") + (" augmented" if self.is_augmented else "")
        return f"{self.task} {network} {self.size}px batch {self.batch}{others}"

    @property
    def images(self) -> int:
        """How many a step or a batch is counted as."""
        return 2 * self.batch if self.task in ("barlow", "classification", "triplet") else self.batch


def random_batch(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two uint8 views and a label of each pair."""
    rng = np.random.default_rng(0)
    views = [rng.integers(0, 256, (row.batch, row.size, row.size, 3), dtype=np.uint8) for _ in range(2)]
    labels = np.arange(row.batch, dtype=np.int32)
    if row.task == "classification":
        labels %= NUM_CLASSES[row.depth]
    return views[0], views[1], labels


def our_backbone(row: Row) -> Backbone:
    if row.depth is None:
        return EfficientNetLite0()
    return ResNet(depth=row.depth, pooled_shortcuts=row.depth == 18)


def our_run(row: Row, batch: Any) -> Run:
    """The measured function of `row` on `batch` (two views and a label each), resident on the first device."""
    return {"inference": our_inference, "smoothgrad": our_smoothgrad}.get(row.task, our_step)(row, batch)


def our_step(row: Row, batch: Any) -> Run:
    objective, head = {
        "barlow": (BarlowTwins(projector=PROJECTOR[row.depth]), None),
        "classification": (Classification(), None),
        "triplet": (Triplet(), SpatialProjection(stages=EMBEDDING_STAGES, width=EMBEDDING_WIDTH)),
    }[row.task]
    head = head or objective.head(num_classes=NUM_CLASSES[row.depth])
    network = Network(
        backbone=our_backbone(row).build(dtype=jnp.dtype(row.dtype)),
        head=head.build(dtype=jnp.dtype(row.dtype)),
    )
    mesh = make_mesh(jax.devices()[:1])
    optimizer = Lars().build(num_steps=NUM_STEPS, batch_size=row.batch)
    state = make_state(init_variables(network, size=row.size, seed=0), optimizer)
    state = jax.device_put(state, replicated(mesh), may_alias=False)

    def unchanged(key: jax.Array, image: jax.Array) -> jax.Array:
        del key
        return image

    augments = (barlow_view_a(), barlow_view_b()) if row.is_augmented else (unchanged, unchanged)
    step = make_step(NetworkLoss(network, objective), augments, optimizer, state_shardings=replicated(mesh))
    key = jax.random.key(0)
    kind = PairBatch if row.task == "triplet" else ViewBatch
    batch = to_devices(kind(*batch), batch_sharded(mesh))

    def run() -> Finish:
        nonlocal state
        state, metrics = step(key, state, batch)
        return partial(check_loss, row, metrics["loss"])

    return run


def check_loss(row: Row, loss: Any) -> None:
    assert math.isfinite(float(loss)), f"{row.name}: the loss is {float(loss)}"


def jitted_embedding(network: Network, mesh: Mesh) -> Any:
    """Jitted function from variables and uint8 images on the mesh to embeddings, as `Embedder` computes them."""

    @jax.jit
    def embed(variables: Any, images: jax.Array) -> jax.Array:
        with tracing_for(platform_of(mesh)):
            return head_embedding(network)(variables, images.astype(jnp.float32) / 255)

    return embed


def our_inference(row: Row, batch: Any) -> Run:
    network = Network(
        backbone=our_backbone(row).build(dtype=jnp.dtype(row.dtype)),
        head=Identity(normalize=False).build(dtype=jnp.dtype(row.dtype)),
    )
    mesh = make_mesh(jax.devices()[:1])
    variables = resident(init_variables(network, size=row.size, seed=0), mesh)
    embed, images = jitted_embedding(network, mesh), jnp.asarray(batch[0])
    return lambda: embed(variables, images).block_until_ready


def our_smoothgrad(row: Row, batch: Any) -> Run:
    network = Network(
        backbone=our_backbone(row).build(dtype=jnp.dtype(row.dtype)),
        head=Classifier(num_classes=NUM_CLASSES[row.depth]).build(dtype=jnp.dtype(row.dtype)),
    )
    variables = resident(init_variables(network, size=row.size, seed=0), make_mesh(jax.devices()[:1]))
    method = smoothed(gradient, key=jax.random.key(0), noise=NOISE, samples=SAMPLES)

    @jax.jit
    def explain(variables: Any, images: jax.Array) -> jax.Array:
        score = class_logit(NetworkEmbedding(network=network, variables=variables), LABEL)
        return jax.vmap(lambda image: method(score, image))(images)

    images = jnp.asarray(batch[0], jnp.float32) / 255
    return lambda: explain(variables, images).block_until_ready

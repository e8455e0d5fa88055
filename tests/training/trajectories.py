"""Five optimizer steps of every objective on a small network, real pictures and any devices; run by its tests in this
process, and twice at once as two processes that share the devices between them."""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.configs.one_stage import BATCH, SIZE, OneStage
from tll_jax import processes
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import Resize
from tll_jax.devices import batch_sharded, fsdp_shardings, make_mesh, place
from tll_jax.models.heads import Projection
from tll_jax.models.network import Network
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classification
from tll_jax.objectives.contrastive import Contrastive
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.objectives.multi_similarity import MultiSimilarity
from tll_jax.objectives.simclr import SimCLR
from tll_jax.objectives.triplet import Triplet
from tll_jax.objectives.vicreg import VICReg
from tll_jax.training.state import init_variables, make_state
from tll_jax.training.step import NetworkLoss, make_step
from tll_jax.typing import PairBatch, ViewBatch

NUM_CLASSES, NUM_STEPS = 5, 5
LEARNING_RATE = 0.02

OBJECTIVES: dict[str, Any] = {
    "barlow_twins": BarlowTwins(projector=(16, 16), scale=0.1),
    "simclr": SimCLR(projector=(16, 16)),
    "vicreg": VICReg(projector=(16, 16)),
    "classification": Classification(),
    "triplet": Triplet(mining="random", same_side_negatives=True),
    "info_nce": InfoNCE(),
    "contrastive": Contrastive(),
    "multi_similarity": MultiSimilarity(),
}


IN_TWO_PROCESSES = ("barlow_twins", "vicreg", "classification", "triplet")
"""One objective for each way that devices exchange numbers: statistics of the batch, parameters split over devices, a
mean, and embeddings of other rows."""


def dimmed(key: jax.Array, image: jax.Array) -> jax.Array:
    """An augmentation that compiles in no time."""
    return image * jax.random.uniform(key, minval=0.5)


@dataclass(kw_only=True)
class Trajectory:
    """What training leaves: losses and lengths of gradients of all steps, the direction of the first, and batch
    statistics and parameters at the end, each as a flat array."""

    losses: np.ndarray
    gradient_norms: np.ndarray
    gradients: np.ndarray
    batch_stats: np.ndarray
    params: np.ndarray


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[pairs, size, size, 3]`: both sides of real emoji pairs."""
    images = EmojiPairs().open().images(range(BATCH))
    rng = np.random.default_rng(0)
    left, right = (np.stack([Resize(size=SIZE)(rng, image) for image in side]) for side in (images.left, images.right))
    return left, right


def make_network(name: str, dtype: Any = jnp.float32) -> Network:
    """The small backbone under the head that the objective trains."""
    head = OBJECTIVES[name].head(num_classes=NUM_CLASSES) or Projection(widths=(16,))
    return Network(OneStage(dtype), head.build(dtype=dtype))


def train(
    name: str,
    mesh: jax.sharding.Mesh,
    *,
    min_size: int = 0,
    num_steps: int = NUM_STEPS,
    dtype: Any = jnp.float32,
) -> Trajectory:
    """Descent with momentum by steps of one length for all objectives, so that none is so unstable that it multiplies
    differences of rounding."""
    objective = OBJECTIVES[name]
    numbers = np.arange(BATCH, dtype=np.int32)
    sees_views = objective.head(num_classes=NUM_CLASSES) is not None
    rows = ViewBatch(*pictures(), numbers % NUM_CLASSES) if sees_views else PairBatch(*pictures(), numbers)
    network = make_network(name, dtype)
    optimizer = optax.chain(optax.normalize_by_update_norm(), optax.sgd(LEARNING_RATE, momentum=0.9))
    state = jax.device_get(make_state(init_variables(network, size=SIZE, seed=0), optimizer))
    shardings = fsdp_shardings(state, min_size, mesh)
    step = make_step(NetworkLoss(network, objective), (dimmed, dimmed), optimizer, state_shardings=shardings)
    key = jax.random.key(3)
    batch = place(rows, jax.tree.map(lambda _: batch_sharded(mesh), rows))
    before = state.params
    state = place(state, shardings)
    losses, norms, gradients = [], [], np.zeros(0)
    for number in range(num_steps):
        state, metrics = step(key, state, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
        if number == 0:
            after = jax.tree.map(processes.gathered, state.params)
            gradients = flat(jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, before, after))
    return Trajectory(
        losses=np.array(losses),
        gradient_norms=np.array(norms),
        gradients=gradients,
        batch_stats=flat(jax.tree.map(processes.gathered, state.batch_stats)),
        params=flat(jax.tree.map(processes.gathered, state.params)),
    )


def flat(tree: Any) -> np.ndarray:
    """All values of a tree in a row."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


if __name__ == "__main__":
    address, process, output = sys.argv[1:]
    processes.start(coordinator=address, num_processes=2, process_id=int(process))
    found = {
        f"{name}/{field}": value
        for name in IN_TWO_PROCESSES
        for field, value in vars(train(name, make_mesh(), min_size=64 if name == "vicreg" else 0)).items()
    }
    np.savez(output, devices=len(jax.devices()), **found)

"""The training stages of a model: pretrain and fine-tune, each skipped when done and its inputs unchanged."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tll_jax import processes, ranking
from tll_jax.contracts import (
    ImageSource,
    PairSource,
)
from tll_jax.data import pipeline
from tll_jax.data.splits import Manifest
from tll_jax.evaluation.embed import head_embedding, pooled_embedding
from tll_jax.evaluation.probes import NEIGHBORS, OpenedProbe
from tll_jax.models.network import Network
from tll_jax.serialize import Fingerprint
from tll_jax.study.folder import (
    VARIABLES,
    Trained,
    is_done,
    mark_trained,
    pretrain_key,
    stage_folder,
    write_stage_settings,
)
from tll_jax.study.networks import (
    initial_variables,
    make_embedder,
    pretraining_network,
    recipe_of,
    shared_program,
    siamese,
)
from tll_jax.study.settings import Arm, Evaluate, Finetune, Pretrain
from tll_jax.training import checkpoint, loop
from tll_jax.training.collapse import collapse_warning
from tll_jax.training.state import init_variables, initial_shapes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all stages of a study share, opened once."""

    workdir: Path
    pairs: PairSource
    mesh: Mesh
    readers: pipeline.Readers


def pretrain(
    name: str, arm: Arm, images: ImageSource, context: Context, *, probe: OpenedProbe | None = None
) -> Trained:
    """Trains the arm's backbone on single images, or loads what an equal stage has left.

    A probe only watches: how many test images have the class of their nearest training images.
    """
    settings = arm.pretrain
    assert settings is not None
    key = pretrain_key(arm, images)
    assert key is not None
    folder = stage_folder(context.workdir, "pretrain", key)
    network = pretraining_network(arm, num_classes=images.num_classes)
    shapes = initial_shapes(network, size=settings.geometry.size)
    trained = Trained.of(folder, shapes)
    if processes.from_first(is_done(folder, key, "pretrain")):
        logger.info("pretrain %s: up to date, skipped (%s)", name, folder)
        return trained
    variables = init_variables(network, size=settings.geometry.size, seed=settings.seed)
    if processes.is_first():
        write_stage_settings(folder, "pretrain", settings)
    dataset = pipeline.view_dataset(images, settings.geometry, seed=settings.seed)
    _train(
        network,
        variables,
        dataset,
        settings,
        size=settings.geometry.size,
        seed=settings.seed,
        folder=folder,
        context=context,
        label=f"pretrain {name}",
        evaluator=None if probe is None else _watch(network, probe),
    )
    if processes.is_first():
        mark_trained(folder, key, "pretrain", skipped=[list(item) for item in images.skipped])
    return trained


def finetune(
    name: str,
    arm: Arm,
    pretrained: Trained | None,
    manifest: Manifest,
    evaluate: Evaluate,
    context: Context,
    *,
    key: Fingerprint,
    seed: int,
) -> Trained:
    """Trains the Siamese network on look-alike pairs, choosing the checkpoint on the validation pairs."""
    settings = arm.finetune
    assert settings is not None
    folder = stage_folder(context.workdir, "finetune", key)
    label = f"finetune {name} seed {seed}"
    network = siamese(arm)
    size = evaluate.geometry.size
    shapes = initial_shapes(network, size=size)
    trained = Trained.of(folder, shapes)
    if processes.from_first(is_done(folder, key, "finetune")):
        logger.info("%s: up to date, skipped (%s)", label, folder)
        return trained
    variables = initial_variables(arm, pretrained, size=size, seed=seed)
    if processes.is_first():
        write_stage_settings(folder, "finetune", settings, seed=seed)
    train_indices = context.pairs.indices(manifest.train)
    dataset = pipeline.pair_dataset(context.pairs, train_indices, settings.geometry, seed=seed)
    _train(
        network,
        variables,
        dataset,
        settings,
        size=size,
        seed=seed,
        folder=folder,
        context=context,
        label=label,
        evaluator=_validation(network, manifest, evaluate, context),
        watched="validation/mrr",
    )
    if processes.is_first():
        mark_trained(folder, key, "finetune")
    return trained


def _train(
    network: Network,
    variables: dict[str, Any],
    dataset: Any,
    settings: Pretrain | Finetune,
    *,
    size: int,
    seed: int,
    folder: Path,
    context: Context,
    label: str,
    **choosing: Any,
) -> None:
    def make_batches(start: int) -> Iterator[Any]:
        return pipeline.training_batches(
            dataset,
            batch_size=settings.loop.batch_size,
            start_step=start,
            readers=context.readers,
        )

    program = shared_program(network, recipe_of(settings), size=size, mesh=context.mesh)
    training = loop.Training(
        step=partial(program.step, jax.random.key(seed)),
        make_batches=make_batches,
        settings=settings.loop,
        folder=folder,
        mesh=context.mesh,
        label=label,
        warn=collapse_warning,
        **choosing,
    )
    state = training.run(program.start(variables))
    checkpoint.save_variables(folder / VARIABLES, state.variables, step=settings.loop.num_steps)


def _watch(network: Network, probe: OpenedProbe) -> Any:
    """An evaluator that asks the backbone about classes while it trains."""
    embedder = probe.embedder(pooled_embedding(network))
    return lambda variables: {f"probe/{NEIGHBORS}": probe.neighbors(embedder, variables)}


def _validation(network: Network, manifest: Manifest, evaluate: Evaluate, context: Context) -> Any:
    """An evaluator that ranks the validation pairs among themselves, both directions."""
    embedder = make_embedder(head_embedding(network), evaluate, context.mesh, context.readers)
    images = context.pairs.images(context.pairs.indices(manifest.validation))
    rng = np.random.default_rng(0)
    left, right = ([evaluate.geometry(rng, image) for image in side] for side in (images.left, images.right))

    def validate(variables: Any) -> dict[str, float]:
        found = ranking.pair_ranks(embedder(variables, left), embedder(variables, right), mesh=context.mesh)
        return {
            "validation/mrr": float(np.mean(1 / found)),
            "validation/top1": float(np.mean(found <= 1)),
            "validation/top5": float(np.mean(found <= 5)),
        }

    return validate

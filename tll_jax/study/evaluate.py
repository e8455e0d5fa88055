"""Ranks of the test pairs: by trained models, by frozen backbones, by systems that need no training."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tll_jax import ranking
from tll_jax.contracts import PairImages
from tll_jax.devices import replicated
from tll_jax.evaluation.embed import Embedding, head_embedding, pooled_embedding
from tll_jax.evaluation.probes import OpenedProbe
from tll_jax.serialize import Fingerprint
from tll_jax.study.folder import (
    NUM_SHOWN,
    Embeddings,
    Evaluation,
    Trained,
    can_be_read,
    is_done,
    mark_done,
    unmark,
)
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.settings import Arm, Evaluate
from tll_jax.study.train import Context

logger = logging.getLogger(__name__)


def evaluate_arm(
    arm: Arm,
    trained: Trained,
    images: PairImages,
    evaluate: Evaluate,
    context: Context,
    evaluation: Evaluation,
) -> None:
    """Embeds the test pairs, ranks them both ways and leaves embeddings, ranks and records in the run folder."""
    run = evaluation.run
    if is_done(run.path, evaluation.key, "evaluate") and can_be_read(run.embedding_file, *run.rank_files):
        logger.info("evaluate %s: up to date, skipped", evaluation.label)
        return
    network = siamese(arm)
    embedder = make_embedder(head_embedding(network), evaluate, context.mesh, context.readers)
    variables = jax.device_put(trained.variables, replicated(context.mesh))
    left, right = (embedder(variables, side) for side in (images.left, images.right))
    unmark(run.path, "evaluate")
    run.write_embeddings(Embeddings(list(images.ids), left, right))
    run.write_ranks(
        images.ids,
        ranks=ranking.pair_ranks(left, right, mesh=context.mesh),
        top=[
            ranking.embedding_top_k(queries, candidates, NUM_SHOWN, mesh=context.mesh)
            for queries, candidates in ((left, right), (right, left))
        ],
    )
    evaluation.mark()


def evaluate_system(
    evaluation: Evaluation, system: Any, train: PairImages, validation: PairImages, test: PairImages
) -> None:
    """Fits a system that is not a trained arm and ranks the test pairs with it, both ways."""
    run = evaluation.run
    if is_done(run.path, evaluation.key, "evaluate") and can_be_read(*run.rank_files):
        logger.info("evaluate %s: up to date, skipped", evaluation.label)
        return
    logger.info("evaluate %s", evaluation.label)
    system.fit(train, validation)
    scores = [system.score(test.left, test.right), system.score(test.right, test.left)]
    matches = np.arange(len(test.ids))
    unmark(run.path, "evaluate")
    run.write_ranks(
        test.ids,
        ranks=[ranking.ranks(one_way, matches) for one_way in scores],
        top=[ranking.top_k(one_way, NUM_SHOWN) for one_way in scores],
    )
    evaluation.mark(chosen=getattr(system, "chosen", None))


def frozen_system(arm: Arm, variables: dict[str, Any], evaluate: Evaluate, context: Context) -> Embedding:
    """The arm's backbone as pretraining left it: cosine similarity of its pooled features."""
    embedder = make_embedder(pooled_embedding(siamese(arm)), evaluate, context.mesh, context.readers)
    return Embedding(embedder=embedder, variables=jax.device_put(variables, replicated(context.mesh)))


def probe_frozen(arm: Arm, variables: dict[str, Any], probe: OpenedProbe, folder: Path, *, key: Fingerprint) -> None:
    """Leaves in `folder` what the arm's backbone knows of classes, as pretraining left it."""
    if not is_done(folder, key, "probe"):
        device_variables = jax.device_put(variables, replicated(probe.mesh))
        embedder = probe.embedder(pooled_embedding(siamese(arm)))
        mark_done(folder, key, "probe", accuracy=probe.both(embedder, device_variables))

"""Runs a study with one pretraining of each model, then with two, and so on, and evaluates it each time.

Takes the flags of `tll_jax.main`. Results thus exist whenever it is stopped, and the same command continues. Probes
come last. The trained models also rank the emoji pairs, of which they have seen none: `emoji.npz` holds ranks by model,
`[seeds, 2, pairs]`.
"""

import dataclasses
import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app

from tll_jax import main, program, ranking
from tll_jax.data.emoji import EmojiPairs
from tll_jax.devices import local_mesh
from tll_jax.evaluation.embed import head_embedding
from tll_jax.files import write_arrays
from tll_jax.study.load import load_run
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.settings import Study

STAGES = ("pretrain", "finetune", "evaluate", "report")


def growing(study: Study) -> Iterator[Study]:
    """The study with its first pretraining and seed, with its first two, and so on, all without probes; then whole.

    Fine-tuning i starts from the same pretraining in all of them, so that each reuses the stages of the one before.
    """
    for count in range(1, study.num_pretrainings):
        yield dataclasses.replace(study, num_pretrainings=count, seeds=study.seeds[:count], probe=None)
    yield dataclasses.replace(study, probe=None)
    yield study


def rank_emoji(study: Study, workdir: Path) -> None:
    """Ranks all emoji pairs among themselves, in both directions, with every trained model of the study."""
    pairs = EmojiPairs().open()
    images = pairs.images(range(len(pairs)))
    ranks = {}
    for name in study.models:
        of_seeds = []
        for seed in study.seeds:
            model, evaluate, trained = load_run(workdir / "models" / name / f"seed-{seed}")
            embedder = make_embedder(head_embedding(siamese(model)), evaluate, local_mesh())
            left, right = (embedder(trained.variables, list(side)) for side in (images.left, images.right))
            of_seeds.append(ranking.pair_ranks(left, right, mesh=local_mesh()))
        ranks[name] = np.stack(of_seeds).astype(np.int32)
    write_arrays(workdir / "emoji.npz", compressed=True, **ranks)


def grow(study: Study) -> None:
    """Runs the growing study in the folder of --workdir."""
    workdir = Path(str(main.WORKDIR.value))
    for part in growing(study):
        main.run_study(part, workdir, stages=STAGES, command=shlex.join(["python", *sys.argv]))
        if part is not study:
            rank_emoji(part, workdir)
        logging.info("finished: %d of %d pretrainings", part.num_pretrainings, study.num_pretrainings)


if __name__ == "__main__":
    with program.exiting_at_once(), program.ending("gpu_study", stopped_status=program.GOES_ON):
        app.run(grow, flags_parser=main.parse)

"""A trained arm taken from its run folder, and scored on pairs that its study did not have."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tll_jax import config, ranking, stages
from tll_jax.data.faces import dropped
from tll_jax.devices import make_mesh
from tll_jax.evaluation import metrics


def load_run(folder: Path) -> tuple[config.Arm, config.Evaluate, stages.Trained]:
    """A trained arm from its run folder.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    path = folder / "config.json"
    if not path.exists() or "arm" not in (saved := json.loads(path.read_text())):
        raise FileNotFoundError(
            f"{folder} is not a run folder; one lies at STUDY/arms/<arm>/seed-<k> after fine-tuning"
        )
    arm, evaluate = config.from_json(saved["settings"]), config.from_json(saved["evaluate"])
    target = stages.initial_variables(arm, None, size=evaluate.geometry.size, seed=0)
    variables_path = folder / saved["variables"]
    variables = stages.checkpoint.load_variables(variables_path.resolve(), target)
    return arm, evaluate, stages.Trained(folder=folder, variables=variables)


def evaluate_on(folder: Path, pairs_settings: Any, *, exclude_faces: bool) -> dict[str, Any]:
    """Scores a trained arm on any pair set: all its pairs are queries and each other's candidates.

    Returns:
      The same row that a study's results hold, with chance beside it.
    """
    arm, evaluate, trained = load_run(folder)
    pairs = pairs_settings.open()
    keep = np.arange(len(pairs))
    if exclude_faces:
        keep = keep[~dropped(pairs.num_faces(), "none")]
    if not len(keep):
        raise ValueError("no pair is left to score: every pair shows a face")
    images = pairs.images(keep)
    mesh = make_mesh()
    embedder = stages.make_embedder(stages.head_embedding(stages.siamese(arm)), evaluate, mesh)
    left, right = (embedder(trained.variables, side) for side in (images.left, images.right))
    found = stages.ranks_both_ways(left, right, mesh=mesh)
    name = json.loads((folder / "config.json").read_text())["arm"]
    return {
        "run": str(folder),
        "pairs": config.to_json(pairs_settings),
        "exclude_faces": exclude_faces,
        "skipped": [list(item) for item in pairs.skipped],
        "protocol": {"queries": len(keep), "candidates": len(keep), "paper_k": ranking.paper_k(len(keep))},
        "rows": [metrics.chance_row(len(keep)), metrics.metrics_row(name, "arm", found[None])],
        "comparisons": [],
    }

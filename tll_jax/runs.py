"""A trained arm taken from its run folder, and scored on pairs that its study did not have."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tll_jax import config, ranking, stages
from tll_jax.data.faces import dropped
from tll_jax.devices import make_mesh
from tll_jax.evaluation import metrics
from tll_jax.models.weights import to_torch


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
    # On the host, from where they go to all devices.
    variables = jax.device_get(stages.checkpoint.load_variables(variables_path.resolve(), target))
    return arm, evaluate, stages.Trained(folder=folder, variables=variables)


def export(folder: Path, out: Path) -> int:
    """Writes the backbone of a trained arm as .safetensors, under the names that PyTorch users know it by.

    Its settings stand in the file's metadata. A ResNet of width 64 with the large stem and plain shortcuts fits
    torchvision's, whose classifier it lacks: `load_state_dict(state, strict=False)`, or set `fc` to `Identity` first.

    Returns:
      The number of tensors.

    Raises:
      ImportError: `tll_jax[weights]` is not installed.
      ValueError: `out` is not named .safetensors.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out is {out}; it must end in .safetensors")
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError("export needs the package safetensors: pip install 'tll_jax[weights]'") from error
    arm, _, trained = load_run(folder)
    backbone = {
        collection: values["backbone"] for collection, values in trained.variables.items() if "backbone" in values
    }
    state = to_torch(backbone, arm.backbone.torch_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out, metadata={"format": "pt", "backbone": json.dumps(config.to_json(arm.backbone))})
    return len(state)


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

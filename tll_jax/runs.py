"""A trained arm or a fitted system from its run folder, and what it says of pairs that its study did not have."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tll_jax import config, ranking, stages
from tll_jax.contracts import System
from tll_jax.data.course_edition import read_candidates, write_submission
from tll_jax.data.faces import dropped
from tll_jax.devices import make_mesh
from tll_jax.evaluation import metrics
from tll_jax.evaluation.embed import Embedding
from tll_jax.evaluation.ensemble import kind_of, with_seed
from tll_jax.models.weights import to_torch


def load_run(folder: Path) -> tuple[config.Arm, config.Evaluate, stages.Trained]:
    """A trained arm from its run folder.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    path = folder / "config.json"
    if not path.exists() or "arm" not in (saved := json.loads(path.read_text())):
        raise FileNotFoundError(
            f"{folder} is not a run folder; one lies at STUDY/arms/<arm>/seed-<k> after fine-tuning, those of other "
            "systems at STUDY/systems/<name>"
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


def load_system(folder: Path) -> tuple[str, str, System]:
    """What a run folder ranked, ready to score: its name, its kind, and a trained arm or a fitted system.

    A system keeps nothing but its settings, so it is fitted again, on the same pairs of its study.

    Raises:
      FileNotFoundError: the folder is not a run's, or what it needs is gone.
      ValueError: the study's pairs or their parts have changed.
    """
    if not (folder / "config.json").exists() and (folder / "ranks.npz").exists():
        return _load_fitted(folder.resolve())
    arm, evaluate, trained = load_run(folder)
    embedder = stages.make_embedder(stages.head_embedding(stages.siamese(arm)), evaluate, make_mesh())
    name = json.loads((folder / "config.json").read_text())["arm"]
    return name, "arm", Embedding(embedder=embedder, variables=trained.variables)


def _load_fitted(folder: Path) -> tuple[str, str, System]:
    """From STUDY/systems/<name> or STUDY/systems/<name>/seed-<k>."""
    place = folder.parent if folder.name.startswith("seed-") else folder
    workdir = place.parent.parent
    saved = config.from_json(json.loads((workdir / "config.json").read_text())["settings"])
    if place.name not in saved.systems:
        raise FileNotFoundError(
            f"{folder} is not of a system in config.systems of its study: it cannot be fitted again"
        )
    system, fold = saved.systems[place.name], 0
    if place != folder:
        seed = int(folder.name.removeprefix("seed-"))
        system, fold = with_seed(system, seed), saved.seeds.index(seed)
    pairs = saved.pairs.open()
    manifest = saved.split.make(pairs, fold=fold)
    with np.load(folder / "ranks.npz") as ranks:
        if sorted(ranks["ids"].tolist()) != manifest.test:
            raise ValueError(f"{workdir} tested other pairs than its split draws now: its data or manifest has changed")
    system.fit(*(pairs.images(pairs.indices(ids)) for ids in (manifest.train, manifest.validation)))
    return place.name, kind_of(system), system


def evaluate_on(folder: Path, pairs_settings: Any, *, exclude_faces: bool) -> dict[str, Any]:
    """Scores a trained arm or a fitted system on any pair set: all its pairs are queries and each other's candidates.

    Returns:
      The same row that a study's results hold, with chance beside it.
    """
    pairs = pairs_settings.open()
    keep = np.arange(len(pairs))
    if exclude_faces:
        keep = keep[~dropped(pairs.num_faces(), "none")]
    if not len(keep):
        raise ValueError("no pair is left to score: every pair shows a face")
    name, kind, system = load_system(folder)
    images = pairs.images(keep)
    if isinstance(system, Embedding):
        left, right = (system.embedder(system.variables, side) for side in (images.left, images.right))
        found = stages.ranks_both_ways(left, right, mesh=system.embedder.mesh)
    else:
        sides = (images.left, images.right), (images.right, images.left)
        found = np.stack([ranking.ranks(system.score(*way), np.arange(len(keep))) for way in sides])
    return {
        "run": str(folder),
        "pairs": config.to_json(pairs_settings),
        "exclude_faces": exclude_faces,
        "skipped": [list(item) for item in pairs.skipped],
        "protocol": {"queries": len(keep), "candidates": len(keep), "paper_k": ranking.paper_k(len(keep))},
        "rows": [metrics.chance_row(len(keep)), metrics.metrics_row(name, kind, found[None])],
        "comparisons": [],
    }


def submit(folder: Path, candidates_path: Path, out: Path) -> int:
    """Writes what a trained arm or a fitted system says of the course edition's test; see `data/course_edition.py`.

    Returns:
      The number of queries.
    """
    candidates = read_candidates(candidates_path)
    _, _, system = load_system(folder)
    scores = system.score(candidates.left, candidates.right)
    write_submission(out, candidates.names, np.take_along_axis(scores, candidates.columns, axis=1))
    return len(candidates.names)

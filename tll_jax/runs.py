"""A trained arm or a fitted system from its run folder, and what it says of pairs that its study did not have."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax import config, ranking, stages
from tll_jax.contracts import System
from tll_jax.data.course_edition import read_candidates, write_submission
from tll_jax.data.faces import dropped
from tll_jax.data.folder import ImageFolder
from tll_jax.data.imaging import read_image
from tll_jax.devices import local_mesh, replicated
from tll_jax.errors import InvalidValue, MissingFile, MissingPackage
from tll_jax.evaluation import gallery, metrics
from tll_jax.evaluation.baselines import unit_rows
from tll_jax.evaluation.embed import Embedding
from tll_jax.evaluation.ensemble import kind_of, with_seed
from tll_jax.explain import NUM_REFERENCES, Asked, Explainer
from tll_jax.models.weights import to_torch
from tll_jax.report.explanation import write_explanation
from tll_jax.saliency.menu import TARGETS
from tll_jax.saliency.targets import Target, log_softmax_among, margin_over

FOILED_TARGETS = ("margin", "log-softmax")
"""They compare with other candidates."""


def load_run(folder: Path) -> tuple[config.Arm, config.Evaluate, stages.Trained]:
    """A trained arm from its run folder.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    path = folder / "config.json"
    if not path.exists() or "arm" not in (saved := json.loads(path.read_text())):
        raise MissingFile(
            f"{folder} is not a run folder; one lies at STUDY/arms/<arm>/seed-<k> after fine-tuning, those of other "
            "systems at STUDY/systems/<name>"
        )
    arm, evaluate = config.from_json(saved["settings"]), config.from_json(saved["evaluate"])
    # Shapes are enough to read into: nothing is compiled.
    target = stages.initial_shapes(stages.siamese(arm), size=evaluate.geometry.size)
    variables = stages.checkpoint.load_variables((folder / saved["variables"]).resolve(), target)
    return arm, evaluate, stages.Trained(folder=folder, read=lambda: variables)


def export(folder: Path, out: Path) -> int:
    """Writes the backbone of a trained arm as .safetensors, under the names that PyTorch users know it by.

    Its settings stand in the file's metadata. A ResNet of width 64 with the large stem and plain shortcuts fits
    torchvision's, whose classifier it lacks: `load_state_dict(state, strict=False)`, or set `fc` to `Identity` first.
    Running variances are biased, where PyTorch's own training keeps unbiased ones; the metadata say so, for a batch's
    size, which would be needed to convert them, is not known of every one that they remember.

    Returns:
      The number of tensors.

    Raises:
      ImportError: `tll_jax[weights]` is not installed.
      ValueError: `out` is not named .safetensors.
    """
    if out.suffix != ".safetensors":
        raise InvalidValue(f"--out is {out}; it must end in .safetensors")
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingPackage("export needs the package safetensors: pip install 'tll_jax[weights]'") from error
    arm, _, trained = load_run(folder)
    backbone = {
        collection: values["backbone"] for collection, values in trained.variables.items() if "backbone" in values
    }
    state = to_torch(backbone, arm.backbone.torch_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "backbone": json.dumps(config.to_json(arm.backbone)), "running_var": "biased"}
    save_file(state, out, metadata=metadata)
    return len(state)


def embed(
    folder: Path, images: str, out: Path, *, shard_size: int, process: int, num_processes: int
) -> Iterator[gallery.Shard]:
    """Embeds this process's shards of the images below a folder or in a zip; see `evaluation/gallery.py`.

    Returns:
      Each shard when it is done.

    Raises:
      FileNotFoundError: the folder is not a run's, or nothing is at `images`.
      ValueError: there are no images, `out` holds another gallery, or of a shard no image can be read.
    """
    arm, evaluate, trained = load_run(folder)
    network, mesh = stages.siamese(arm), local_mesh()
    command = ["tll", "embed", str(folder), images, "--out", str(out)]
    plan = gallery.Plan(
        network=gallery.content_hash(trained.variables),
        settings={
            "backbone": config.to_json(arm.backbone),
            "head": config.to_json(arm.head),
            "dtype": arm.finetune.loop.dtype if arm.finetune else "float32",
            "geometry": config.to_json(evaluate.geometry),
        },
        images=ImageFolder(path=images).open(held_out=frozenset(), shortest_side=evaluate.geometry.shortest_side),
        shard_size=shard_size,
        command=shlex.join([*command, "--shard-size", str(shard_size)]),
    )
    embedder = stages.make_embedder(stages.head_embedding(network), evaluate, mesh)
    variables = jax.device_put(trained.variables, replicated(mesh))
    return gallery.write_gallery(plan, out, embedder, variables, process=process, num_processes=num_processes)


def open_explainer(folder: Path) -> Explainer:
    """A trained arm from its run folder, ready to explain pairs; test images that its study kept are its references.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    arm, evaluate, trained = load_run(folder)
    kept = sorted((_study_of(folder) / "images" / "left").glob("*.png"))
    references = [read_image(path) for path in kept[:NUM_REFERENCES]]
    return Explainer(arm=arm, evaluate=evaluate, variables=trained.variables, references=references)


def explain_files(
    folder: Path, left: Path, right: Path, foils: Sequence[Path], out: Path, asked: Asked, *, target: str, signed: bool
) -> Path:
    """Explains two image files; returns the page's path.

    Raises:
      ValueError: a file is no image, or the target needs foils and there are none.
    """
    explainer = open_explainer(folder)
    left_image, right_image = read_image(left), read_image(right)
    others = explainer.embed([read_image(path) for path in foils]) if foils else None
    chosen = choose_target(target, explainer.embed([left_image])[0], others)
    asked = dataclasses.replace(asked, target=chosen, target_name=target)
    (found,) = explainer([left_image], [right_image], [(left.name, right.name)], asked)
    return write_explanation(found, out, signed=signed)


def explain_query(
    folder: Path, query: str, out: Path, asked: Asked, *, num_candidates: int, target: str, signed: bool
) -> list[Path]:
    """Explains a query beside its nearest candidates among the right images of the run's test pairs.

    `query` is a test pair's id, whose left image asks and whose match is explained too, or an image file.

    Returns:
      The pages, one folder a candidate, nearest first.

    Raises:
      ValueError: the query is neither.
    """
    explainer = open_explainer(folder)
    with np.load(folder / "embeddings.npz") as saved:
        ids, candidates = saved["ids"].tolist(), saved["right"]
    images = _study_of(folder) / "images"
    if query not in ids and not Path(query).is_file():
        raise InvalidValue(f"the query {query!r} is neither an image file nor one of the test pairs, such as {ids[0]}")
    path = images / "left" / f"{query}.png" if query in ids else Path(query)
    asking = read_image(path)
    embedding = explainer.embed([asking])[0]
    order = np.argsort(-(unit_rows(candidates) @ embedding), kind="stable")
    chosen = [int(at) for at in order[:num_candidates]]
    if query in ids and ids.index(query) not in chosen:
        chosen.append(ids.index(query))
    # The foils of each candidate are the others, so that each has a target of its own.
    groups = [[at] for at in chosen] if target in FOILED_TARGETS else [chosen]
    ranks = {at: int(np.flatnonzero(order == at)[0]) + 1 for at in chosen}
    pages = []
    for group in groups:
        others = np.delete(candidates, group, axis=0)
        asked = dataclasses.replace(asked, target=choose_target(target, embedding, others), target_name=target)
        found = explainer(
            [asking] * len(group),
            [read_image(images / "right" / f"{ids[at]}.png") for at in group],
            [(path.stem, f"{ids[at]} (rank {ranks[at]})") for at in group],
            asked,
        )
        pages += [
            write_explanation(one, out / f"{ranks[at]:03d}-{ids[at]}", signed=signed)
            for at, one in zip(group, found, strict=True)
        ]
    return pages


def choose_target(name: str, query: np.ndarray, others: np.ndarray | None) -> Target:
    """A target by its name; `others` are embeddings of further candidates, of which the nearest is the margin's foil.

    Raises:
      ValueError: no such target, or it needs other candidates.
    """
    if name in TARGETS:
        return TARGETS[name]
    if name not in FOILED_TARGETS:
        raise InvalidValue(f"there is no target {name!r}; there are {', '.join((*TARGETS, *FOILED_TARGETS))}")
    if others is None:
        raise InvalidValue(f"the target {name} needs something to compare with: give --foil FILE, or ask with --query")
    if name == "log-softmax":
        return log_softmax_among(jnp.asarray(others))
    return margin_over(jnp.asarray(others[np.argmax(unit_rows(others) @ query)]))


def _study_of(folder: Path) -> Path:
    return folder.resolve().parent.parent.parent


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
    embedder = stages.make_embedder(stages.head_embedding(stages.siamese(arm)), evaluate, local_mesh())
    name = json.loads((folder / "config.json").read_text())["arm"]
    return name, "arm", Embedding(embedder=embedder, variables=trained.variables)


def _load_fitted(folder: Path) -> tuple[str, str, System]:
    """From STUDY/systems/<name> or STUDY/systems/<name>/seed-<k>."""
    place = folder.parent if folder.name.startswith("seed-") else folder
    workdir = place.parent.parent
    saved = config.from_json(json.loads((workdir / "config.json").read_text())["settings"])
    if place.name not in saved.systems:
        raise MissingFile(f"{folder} is not of a system in config.systems of its study: it cannot be fitted again")
    system, fold = saved.systems[place.name], 0
    if place != folder:
        seed = int(folder.name.removeprefix("seed-"))
        system, fold = with_seed(system, seed), saved.seeds.index(seed)
    pairs = saved.pairs.open()
    manifest = saved.split.make(pairs, fold=fold)
    with np.load(folder / "ranks.npz") as ranks:
        if sorted(ranks["ids"].tolist()) != manifest.test:
            raise InvalidValue(
                f"{workdir} tested other pairs than its split draws now: its data or manifest has changed"
            )
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
        raise InvalidValue("no pair is left to score: every pair shows a face")
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

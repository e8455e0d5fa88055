"""A trained arm or a fitted system from its run folder, and what it says of pairs that its study did not have."""

import dataclasses
import json
import logging
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax import ranking, serialize
from tll_jax.contracts import PairImages, PairSource, System
from tll_jax.data.course_edition import Candidates, read_candidates, write_submission
from tll_jax.data.faces import dropped
from tll_jax.data.folder import ImageFolder, ImagesOfPairs
from tll_jax.data.imaging import read_image
from tll_jax.data.pairs import in_threads
from tll_jax.data.pipeline import open_readers
from tll_jax.data.seen import Overlap, SeenPictures, overlap
from tll_jax.data.splits import Manifest
from tll_jax.devices import local_mesh, replicated
from tll_jax.errors import InvalidValue, MissingFile, UserError, missing_package
from tll_jax.evaluation import gallery, metrics
from tll_jax.evaluation.embed import Embedding, head_embedding
from tll_jax.evaluation.ensemble import kind_of, with_seed
from tll_jax.files import check_writable, file_name, read_arrays, read_json, write_whole
from tll_jax.models.weights import to_torch
from tll_jax.report import numbers
from tll_jax.report.explanation import write_explanation
from tll_jax.saliency.menu import TARGETS
from tll_jax.saliency.targets import Target, log_softmax_among, margin_over
from tll_jax.settings import validate
from tll_jax.study.explain import NUM_REFERENCES, Asked, Explainer
from tll_jax.study.folder import Trained, picture_path, read_mark, read_picture
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.settings import Arm, Evaluate
from tll_jax.training import checkpoint
from tll_jax.training.state import initial_shapes

logger = logging.getLogger(__name__)

FOILED_TARGETS = ("margin", "log-softmax")
"""They compare with other candidates."""


def read_run(folder: Path) -> dict[str, Any]:
    """What the run folder of a trained arm says of it.

    Raises:
      FileNotFoundError: the folder is not a run's.
    """
    path = folder / "config.json"
    saved = read_json(path) if path.exists() else {}
    if "arm" not in saved:
        raise MissingFile(
            f"{folder} is not a run folder; one lies at STUDY/arms/<arm>/seed-<k> after fine-tuning, those of other "
            "systems at STUDY/systems/<name>"
        )
    return saved


def load_run(folder: Path, *, trusted: Collection[str] = ()) -> tuple[Arm, Evaluate, Trained]:
    """A trained arm from its run folder.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    saved = read_run(folder)
    arm, evaluate = (serialize.from_json(saved[name], trusted=trusted) for name in ("settings", "evaluate"))
    # Shapes are enough to read into: nothing is compiled.
    target = initial_shapes(siamese(arm), size=evaluate.geometry.size)
    variables = checkpoint.load_variables((folder / saved["variables"]).resolve(), target)
    return arm, evaluate, Trained(folder=folder, read=lambda: variables)


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
    check_writable(out)
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise missing_package("export", "weights") from error
    arm, _, trained = load_run(folder)
    backbone = {
        collection: values["backbone"] for collection, values in trained.variables.items() if "backbone" in values
    }
    state = to_torch(backbone, arm.backbone.torch_name)
    metadata = {"format": "pt", "backbone": json.dumps(serialize.to_json(arm.backbone)), "running_var": "biased"}
    write_whole(out, save(state, metadata=metadata))
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
    network, mesh = siamese(arm), local_mesh()
    command = ["tll", "embed", str(folder), images, "--out", str(out)]
    plan = gallery.Plan(
        network=gallery.content_hash(trained.variables),
        settings={
            "backbone": serialize.to_json(arm.backbone),
            "head": serialize.to_json(arm.head),
            "dtype": arm.finetune.loop.dtype if arm.finetune else "float32",
            "geometry": serialize.to_json(evaluate.geometry),
        },
        images=ImageFolder(path=images).open(held_out=frozenset(), shortest_side=evaluate.geometry.shortest_side),
        shard_size=shard_size,
        command=shlex.join([*command, "--shard-size", str(shard_size)]),
    )
    variables = jax.device_put(trained.variables, replicated(mesh))

    def shards() -> Iterator[gallery.Shard]:
        with open_readers(mesh) as readers:
            embedder = make_embedder(head_embedding(network), evaluate, mesh, readers)
            yield from gallery.write_gallery(
                plan, out, embedder, variables, process=process, num_processes=num_processes
            )

    return shards()


def open_explainer(folder: Path, *, trusted: Collection[str] = ()) -> Explainer:
    """A trained arm from its run folder, ready to explain pairs; test images that its study kept are its references.

    Raises:
      FileNotFoundError: the folder is not a run's, or its variables are gone.
    """
    arm, evaluate, trained = load_run(folder, trusted=trusted)
    kept = sorted((_study_of(folder) / "images" / "left").glob("*.png"))
    references = [read_picture(path) for path in kept[:NUM_REFERENCES]]
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
    _refuse_old_embeddings(folder)
    explainer = open_explainer(folder)
    saved = read_arrays(folder / "embeddings.npz")
    ids, candidates = saved["ids"].tolist(), saved["right"]
    study = _study_of(folder)
    if query in ids:
        match: int | None = ids.index(query)
        asking, embedding = read_picture(picture_path(study, "left", query)), saved["left"][match]
    elif _is_file(query):
        match = None
        asking = read_image(Path(query))
        embedding = explainer.embed([asking])[0]
    else:
        raise InvalidValue(
            f"the query {query!r} is neither an image file nor one of the test pairs, such as {ids[0]!r}"
        )
    chosen = ranking.embedding_top_k(embedding[None], candidates, num_candidates, mesh=local_mesh())[0].tolist()
    if match is not None and match not in chosen:
        chosen.append(match)
    # The foils of each candidate are the others, so that each has a target of its own.
    groups = [[at] for at in chosen] if target in FOILED_TARGETS else [chosen]
    asked_often = np.repeat(embedding[None], len(chosen), axis=0)
    found_ranks = ranking.embedding_ranks(asked_often, candidates, np.array(chosen), mesh=local_mesh())
    ranks = dict(zip(chosen, found_ranks.tolist(), strict=True))
    pages = []
    for group in groups:
        others = np.delete(candidates, group, axis=0)
        asked = dataclasses.replace(asked, target=choose_target(target, embedding, others), target_name=target)
        found = explainer(
            [asking] * len(group),
            [read_picture(picture_path(study, "right", ids[at])) for at in group],
            [(query if match is not None else Path(query).stem, f"{ids[at]} (rank {ranks[at]})") for at in group],
            asked,
        )
        pages += [
            write_explanation(one, out / f"{ranks[at]:03d}-{file_name(ids[at])}", signed=signed)
            for at, one in zip(group, found, strict=True)
        ]
    return pages


def _refuse_old_embeddings(folder: Path) -> None:
    """Raises ValueError where the embeddings in a run folder are not its variables'."""
    key = read_run(folder).get("key")
    # Runs of 0.1.0 do not say.
    if key is not None and read_mark(folder, "evaluate").get("key") != key:
        raise InvalidValue(
            f"the embeddings in {folder} are older than what it was trained with last: run its study again, with "
            "evaluate in --stages"
        )


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
    (nearest,) = ranking.embedding_top_k(query[None], others, 1, mesh=local_mesh())[0]
    return margin_over(jnp.asarray(others[nearest]))


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        # Longer than a path may be, or with a NUL in it.
        return False


def _study_of(folder: Path) -> Path:
    """From STUDY/arms/<arm>/seed-<k>, STUDY/systems/<name> or STUDY/systems/<name>/seed-<k>."""
    place = folder.resolve()
    return (place.parent if place.name.startswith("seed-") else place).parent.parent


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
    embedder = make_embedder(head_embedding(siamese(arm)), evaluate, local_mesh())
    name = read_json(folder / "config.json")["arm"]
    return name, "arm", Embedding(embedder=embedder, variables=trained.variables)


def _load_fitted(folder: Path) -> tuple[str, str, System]:
    """From STUDY/systems/<name> or STUDY/systems/<name>/seed-<k>."""
    place = folder.parent if folder.name.startswith("seed-") else folder
    workdir = place.parent.parent
    saved = serialize.from_json(read_json(workdir / "config.json")["settings"])
    if place.name not in saved.systems:
        raise MissingFile(f"{folder} is not of a system in config.systems of its study: it cannot be fitted again")
    system, fold = saved.systems[place.name], 0
    if place != folder:
        seed = int(folder.name.removeprefix("seed-"))
        system, fold = with_seed(system, seed), saved.seeds.index(seed)
    pairs = saved.pairs.open()
    manifest = saved.split.make(pairs, fold=fold)
    if sorted(read_arrays(folder / "ranks.npz")["ids"].tolist()) != manifest.test:
        raise InvalidValue(f"{workdir} tested other pairs than its split draws now: its data or manifest has changed")
    system.fit(*(pairs.images(pairs.indices(ids)) for ids in (manifest.train, manifest.validation)))
    return place.name, kind_of(system), system


class Learned(NamedTuple):
    """What a run was trained, validated or pretrained on, as far as it can be told."""

    pictures: list[SeenPictures]
    untold: list[str]
    """Sentences that say what cannot be told."""


def learned_from(folder: Path, kind: str, system: System) -> Learned:
    """The pictures that what `load_system` found in a run folder has learned from, by the split of its study."""
    if kind != "arm" and _learns_nothing(system):
        return Learned([], [])
    study = _study_of(folder)
    # The run's own, of the settings that it was trained with; runs of 0.1.0 have the study's alone.
    path = next((path for path in (folder / "split.json", study / "split.json") if path.exists()), None)
    if path is None:
        return Learned([], [f"Whether it has learned from some of them cannot be told: {folder} lies in no study."])
    manifest = Manifest.load(path)
    if not manifest.hashes:
        return Learned([], [f"Whether it has learned from some of them cannot be told: {path} has no content hashes."])
    hashes = [content for identity in (*manifest.train, *manifest.validation) for content in manifest.hashes[identity]]

    def open_pairs() -> PairSource:
        return serialize.from_json(read_json(study / "config.json")["settings"]["pairs"]).open()

    learned = Learned([SeenPictures(hashes=hashes, open=open_pairs)], [])
    arm = serialize.from_json(read_run(folder)["settings"]) if kind == "arm" else None
    if arm is None or arm.pretrain is None:
        return learned
    images = arm.pretrain.images
    if not isinstance(images, ImagesOfPairs):
        return learned._replace(untold=["The images of its pretraining, which are no pairs, were not compared."])
    held_out = frozenset() if arm.pretrain.sees_test_images else frozenset(manifest.test)
    try:
        hashes = images.open(held_out=held_out).hashes
    except (UserError, OSError) as error:
        return learned._replace(untold=[f"The images of its pretraining could not be compared: {error}."])
    return learned._replace(pictures=[*learned.pictures, SeenPictures(hashes=hashes, open=images.pairs.open)])


def _learns_nothing(system: Any) -> bool:
    """Whether a system that is no arm says the same without having seen any pair."""
    nothing = PairImages(ids=[], left=[], right=[], groups=np.zeros(0, np.int32))
    try:
        dataclasses.replace(system).fit(nothing, nothing)
    except ValueError:
        return False
    return True


def evaluate_on(
    folder: Path, pairs_settings: Any, *, exclude_faces: bool, include_training: bool = False
) -> dict[str, Any]:
    """Scores a trained arm or a fitted system on any pair set: all its pairs are queries and each other's candidates.

    Pairs that share a picture with those that it was trained, validated or pretrained on are left out, unless
    `include_training`; the figures would be too good for them.

    Returns:
      The same row that a study's results hold, with chance beside it, and under "learned_from" how many such pairs
      there are, None where it cannot be told.

    Raises:
      ValueError: no pair is left.
    """
    if exclude_faces:
        # Before minutes of reading, whether faces can be found.
        validate(pairs_settings, path="--pairs")
    pairs = pairs_settings.open()
    keep = np.ones(len(pairs), bool)
    if exclude_faces:
        keep &= ~dropped(pairs.num_faces(), "none")
    if not keep.any():
        raise InvalidValue("no pair is left to score: every pair shows a face")
    name, kind, system = load_system(folder)
    known = learned_from(folder, kind, system)
    found = overlap(pairs, known.pictures, getattr(pairs_settings, "duplicates", None))
    told = _learned_words(found, known, keep, include_training=include_training)
    if not include_training:
        keep &= ~(found.equal | found.similar)
    if not keep.any():
        raise InvalidValue(
            f"no pair is left to score: {folder} was trained, validated or pretrained on all of them. Give other "
            "pairs, or --include-training"
        )
    images = pairs.images(np.flatnonzero(keep))
    if isinstance(system, Embedding):
        left, right = (system.embedder(system.variables, side) for side in (images.left, images.right))
        ranks = ranking.pair_ranks(left, right, mesh=system.embedder.mesh)
    else:
        sides = (images.left, images.right), (images.right, images.left)
        ranks = np.stack([ranking.ranks(system.score(*way), np.arange(len(images.ids))) for way in sides])
    num = len(images.ids)
    return {
        "run": str(folder),
        "pairs": serialize.to_json(pairs_settings),
        "exclude_faces": exclude_faces,
        "skipped": [list(item) for item in pairs.skipped],
        "learned_from": told,
        "protocol": {"queries": num, "candidates": num, "paper_k": ranking.paper_k(num), "queried": "pair"},
        "rows": [metrics.chance_row(num), metrics.metrics_row(name, kind, ranks[None])],
        "comparisons": [],
    }


def _learned_words(found: Overlap, known: Learned, keep: np.ndarray, *, include_training: bool) -> dict[str, Any]:
    """How many of the pairs that are to be scored were learned from, in numbers and sentences."""
    equal, similar = (int(np.sum(which & keep)) for which in (found.equal, found.similar))
    words, seen, of = list(known.untold), equal + similar, f"of {numbers.plural(int(keep.sum()), 'pair')}"
    how = f"({equal:,} the same by content, {similar:,} nearly the same)"
    if known.pictures and found.not_looked_for:
        words.insert(0, f"Pictures that are nearly the same were not looked for: {found.not_looked_for}.")
        how = "(the same by content)"
    if seen and include_training:
        words.insert(0, f"{seen:,} {of} show a picture that it has learned from {how}: expect less of new pairs.")
    elif seen:
        words.insert(0, f"{seen:,} {of} are left out: they show a picture that it has learned from {how}.")
    elif known.pictures:
        words.insert(0, f"None {of} shows a picture that it has learned from.")
    counts = {"pairs": seen, "equal": equal, "similar": None if found.not_looked_for else similar}
    told = counts if known.pictures or not known.untold else dict.fromkeys(counts)
    return told | {"left_out": not include_training, "words": words}


def submit(folder: Path, candidates_path: Path, out: Path) -> int:
    """Writes what a trained arm or a fitted system says of the course edition's test; see `data/course_edition.py`.

    Returns:
      The number of queries.
    """
    candidates = read_candidates(candidates_path)
    _, kind, system = load_system(folder)
    _warn_of_learned(folder, learned_from(folder, kind, system), candidates)
    scores = system.score(candidates.left, candidates.right)
    write_submission(out, candidates.names, np.take_along_axis(scores, candidates.columns, axis=1))
    return len(candidates.names)


def _warn_of_learned(folder: Path, learned: Learned, candidates: Candidates) -> None:
    """Warns of pictures, equal by content, that the run has learned from."""
    known = {content for part in learned.pictures for content in part.hashes}
    sides = (candidates.left, candidates.right)
    crops = [(crop, side.archive) for side in sides for crop in side.crops]
    hashes = in_threads(lambda item: item[0].check(item[1]), crops, "compare pictures")
    if count := sum(content in known for content in hashes):
        logger.warning("%s has learned from %d of the %d pictures that it is asked about", folder, count, len(hashes))

"""The stages of one arm: pretrain, fine-tune, evaluate, explain, each skipped when done and its inputs unchanged.

Training outputs live in `WORKDIR/stages/<stage>-<hash>`, the hash taken over the stage's settings and inputs, so arms
and seeds with equal pretraining share it. What belongs to one trained arm lives in `WORKDIR/arms/<arm>/seed-<k>`.
"""

import copy
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tll_jax import processes, ranking, serialize
from tll_jax.contracts import (
    Activation,
    Augment,
    Geometry,
    ImageSource,
    Objective,
    Optimizer,
    PairImages,
    PairSource,
)
from tll_jax.data import pipeline
from tll_jax.data.splits import Manifest
from tll_jax.devices import replicated, split_from
from tll_jax.errors import DamagedFile, InvalidValue
from tll_jax.evaluation.embed import Embedder, Embedding, head_embedding, pooled_embedding
from tll_jax.evaluation.probes import NEIGHBORS, OpenedProbe
from tll_jax.files import file_name, read_arrays, read_json, write_arrays, write_json
from tll_jax.models.network import Network, trainable_mask
from tll_jax.models.weights import content_of, load_backbone, weights_in
from tll_jax.saliency.gradients import gradient
from tll_jax.saliency.menu import Method
from tll_jax.saliency.side_by_side import explainer
from tll_jax.saliency.targets import mse
from tll_jax.serialize import Fingerprint
from tll_jax.study.settings import Arm, Evaluate, Explain, Finetune, Loop, Pretrain
from tll_jax.training import checkpoint, loop, records
from tll_jax.training.collapse import collapse_warning
from tll_jax.training.optimizers import freeze
from tll_jax.training.state import TrainState, init_variables, initial_shapes, make_state
from tll_jax.training.step import make_step

logger = logging.getLogger(__name__)

FORMAT = 3
"""Part of every stage's hash: raised when the same settings come to mean another computation."""

MOST_PROGRAMS = 32
"""How many training programs are kept."""

NUM_SHOWN = 5
"""How many nearest candidates of each query a run folder keeps for the report."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all stages of a study share, opened once."""

    workdir: Path
    pairs: PairSource
    mesh: Mesh
    readers: pipeline.Readers


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training stage: where it lies and what it learned, read when asked for."""

    folder: Path
    read: Callable[[], dict[str, Any]]

    @property
    def variables(self) -> dict[str, Any]:
        """Numpy arrays."""
        return self.read()


def pretrain_key(arm: Arm, images: ImageSource | None) -> Fingerprint | None:
    """The hash of what the backbone starts from, or None where that is random weights.

    Images and weight files count by what they hold, not by where they lie or how they are read.
    """
    if arm.weights is not None:
        return serialize.fingerprint({"format": FORMAT, "backbone": arm.backbone, "weights": content_of(arm.weights)})
    if arm.pretrain is None or images is None:
        return None
    settings = {field.name: getattr(arm.pretrain, field.name) for field in dataclasses.fields(arm.pretrain)}
    return serialize.fingerprint(
        {"format": FORMAT, "backbone": arm.backbone, "pretrain": settings | {"images": images.digest()}}
    )


def finetune_key(
    arm: Arm,
    pretrained: Fingerprint | None,
    manifest: Manifest,
    pairs: PairSource,
    geometry: Geometry,
    *,
    seed: int,
) -> Fingerprint:
    """The hash of a fine-tuning stage.

    `geometry` is that of the evaluation: the images that the validation pairs are ranked by, which chooses the
    checkpoint, and whose size a head on whole maps is made for. How many are embedded at a time changes rounding alone.
    """
    return serialize.fingerprint(
        {
            "format": FORMAT,
            "backbone": arm.backbone,
            "head": arm.head,
            "finetune": arm.finetune,
            "evaluate": geometry,
            "pretrained": pretrained,
            "pairs": pairs.digest(),
            "groups": pairs.groups.tolist(),
            "train": tuple(manifest.train),
            "validation": tuple(manifest.validation),
            "seed": seed,
        }
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Pairs that one system ranks among each other: where its ranks lie, and what they follow from."""

    label: str
    """What messages call it."""
    folder: Path
    ids: Sequence[str]
    """Of the pairs, in the order of the ranks."""
    inputs: Mapping[str, Any]
    """Settings, keys and content hashes, by what messages call them."""

    @cached_property
    def fingerprints(self) -> dict[str, Fingerprint]:
        """Of each input, of the pairs' ids, and of what the files of weights hold that the settings name."""
        held = [content_of(weights) for value in self.inputs.values() for weights in weights_in(value)]
        everything = {**self.inputs, "pairs ranked": tuple(self.ids), "files of weights": held}
        return {name: serialize.fingerprint(value) for name, value in everything.items()}

    @cached_property
    def key(self) -> Fingerprint:
        """The hash of all that changes the ranks: what is written must be of it, and what is read."""
        return serialize.fingerprint({"format": FORMAT, **self.fingerprints})

    @property
    def is_there(self) -> bool:
        """Whether there are ranks, of whatever key."""
        return rank_files(self.folder)[0].exists()

    def mark(self, **facts: Any) -> None:
        """Written last: the ranks in the folder are these."""
        mark_done(self.folder, self.key, "evaluate", inputs=self.fingerprints, **facts)

    def check(self) -> None:
        """Raises ValueError where the ranks in the folder follow from anything else; says what, and the mend."""
        mark = read_mark(self.folder, "evaluate")
        if is_of(mark, self.key):
            return
        before = mark.get("inputs", {})
        now = {name: (value, value.former) for name, value in self.fingerprints.items()}
        differing = sorted(name for name in now.keys() | before.keys() if before.get(name) not in now.get(name, ()))
        if not mark:
            reason = "their evaluation was cut short"
        elif not before or not differing:
            reason = "another version of tll_jax made them"
        else:
            reason = f"made with other {' and '.join(differing)}"
        raise outdated(f"the ranks of {self.label}", self.folder, reason, stage="evaluate")

    def read(self) -> np.ndarray:
        """int `[2, pairs]`: the ranks left to right, right to left.

        Raises:
          ValueError: those that are there follow from other settings or data, or are not of these pairs.
        """
        self.check()
        path = rank_files(self.folder)[0]
        saved = read_arrays(path)
        if saved["ids"].tolist() != list(self.ids):
            raise InvalidValue(
                f"{path} does not hold the ranks of the {len(self.ids)} pairs that {self.label} is judged on, in their "
                f"order: delete it, and add evaluate to --stages"
            )
        return np.stack([saved["left_to_right"], saved["right_to_left"]])


def explain_key(evaluation: Evaluation, settings: Explain) -> Fingerprint:
    """The hash of the explanations of an arm's pairs of best and of worst rank, and of their pages."""
    return serialize.fingerprint([evaluation.key, settings])


def outdated(what: str, folder: Path, reason: str, *, stage: str) -> InvalidValue:
    """The error for what lies in a study's folder and does not follow from its settings."""
    return InvalidValue(f"{what} in {folder} are not of these settings: {reason}. Add {stage} to --stages")


def is_of(mark: Mapping[str, Any], key: Fingerprint) -> bool:
    """Whether a finished stage's mark has this key, by the present rule or by the one before tags."""
    return mark.get("key") in (key, key.former)


def stage_folder(workdir: Path, stage: str, key: Fingerprint) -> Path:
    """The folder of a training stage; one that was finished under its former name keeps that."""
    former = workdir / "stages" / f"{stage}-{key.former}"
    return former if read_mark(former, stage) else workdir / "stages" / f"{stage}-{key}"


def is_done(folder: Path, key: Fingerprint, stage: str) -> bool:
    """Whether `stage` has finished in `folder` with the settings and inputs that `key` stands for, and the variables
    that it trained are still whole."""
    mark = read_mark(folder, stage)
    return is_of(mark, key) and checkpoint.are_whole(folder / "variables", mark.get("variables", {}))


def read_mark(folder: Path, stage: str) -> dict[str, Any]:
    """What `mark_done` wrote; nothing where the stage has not finished, or its mark cannot be read."""
    path = folder / f"{stage}.done.json"
    try:
        mark = read_json(path)
    except FileNotFoundError:
        return {}
    except DamagedFile:
        logger.warning("%s cannot be read: counted as not done", path)
        return {}
    return mark if isinstance(mark, dict) else {}


def unmark(folder: Path, *stages: str) -> None:
    """Comes before what a stage has left is replaced: cut short then, it must not pass for what it was."""
    for stage in stages:
        (folder / f"{stage}.done.json").unlink(missing_ok=True)


def can_be_read(*paths: Path) -> bool:
    """Whether all arrays of finished stages can be read; a warning names one that is damaged."""
    try:
        for path in paths:
            read_arrays(path)
    except FileNotFoundError:
        return False
    except DamagedFile as error:
        logger.warning("made anew, for %s", error)
        return False
    return True


def mark_done(folder: Path, key: Fingerprint, stage: str, **facts: Any) -> None:
    """Written last, so that a stage cut short is never taken for done."""
    write_json(folder / f"{stage}.done.json", {"key": key, **facts})


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
    trained = Trained(folder=folder, read=partial(checkpoint.load_variables, folder / "variables", shapes))
    if processes.from_first(is_done(folder, key, "pretrain")):
        logger.info("pretrain %s: up to date, skipped (%s)", name, folder)
        return trained
    variables = init_variables(network, size=settings.geometry.size, seed=settings.seed)
    if processes.is_first():
        write_json(folder / "config.json", {"stage": "pretrain", "settings": serialize.to_json(settings)})
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
        mark_done(folder, key, "pretrain", **_trained(folder), skipped=[list(item) for item in images.skipped])
    return trained


def ready_made(arm: Arm) -> Trained | None:
    """The arm's backbone as its weight file has it; None for an arm without one.

    Raises:
      FileNotFoundError, ImportError, ValueError: the file is not there, or its weights are not this backbone's.
    """
    if arm.weights is None:
        return None
    variables = load_backbone(arm.backbone, arm.weights)
    under = {collection: {"backbone": values} for collection, values in variables.items()}
    return Trained(folder=arm.weights.find().parent, read=lambda: under)


def pretraining_network(arm: Arm, *, num_classes: int) -> Network:
    """The arm's backbone under the head of its pretraining objective."""
    settings = arm.pretrain
    assert settings is not None
    head = settings.objective.head(num_classes=num_classes)
    assert head is not None, "a pretraining objective brings its own head"
    dtype = jnp.dtype(settings.loop.dtype)
    return Network(
        backbone=arm.backbone.build(dtype=dtype),
        head=head.build(dtype=dtype),
        rematerialize=settings.loop.rematerialize,
    )


def training_network(arm: Arm, stage: str, *, num_classes: int) -> Network:
    """The network that "pretrain" or "finetune" trains; images with classes matter to the first alone."""
    return pretraining_network(arm, num_classes=num_classes) if stage == "pretrain" else siamese(arm)


def siamese(arm: Arm) -> Network:
    """The network that embeds one image: backbone and the arm's head."""
    finetuning = arm.finetune
    dtype = jnp.dtype(finetuning.loop.dtype if finetuning else "float32")
    return Network(
        backbone=arm.backbone.build(dtype=dtype),
        head=arm.head.build(dtype=dtype),
        frozen_stages=finetuning.frozen_stages if finetuning else 0,
        rematerialize=finetuning.loop.rematerialize if finetuning else False,
    )


def explainable(arm: Arm, *, activation: Activation = nn.relu) -> Network:
    """The arm's network for saliency maps: fp32, no stage frozen, for frozen ones pass no gradient to the image, and
    with the given way back through the ReLUs of its backbone."""
    return Network(
        backbone=arm.backbone.build(dtype=jnp.float32, activation=activation), head=arm.head.build(dtype=jnp.float32)
    )


def initial_variables(arm: Arm, pretrained: Trained | None, *, size: int, seed: int) -> dict[str, Any]:
    """The Siamese network before fine-tuning: a new head on the pretrained, ready-made or random backbone."""
    variables = init_variables(siamese(arm), size=size, seed=seed)
    if pretrained is None:
        return variables
    learned = pretrained.variables
    # AlexNet and VGG have no batch statistics.
    return {
        collection: values | ({"backbone": learned[collection]["backbone"]} if "backbone" in values else {})
        for collection, values in variables.items()
    }


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
    trained = Trained(folder=folder, read=partial(checkpoint.load_variables, folder / "variables", shapes))
    if processes.from_first(is_done(folder, key, "finetune")):
        logger.info("%s: up to date, skipped (%s)", label, folder)
        return trained
    variables = initial_variables(arm, pretrained, size=size, seed=seed)
    if processes.is_first():
        write_json(folder / "config.json", {"stage": "finetune", "seed": seed, "settings": serialize.to_json(settings)})
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
        mark_done(folder, key, "finetune", **_trained(folder))
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
    checkpoint.save_variables(folder / "variables", state.variables, step=settings.loop.num_steps)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that a training stage's program follows from, copied; two are equal where all their values are."""

    fingerprint: str
    objective: Objective = field(compare=False)
    augments: tuple[Augment, Augment] = field(compare=False)
    optimizer: Optimizer = field(compare=False)
    loop: Loop = field(compare=False)
    frozen_stages: int | None = field(compare=False)
    """None where none can be frozen."""


def recipe_of(settings: Pretrain | Finetune) -> Recipe:
    """What of a stage's settings its program follows from: no seed, no data, nor when to log, save or evaluate."""
    parts: dict[str, Any] = {
        "objective": settings.objective,
        "augments": settings.augments,
        "optimizer": settings.optimizer,
        "frozen_stages": settings.frozen_stages if isinstance(settings, Finetune) else None,
    }
    names = ("num_steps", "batch_size", "microbatches", "split_from")
    fingerprint = serialize.fingerprint(parts | {name: getattr(settings.loop, name) for name in names})
    # Traced later and kept: what is set in the settings meanwhile must not reach them.
    return Recipe(fingerprint=fingerprint, loop=copy.deepcopy(settings.loop), **copy.deepcopy(parts))


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a training stage runs, whatever its seed, its data and the variables that it starts from."""

    step: Any
    """`(key, state, batch) -> (state, metrics)`, jitted; see `make_step`."""
    start: Callable[[dict[str, Any]], TrainState]
    """From initial variables to the state before the first step, jitted."""
    state_shapes: TrainState


def make_program(network: Network, recipe: Recipe, *, size: int, mesh: Mesh) -> Program:
    """The program that a stage's settings ask for, for a network made for images of `size` pixels."""
    variables = initial_shapes(network, size=size)
    optimizer = recipe.optimizer.build(num_steps=recipe.loop.num_steps, batch_size=recipe.loop.batch_size)
    if recipe.frozen_stages is not None:
        optimizer = freeze(optimizer, trainable_mask(variables["params"], recipe.frozen_stages))
    start = jax.jit(partial(make_state, optimizer=optimizer))
    state_shapes = start.eval_shape(variables)
    step = make_step(
        network,
        recipe.objective,
        recipe.augments,
        optimizer,
        mesh=mesh,
        microbatches=recipe.loop.microbatches,
        state_shardings=split_from(state_shapes, recipe.loop.split_from, mesh),
    )
    return Program(step=step, start=start, state_shapes=state_shapes)


shared_program = lru_cache(MOST_PROGRAMS)(make_program)
"""`make_program`, once in a process for all seeds and models whose network and recipe are equal: they trace, lower and
compile, or load, one step."""


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


def make_embedder(embed: Any, evaluate: Evaluate, mesh: Mesh, readers: pipeline.Readers | None = None) -> Embedder:
    """An embedder with the study's way of resizing and batching; by default threads read."""
    return Embedder(
        embed=embed,
        geometry=evaluate.geometry,
        batch_size=evaluate.batch_size,
        mesh=mesh,
        readers=pipeline.Readers() if readers is None else readers,
    )


def _trained(folder: Path) -> dict[str, Any]:
    """What a training stage's mark says: the training time from the records, so that interruptions do not count and
    resumed parts do, and the files of the variables."""
    seconds = sum(record.get("seconds", 0.0) for record in records.read(folder / "metrics.jsonl"))
    return {"seconds": round(seconds, 1), "variables": checkpoint.sizes(folder / "variables")}


def evaluate_arm(
    arm: Arm,
    trained: Trained,
    images: PairImages,
    evaluate: Evaluate,
    context: Context,
    evaluation: Evaluation,
) -> None:
    """Embeds the test pairs, ranks them both ways and leaves embeddings, ranks and records in the run folder."""
    folder, embeddings = evaluation.folder, evaluation.folder / "embeddings.npz"
    if is_done(folder, evaluation.key, "evaluate") and can_be_read(embeddings, *rank_files(folder)):
        logger.info("evaluate %s: up to date, skipped", evaluation.label)
        return
    network = siamese(arm)
    embedder = make_embedder(head_embedding(network), evaluate, context.mesh, context.readers)
    variables = jax.device_put(trained.variables, replicated(context.mesh))
    left, right = (embedder(variables, side) for side in (images.left, images.right))
    unmark(folder, "evaluate")
    write_arrays(embeddings, ids=np.array(images.ids), left=left, right=right)
    write_ranks(
        folder,
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
    folder = evaluation.folder
    if is_done(folder, evaluation.key, "evaluate") and can_be_read(*rank_files(folder)):
        logger.info("evaluate %s: up to date, skipped", evaluation.label)
        return
    logger.info("evaluate %s", evaluation.label)
    system.fit(train, validation)
    scores = [system.score(test.left, test.right), system.score(test.right, test.left)]
    matches = np.arange(len(test.ids))
    unmark(folder, "evaluate")
    write_ranks(
        folder,
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


def read_probe(folder: Path, key: Fingerprint, label: str) -> dict[str, float] | None:
    """What `probe_frozen` left, if it did.

    Raises:
      ValueError: what it left is of other settings or data.
    """
    mark = read_mark(folder, "probe")
    if mark and not is_of(mark, key):
        reason = "made with another config.probe, or of other ranks"
        raise outdated(f"the accuracies of {label}", folder, reason, stage="evaluate")
    return mark.get("accuracy")


def rank_files(folder: Path) -> tuple[Path, Path]:
    """Where `write_ranks` leaves the rank of every query's match, and its nearest candidates."""
    return folder / "ranks.npz", folder / "top.npz"


def write_ranks(folder: Path, ids: Sequence[str], *, ranks: np.ndarray | Sequence[Any], top: Sequence[Any]) -> None:
    """`ranks.npz` (the rank of every query's match) and `top.npz` (its nearest candidates), each given left to right,
    then right to left."""
    for path, (left_to_right, right_to_left) in zip(rank_files(folder), (ranks, top), strict=True):
        write_arrays(
            path,
            ids=np.array(ids),
            left_to_right=np.asarray(left_to_right),
            right_to_left=np.asarray(right_to_left),
        )


def check_explained(evaluation: Evaluation, settings: Explain) -> None:
    """Raises ValueError where explanations or pages that lie in a run folder are not of these ranks and settings."""
    explanations, key = evaluation.folder / "explanations", explain_key(evaluation, settings)
    there = {"explain": (explanations / "index.json").exists(), "pages": any(explanations.glob("*/index.html"))}
    for stage, is_there in there.items():
        if is_there and not is_done(evaluation.folder, key, stage):
            reason = "made of other ranks, with another config.explain, or cut short"
            raise outdated(f"the explanations of {evaluation.label}", evaluation.folder, reason, stage="explain")


def explain_arm(
    arm: Arm,
    trained: Trained,
    images: PairImages,
    settings: Explain,
    evaluate: Evaluate,
    evaluation: Evaluation,
) -> None:
    """Saliency maps of the matched test pairs of best and of worst mean reciprocal rank."""
    folder, key = evaluation.folder, explain_key(evaluation, settings)
    target = folder / "explanations"
    if is_done(folder, key, "explain") and _are_explained(target):
        logger.info("explain %s: up to date, skipped", evaluation.label)
        return
    found = evaluation.read()
    order = np.argsort(-(1 / found).mean(0), kind="stable")
    chosen = [(int(i), "best") for i in order[: settings.num_best]]
    chosen += [(int(i), "worst") for i in order[::-1][: settings.num_worst]]
    explain = explainer(
        Method(gradient, "the paper's saliency"),
        lambda activation: explainable(arm, activation=activation),
        target=mse,
        chunk=1,
    )
    variables = jax.device_put(trained.variables)
    rng = np.random.default_rng(0)
    # The pages lie in the folder, too.
    unmark(folder, "explain", "pages")
    shutil.rmtree(target, ignore_errors=True)
    index = []
    for position, kind in chosen:
        pair = [evaluate.geometry(rng, side[position]) for side in (images.left, images.right)]
        left, right = (jnp.asarray(image, jnp.float32) / 255 for image in pair)
        heatmap_left, heatmap_right = explain(variables, left[None], right[None])
        identity = images.ids[position]
        rank = int(found[0, position])
        write_arrays(
            target / f"{file_name(identity)}.npz",
            compressed=True,
            left=pair[0],
            right=pair[1],
            heatmap_left=np.asarray(heatmap_left[0]),
            heatmap_right=np.asarray(heatmap_right[0]),
            rank=rank,
        )
        index.append({"id": identity, "rank": rank, "kind": kind})
    write_json(target / "index.json", index)
    mark_done(folder, key, "explain")


def _are_explained(folder: Path) -> bool:
    """Whether all that `explain_arm` left can be read."""
    try:
        index = read_json(folder / "index.json")
        return can_be_read(*(folder / f"{file_name(entry['id'])}.npz" for entry in index))
    except (FileNotFoundError, DamagedFile):
        return False

"""A study: every arm through its stages, then all systems judged on the same queries, compared and reported."""

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tll_jax
from tll_jax import config, explain, outcome, processes, stages
from tll_jax.contracts import ImageSource, System
from tll_jax.data.splits import Manifest
from tll_jax.devices import check_batch_size, hardware, local_mesh, make_mesh
from tll_jax.errors import InvalidValue
from tll_jax.evaluation.probes import OpenedProbe
from tll_jax.report import results_markdown, write_report
from tll_jax.report.study_folder import keep_ranks
from tll_jax.training import step

logger = logging.getLogger(__name__)

STAGES = ("pretrain", "finetune", "evaluate", "explain", "report")


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Where an arm's fine-tuning starts: the arm with its pretraining seed, and what it has learned, if anything."""

    arm: config.Arm
    learned: stages.Trained | None
    key: str | None
    frozen_folder: str
    """Where the ranks of the frozen backbone lie."""


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """An arm after one fine-tuning."""

    seed: int
    key: str
    trained: stages.Trained
    start: Pretraining


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the training of an arm leaves."""

    starts: list[Pretraining]
    finetuned: list[Finetuned]
    folders: dict[str, Path]
    """Where each stage lies, by what the results call it: "pretrain <arm>", "finetune <arm> seed <seed>"."""


def run(study: config.Study, *, workdir: Path, stages_to_run: Sequence[str] = STAGES, command: str = "") -> None:
    """Runs the study in `workdir`, going on from whatever an earlier run has left there.

    Everything that can be refused is refused before the first step: settings, data, batch sizes, the workdir.

    Raises:
      ValueError: impossible settings, a workdir of another study, a stage that needs one that was not asked for.
      FileNotFoundError: data that is not where the settings say.
      tll_jax.training.signals.Interrupted: a signal asked to stop; what was done is saved.
    """
    started = time.perf_counter()
    unknown = sorted(set(stages_to_run) - set(STAGES))
    if unknown:
        raise InvalidValue(f"--stages names {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
    config.validate(study)
    processes.refuse_differences({"versions": versions(), "settings": config.fingerprint(study)})
    refuse_foreign(workdir, study)
    context = stages.Context(
        workdir=workdir,
        pairs=study.pairs.open(),
        mesh=make_mesh(),
        num_threads=study.num_threads,
        num_processes=study.num_processes,
    )
    processes.refuse_differences({"pairs": context.pairs.digest()})
    manifests = [study.split.make(context.pairs, fold=fold) for fold in range(len(study.seeds))]
    sources = open_sources(study, manifests[0])
    ready = {name: stages.ready_made(arm) for name, arm in study.arms.items()}
    probe = None if study.probe is None else OpenedProbe(study.probe, context.mesh)
    refuse_batches(study, context, manifests[0], sources)
    refuse_microbatches(study, sources)
    refuse_fitted(study, context)

    if processes.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        stages.write_json(workdir / "config.json", {"study": study.name, "settings": config.to_json(study)})
        manifests[0].save(workdir / "split.json")
    trainings = {
        name: train_arm(name, arm, study, context, manifests, sources.get(name), ready[name], probe, stages_to_run)
        for name, arm in study.arms.items()
    }
    if processes.is_first():
        # What is left is done by one process alone, on its own devices.
        alone = dataclasses.replace(context, mesh=local_mesh())
        here = None if probe is None else probe.on(alone.mesh)
        judge(study, alone, manifests, sources, trainings, here, stages_to_run, started=started, command=command)
    processes.wait_for_all("the first process has judged")


def judge(
    study: config.Study,
    context: stages.Context,
    manifests: Sequence[Manifest],
    sources: Mapping[str, ImageSource],
    trainings: Mapping[str, Training],
    probe: OpenedProbe | None,
    stages_to_run: Sequence[str],
    *,
    started: float,
    command: str,
) -> None:
    """All systems on the same queries, explanations, results and report."""
    runs = {
        name: judge_arm(name, study.arms[name], study, context, manifests, training, probe, stages_to_run)
        for name, training in trainings.items()
    }
    if "evaluate" in stages_to_run:
        judge_systems(study, context, manifests)
    if "report" in stages_to_run:
        outcome.write_pictures(study, context, manifests[0])
        ranked = outcome.Ranked.read(study, context, runs)
        results = outcome.collect(study, context, manifests[0], ranked, sources)
        seconds = {
            label: stage_seconds(folder, label.split()[0])
            for training in trainings.values()
            for label, folder in training.folders.items()
        }
        results |= {
            "command": command,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "versions": versions(),
            "seconds": seconds | {"total": round(time.perf_counter() - started, 1)},
        }
        stages.write_json(context.workdir / "results.json", results)
        keep_ranks(context.workdir, manifests[0].test, ranked.ranks)
        (context.workdir / "results.md").write_text(results_markdown(results))
        logger.info("report: %s", write_report(context.workdir))


def refuse_foreign(workdir: Path, study: config.Study) -> None:
    """Raises ValueError where `workdir` holds another study, or something else altogether."""
    path = workdir / "config.json"
    if path.exists():
        other = json.loads(path.read_text()).get("study")
        if other != study.name:
            raise InvalidValue(
                f"{workdir} belongs to the study {other!r}, not to {study.name!r}; give another --workdir or remove it"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise InvalidValue(f"{workdir} is not empty and not a study's folder; give another --workdir")


def open_sources(study: config.Study, manifest: Manifest) -> dict[str, ImageSource]:
    """The opened pretraining images of every arm that pretrains, without the test pairs' images."""
    sources: dict[str, ImageSource] = {}
    opened: dict[str, ImageSource] = {}
    for name, arm in study.arms.items():
        if arm.pretrain is None:
            continue
        held_out = frozenset() if arm.pretrain.sees_test_images else frozenset(manifest.test)
        shortest_side = arm.pretrain.geometry.shortest_side
        key = config.fingerprint([arm.pretrain.images, arm.pretrain.sees_test_images, shortest_side])
        if key not in opened:
            opened[key] = arm.pretrain.images.open(held_out=held_out, shortest_side=shortest_side)
        sources[name] = opened[key]
    return sources


def refuse_batches(
    study: config.Study, context: stages.Context, manifest: Manifest, sources: Mapping[str, ImageSource]
) -> None:
    """Raises ValueError where a batch is larger than its data or cannot be shared by the devices."""
    for name, arm in study.arms.items():
        parts: list[tuple[str, config.Loop, int]] = []
        if arm.pretrain is not None:
            parts.append(("pretrain", arm.pretrain.loop, len(sources[name])))
        if arm.finetune is not None:
            parts.append(("finetune", arm.finetune.loop, len(manifest.train)))
        for stage, loop_settings, available in parts:
            path = f"config.arms.{name}.{stage}.loop.batch_size"
            if loop_settings.batch_size > available:
                raise InvalidValue(
                    f"{path} is {loop_settings.batch_size}, more than the {available} training examples there are"
                )
            try:
                check_batch_size(loop_settings.batch_size, context.mesh)
            except ValueError as error:
                raise InvalidValue(f"{path}: {error}") from error


def refuse_microbatches(study: config.Study, sources: Mapping[str, ImageSource]) -> None:
    """Raises ValueError where a batch cut into parts would have another loss."""
    for name, arm in study.arms.items():
        for stage, settings in (("pretrain", arm.pretrain), ("finetune", arm.finetune)):
            if settings is None or settings.loop.microbatches == 1:
                continue
            classes = sources[name].num_classes if name in sources else 0
            network = stages.training_network(arm, stage, num_classes=classes)
            shapes = stages.initial_shapes(network, size=settings.geometry.size)
            try:
                step.refuse_microbatches(settings.objective, shapes["batch_stats"])
            except ValueError as error:
                raise InvalidValue(f"config.arms.{name}.{stage}.loop.{error}") from error


def refuse_fitted(study: config.Study, context: stages.Context) -> None:
    """Raises ValueError where a system that learns is to be ranked among all pairs, which it would have seen."""
    nothing = context.pairs.images([])
    for name in study.faces_included:
        if name in study.systems:
            try:
                study.systems[name].fit(nothing, nothing)
            except ValueError as error:
                raise InvalidValue(
                    f"config.faces_included names {name}, which learns from pairs that it would be tested on "
                    f"({error}); leave it out"
                ) from error


def train_arm(
    name: str,
    arm: config.Arm,
    study: config.Study,
    context: stages.Context,
    manifests: Sequence[Manifest],
    images: ImageSource | None,
    ready_made: stages.Trained | None,
    probe: OpenedProbe | None,
    stages_to_run: Sequence[str],
) -> Training:
    """One arm through its training stages for every seed; all processes take part."""
    starts, finetuned, folders = [], [], {}
    for number, (variant, frozen_folder) in enumerate(outcome.seeded_pretrainings(name, arm, study)):
        learned, key = ready_made, stages.pretrain_key(variant, images)
        label = name if number == 0 else f"{name} {number}"
        if images is not None:
            require(str(key), "pretrain", label, context, stages_to_run)
            learned = stages.pretrain(label, variant, images, context, probe=probe)
            folders[f"pretrain {label}"] = learned.folder
        starts.append(Pretraining(arm=variant, learned=learned, key=key, frozen_folder=frozen_folder))
    if arm.finetune is not None and set(stages_to_run) != {"pretrain"}:
        for index, (seed, manifest) in enumerate(zip(study.seeds, manifests, strict=True)):
            start = starts[index % len(starts)]
            key = stages.finetune_key(arm, start.key, manifest, context.pairs, seed=seed)
            require(key, "finetune", name, context, stages_to_run)
            trained = stages.finetune(name, arm, start.learned, manifest, study.evaluate, context, key=key, seed=seed)
            folders[f"finetune {name} seed {seed}"] = trained.folder
            finetuned.append(Finetuned(seed=seed, key=key, trained=trained, start=start))
    return Training(starts=starts, finetuned=finetuned, folders=folders)


def judge_arm(
    name: str,
    arm: config.Arm,
    study: config.Study,
    context: stages.Context,
    manifests: Sequence[Manifest],
    training: Training,
    probe: OpenedProbe | None,
    stages_to_run: Sequence[str],
) -> list[str]:
    """Ranks and explanations of one arm; the run folders it leaves, relative to the workdir."""
    test_ids = manifests[0].test
    test = context.pairs.images(context.pairs.indices(test_ids))
    judged = {
        "format": stages.FORMAT,
        "evaluate": study.evaluate,
        "test": tuple(test_ids),
        "pairs": context.pairs.digest(),
    }
    if "evaluate" in stages_to_run:
        for start in training.starts:
            asked = judged | {"pretrained": start.key}
            judge_frozen(start, study, context, manifests[0], probe, asked)
    folders = []
    for index, one in enumerate(training.finetuned):
        folder = context.workdir / "arms" / name / f"seed-{one.seed}"
        write_run(folder, name, study, one)
        judged_key = config.fingerprint(judged | {"finetuned": one.key})
        if "evaluate" in stages_to_run:
            stages.evaluate_arm(arm, one.trained, test, study.evaluate, folder, context, key=judged_key)
        if "explain" in stages_to_run:
            explain_key = config.fingerprint([judged_key, study.explain])
            if not (folder / "ranks.npz").exists():
                raise InvalidValue(f"explain of {name} needs its ranks: add evaluate to --stages")
            stages.explain_arm(arm, one.trained, test, study.explain, study.evaluate, folder, context, key=explain_key)
            if index == 0:
                explain.write_pages(arm, one.trained, test, study.explain, study.evaluate, folder, key=explain_key)
        folders.append(folder.relative_to(context.workdir).as_posix())
    return folders


def judge_frozen(
    start: Pretraining,
    study: config.Study,
    context: stages.Context,
    manifest: Manifest,
    probe: OpenedProbe | None,
    judged: dict[str, Any],
) -> None:
    """Ranks the test pairs by the backbone as pretraining left it, and probes it."""
    arm, folder, seed = start.arm, start.frozen_folder, study.seeds[0]
    variables = stages.initial_variables(arm, start.learned, size=study.evaluate.geometry.size, seed=seed)
    key = config.fingerprint(judged | {"backbone": arm.backbone, "seed": seed})
    train, validation, test = (
        context.pairs.images(context.pairs.indices(ids)) for ids in (manifest.train, manifest.validation, manifest.test)
    )
    frozen = stages.frozen_system(arm, variables, study.evaluate, context)
    label = folder.removeprefix("systems/").replace("/seed-", " seed ")
    stages.evaluate_system(label, frozen, train, validation, test, context.workdir / folder, key=key)
    judge_among_all(folder.split("/")[1], frozen, study, context, key=key)
    if probe is not None:
        key = config.fingerprint([key, study.probe, probe.digest()])
        stages.probe_frozen(arm, variables, probe, context.workdir / folder, key=key)


def require(key: str, stage: str, name: str, context: stages.Context, stages_to_run: Sequence[str]) -> None:
    """Raises ValueError where a training stage is neither done nor asked for."""
    done = stages.is_done(context.workdir / "stages" / f"{stage}-{key}", key, stage)
    if stage not in stages_to_run and not processes.from_first(done):
        raise InvalidValue(f"{stage} of arm {name} has not been done with these settings: add {stage} to --stages")


def stage_seconds(folder: Path, stage: str) -> float:
    """Training time of a finished stage."""
    return json.loads((folder / f"{stage}.done.json").read_text())["seconds"]


def write_run(folder: Path, name: str, study: config.Study, finetuned: Finetuned) -> None:
    """What a run folder needs to be used on its own: settings, variables and metric records."""
    folder.mkdir(parents=True, exist_ok=True)
    arm, learned = finetuned.start.arm, finetuned.start.learned
    stages.write_json(
        folder / "config.json",
        {
            "study": study.name,
            "arm": name,
            "seed": finetuned.seed,
            "settings": config.to_json(arm),
            "evaluate": config.to_json(study.evaluate),
            "variables": f"../../../stages/{finetuned.trained.folder.name}/variables",
        },
    )
    copies = {"finetune.jsonl": finetuned.trained.folder}
    if arm.pretrain is not None and learned is not None:
        copies["pretrain.jsonl"] = learned.folder
    for target, source in copies.items():
        (folder / target).write_bytes((source / "metrics.jsonl").read_bytes())


def judge_systems(study: config.Study, context: stages.Context, manifests: Sequence[Manifest]) -> None:
    """Fits and ranks every system that is not an arm; each seed of one that has seeds chooses on its own fold."""
    names = ("train", "validation", "test")
    for name, system in study.systems.items():
        for (folder, seeded), manifest in zip(
            outcome.seeded_systems(name, system, study.seeds), manifests, strict=False
        ):
            key = config.fingerprint(
                {
                    "format": stages.FORMAT,
                    "system": seeded,
                    "pairs": context.pairs.digest(),
                    **{part: tuple(getattr(manifest, part)) for part in names},
                }
            )
            parts = {part: context.pairs.images(context.pairs.indices(getattr(manifest, part))) for part in names}
            label = folder.removeprefix("systems/").replace("/seed-", " seed ")
            stages.evaluate_system(label, seeded, **parts, folder=context.workdir / folder, key=key)
        key = config.fingerprint({"format": stages.FORMAT, "system": system, "pairs": context.pairs.digest()})
        judge_among_all(name, system, study, context, key=key)


def judge_among_all(name: str, system: System, study: config.Study, context: stages.Context, *, key: str) -> None:
    """Ranks all pairs among each other with a system that fits nothing, where the study asks for it."""
    if name in study.faces_included:
        nothing, everything = (context.pairs.images(range(count)) for count in (0, len(context.pairs)))
        folder = context.workdir / "systems" / name / outcome.FACES_INCLUDED
        stages.evaluate_system(f"{name} among all pairs", system, nothing, nothing, everything, folder, key=key)


def versions() -> dict[str, str]:
    """The versions that a number depends on."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
    return {"tll_jax": tll_jax.__version__} | {name: importlib.metadata.version(name) for name in names}

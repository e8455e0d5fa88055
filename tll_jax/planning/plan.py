"""Resource plan of a config's training step on devices that are not attached: it is compiled for them, never run."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax import config_files, serialize
from tll_jax.devices import batch_sharded, check_batch_size, fsdp_shardings
from tll_jax.errors import InvalidValue
from tll_jax.files import read_json, write_json
from tll_jax.planning.collectives import minimum_bytes, watch_calls
from tll_jax.planning.hlo import read_collectives, read_memory_traffic
from tll_jax.planning.roofline import estimate, fits, memory_of
from tll_jax.planning.targets import Target, open_targets, versions
from tll_jax.settings import validate
from tll_jax.study.networks import make_program, recipe_of, training_network
from tll_jax.study.settings import Finetune, Loop, Model, Pretrain, Study
from tll_jax.typing import PairBatch, ViewBatch

logger = logging.getLogger(__name__)

STAGES = ("pretrain", "finetune")
FORMAT = 1
SEARCH_STEPS = 8
"""The search for the largest batch has steps of the first batch divided by this."""


def load_study(name: str) -> Study:
    """Load and validate the study of a config file, "configs/X.py" or "configs/X.py:argument".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a config, or its settings are impossible.
    """
    study = config_files.load_study(name)
    validate(study)
    return study


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training stage of one model, with all settings of its step."""

    model: Model
    stage: str
    num_classes: int

    @property
    def settings(self) -> Pretrain | Finetune:
        settings = getattr(self.model, self.stage)
        assert settings is not None
        return settings

    def batch(self) -> ViewBatch | PairBatch:
        """Shapes and dtypes of a host batch."""
        size, rows = self.settings.geometry.size, self.settings.loop.batch_size
        images = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)
        kind = ViewBatch if self.stage == "pretrain" else PairBatch
        return kind(images, images, jax.ShapeDtypeStruct((rows,), jnp.int32))

    def key(self, target: Target) -> str:
        """Hash of all inputs of the record for this target, except the code of this package."""
        parts = {name: getattr(self.model, name) for name in ("backbone", "head", self.stage)}
        others = {"stage": self.stage, "num_classes": self.num_classes, "target": target.name}
        return serialize.fingerprint(parts | others | {"format": FORMAT, "versions": versions(target)})

    def with_loop(self, **changes: Any) -> "Training":
        loop = dataclasses.replace(self.settings.loop, **changes)
        stage: dict[str, Any] = {self.stage: dataclasses.replace(self.settings, loop=loop)}
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **stage))


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Options of a plan: the stage of a study, and changes of its settings."""

    model: str = ""
    """The study's first model by default."""
    stage: str = ""
    """"pretrain" or "finetune"; by default, the model's first training stage."""
    loop: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the stage's `config.Loop`, such as batch_size or dtype, with their values."""
    num_classes: int = 1000
    """Number of classes; the images themselves are not opened."""

    def choose(self, study: Study) -> "PlanRequest":
        """The request with its defaults filled in.

        Raises:
          ValueError: the study does not have the model or the stage.
        """
        model = self.model or next(iter(study.models), "")
        if model not in study.models:
            raise InvalidValue(
                f"model is {model!r}; the models of {study.name} are {', '.join(study.models) or 'none'}"
            )
        stages = [name for name in STAGES if getattr(study.models[model], name) is not None]
        stage = self.stage or next(iter(stages), "")
        if stage not in stages:
            raise InvalidValue(f"stage is {stage!r}; the training stages of {model} are {', '.join(stages) or 'none'}")
        return dataclasses.replace(self, model=model, stage=stage)

    def training(self, study: Study) -> Training:
        """The training stage to compile.

        Raises:
          ValueError: the loop has no such field, or a value is impossible.
        """
        training = Training(model=study.models[self.model], stage=self.stage, num_classes=self.num_classes)
        known = [entry.name for entry in dataclasses.fields(Loop)]
        unknown = sorted(set(self.loop) - {*known, *serialize.first_names(Loop)})
        if unknown:
            raise InvalidValue(f"the loop has no field {', '.join(unknown)}; it has {', '.join(known)}")
        training = training.with_loop(**self.loop)
        validate(training.settings.loop, path="loop")
        return training


def plan(
    study: Study,
    target_names: Sequence[str],
    *,
    request: PlanRequest,
    out: Path | None = None,
    search_largest: bool = False,
    again: bool = False,
) -> list[dict[str, Any]]:
    """Plan a training step on each target; one record per target.

    Records that `out` has for the same settings are reused unless `again`; each new record is written to it at once.

    Args:
      target_names: names for `open_targets`.
      search_largest: also search for the largest batch that fits, in steps of an eighth of the requested one; this
        compiles several times.

    Raises:
      ValueError: an unknown model, stage or target, a batch size that a target's devices do not divide, or a search on
        a target without published memory.
      ImportError: the compiler of a TPU target is not installed.
    """
    request = request.choose(study)
    training = request.training(study)
    targets = open_targets(target_names)
    for target in targets:
        try:
            check_batch_size(training.settings.loop.batch_size, target.mesh)
        except ValueError as error:
            raise InvalidValue(f"target {target.name}: {error}") from error
        if search_largest and target.chip is None:
            raise InvalidValue(f"the largest batch needs a chip whose memory is known; {target.name} has none")
    facts = {"study": study.name, "model": request.model, "stage": request.stage}
    records = []
    for target in targets:
        key = training.key(target)
        record = None if again else next((one for one in read_plans(out) if one["key"] == key), None)
        if record is not None:
            logger.info("%s: up to date in %s", target.name, out)
        else:
            record = {"key": key, **facts, **examine(training, target), "versions": versions(target)}
            write_plan(out, record)
        if search_largest and "largest_batch" not in record:
            record = record | {"largest_batch": largest_batch(training, target, first=record)}
            write_plan(out, record)
        records.append(record)
    return records


def read_plans(path: Path | None) -> list[dict[str, Any]]:
    """Records of earlier commands in `path`; none without the file."""
    return read_json(path)["plans"] if path is not None and path.exists() else []


def write_plan(path: Path | None, record: dict[str, Any]) -> None:
    """Add a record to `path`, or replace the one with its key."""
    if path is not None:
        plans = [one for one in read_plans(path) if one["key"] != record["key"]] + [record]
        write_json(path, {"plans": plans})


def examine(training: Training, target: Target) -> dict[str, Any]:
    """Compile the step for the target and return its resources as JSON values, per device and step."""
    settings, mesh = training.settings, target.mesh
    loop = settings.loop
    network = training_network(training.model, training.stage, num_classes=training.num_classes)
    # Not a shared program: its calls are recorded while it is traced for the first time.
    program = make_program(network, recipe_of(settings), size=settings.geometry.size, mesh=mesh)
    state, base = (
        placed(shapes, fsdp_shardings(shapes, loop.fsdp_min_size, mesh))
        for shapes in (program.state_shapes, program.base_shapes)
    )
    batch = training.batch()
    batch = placed(batch, jax.tree.map(lambda _: batch_sharded(mesh), batch))

    logger.info("%s: tracing a step of batch %d", target.name, loop.batch_size)
    metrics: dict[str, Any] = {}
    key = jax.eval_shape(jax.random.key, 0)
    calls = watch_calls(lambda: metrics.update(jax.eval_shape(program.step, key, state, batch, *base)[1]))
    minimum = minimum_bytes(settings.objective, state.params, calls, num_metrics=len(metrics))
    record: dict[str, Any] = {
        "target": target.name,
        "chip": None if target.chip is None else dataclasses.asdict(target.chip),
        "num_devices": mesh.size,
        "batch_size": loop.batch_size,
        "dtype": loop.dtype,
        "parameters": {name: count(part) for name, part in state.params.items()} | {"all": count(state.params)},
        "state_bytes": sum(map(bytes_on_device, jax.tree.leaves((state, base)))),
        "minimum_collective_bytes": minimum | {"all": sum(minimum.values())},
    }
    logger.info("%s: compiling; that takes minutes for large networks", target.name)
    started = time.perf_counter()
    try:
        compiled = program.step.lower(key, state, batch, *base).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return record | {"fits": False, "refusal": str(error).splitlines()[0]}
    seconds = time.perf_counter() - started
    logger.info("%s: compiled in %.0f s", target.name, seconds)
    cost = compiled.cost_analysis()
    memory = memory_of(compiled)
    program = compiled.as_text()
    assert program is not None
    collectives = read_collectives(program, num_devices=mesh.size)
    sent = sum(kind["bytes"] for kind in collectives.values())
    record |= {
        "compile_seconds": round(seconds, 1),
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "memory_bytes": memory,
        "fits": None if target.chip is None else fits(memory["all"], target),
        "collectives": collectives,
        "collective_bytes": sent,
        "collective_bytes_over_minimum": sent / sum(minimum.values()),
    }
    if target.chip is not None:
        record["memory_traffic_bytes"] = read_memory_traffic(program)
        record["estimate"] = estimate(
            flops=cost["flops"],
            memory_traffic=record["memory_traffic_bytes"],
            collectives=collectives,
            images=2 * loop.batch_size,
            target=target,
        )
    return record


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes of arrays, with `shardings` on the mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def count(params: Any) -> int:
    """Number of values in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def bytes_on_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of a sharded array on one device."""
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def largest_batch(training: Training, target: Target, *, first: Mapping[str, Any]) -> dict[str, Any]:
    """Largest batch whose step fits, in steps of an eighth of the first one, and the record of the search."""
    start, devices = first["batch_size"], target.mesh.size
    tried = [{"batch_size": start, "memory_bytes": first.get("memory_bytes", {}).get("all"), "fits": first["fits"]}]

    def holds(batch_size: int) -> bool:
        if batch_size == start:
            return first["fits"]
        record = examine(training.with_loop(batch_size=batch_size), target)
        needed = record.get("memory_bytes", {}).get("all")
        tried.append({"batch_size": batch_size, "memory_bytes": needed, "fits": record["fits"]})
        return record["fits"]

    step = max(start // SEARCH_STEPS // devices, 1) * devices
    return {"batch_size": search(holds, start=start, step=step), "step": step, "tried": tried}


def search(holds: Callable[[int], bool], *, start: int, step: int) -> int:
    """Largest multiple of `step` for which `holds` is True, by doubling and bisection; 0 if there is none.

    `holds` must be monotone: True up to some value and False above. The search begins at `start`, a multiple of `step`.
    """
    low, high = 0, None
    guess = start
    while high is None or high - low > step:
        if holds(guess):
            low = guess
        else:
            high = guess
        guess = 2 * low if high is None else (low + high) // 2 // step * step
    return low

"""What a config's training step needs on devices that are not there: it is compiled for them, and never run."""

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
"""The largest batch is searched in steps of this part of the first one."""


def load_study(name: str) -> Study:
    """The valid study of a config file, "configs/X.py" or "configs/X.py:argument".

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not a config, or its settings are impossible.
    """
    study = config_files.load_study(name)
    validate(study)
    return study


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training stage of one model, as its step needs it."""

    model: Model
    stage: str
    num_classes: int

    @property
    def settings(self) -> Pretrain | Finetune:
        settings = getattr(self.model, self.stage)
        assert settings is not None
        return settings

    def batch(self) -> ViewBatch | PairBatch:
        """The shapes of a host batch."""
        size, rows = self.settings.geometry.size, self.settings.loop.batch_size
        images = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)
        kind = ViewBatch if self.stage == "pretrain" else PairBatch
        return kind(images, images, jax.ShapeDtypeStruct((rows,), jnp.int32))

    def key(self, target: Target) -> str:
        """The hash of everything that the record for this target depends on, this package's own code aside."""
        parts = {name: getattr(self.model, name) for name in ("backbone", "head", self.stage)}
        others = {"stage": self.stage, "num_classes": self.num_classes, "target": target.name}
        return serialize.fingerprint(parts | others | {"format": FORMAT, "versions": versions(target)})

    def with_loop(self, **changes: Any) -> "Training":
        loop = dataclasses.replace(self.settings.loop, **changes)
        stage: dict[str, Any] = {self.stage: dataclasses.replace(self.settings, loop=loop)}
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **stage))


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Which stage of a study to plan, and what to change in it."""

    model: str = ""
    """The first by default."""
    stage: str = ""
    """"pretrain" or "finetune"; the first that the model has by default."""
    loop: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its `config.Loop` and their values, batch_size and dtype among them."""
    num_classes: int = 1000
    """Of the images, which are not opened."""

    def choose(self, study: Study) -> "PlanRequest":
        """The same with its defaults filled in.

        Raises:
          ValueError: a model or stage that the study does not have.
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
        """What to compile.

        Raises:
          ValueError: a field that the loop does not have, or an impossible value.
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
    """One record a target. What `out` holds already for the same settings is taken from there unless `again`; each new
    record is written to it at once.

    Args:
      target_names: as `open_targets` takes them.
      search_largest: also the largest batch that fits, to an eighth of the one asked for; compiles several times.

    Raises:
      ValueError: a model, stage or target that there is not, a batch that a target's devices cannot share, or a search
        where no memory is published.
      ImportError: a TPU target, and its compiler is not installed.
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
    """The records that an earlier command has left in `path`."""
    return read_json(path)["plans"] if path is not None and path.exists() else []


def write_plan(path: Path | None, record: dict[str, Any]) -> None:
    """Adds a record to `path`, in place of one with its key."""
    if path is not None:
        plans = [one for one in read_plans(path) if one["key"] != record["key"]] + [record]
        write_json(path, {"plans": plans})


def examine(training: Training, target: Target) -> dict[str, Any]:
    """Compiles the step for the target; what it needs there, as JSON values. Counts are of one device and one step."""
    settings, mesh = training.settings, target.mesh
    loop = settings.loop
    network = training_network(training.model, training.stage, num_classes=training.num_classes)
    # Made anew, not shared: the calls are seen while it is traced for the first time.
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
    """Shapes of arrays that lie on the mesh as `shardings` say."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def count(params: Any) -> int:
    """The number of values in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def bytes_on_device(leaf: jax.ShapeDtypeStruct) -> int:
    """How much of a placed array one device holds."""
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def largest_batch(training: Training, target: Target, *, first: Mapping[str, Any]) -> dict[str, Any]:
    """The largest batch whose step fits, in steps of an eighth of the first one, and what was tried."""
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
    """The largest multiple of `step` that `holds`, which what is larger than one that does not hold never does; 0 for
    none. `start` is asked first; it should be a multiple of `step`."""
    low, high = 0, None
    guess = start
    while high is None or high - low > step:
        if holds(guess):
            low = guess
        else:
            high = guess
        guess = 2 * low if high is None else (low + high) // 2 // step * step
    return low

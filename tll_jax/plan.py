"""What a config's training step needs on devices that are not there: it is compiled for them, and never run."""

import dataclasses
import importlib.metadata
import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tll_jax import config_files, serialize
from tll_jax.chips import CHIPS, Chip
from tll_jax.contracts import PairBatch, ViewBatch
from tll_jax.devices import batch_sharded, check_batch_size, make_mesh, split_from
from tll_jax.errors import InvalidValue, MissingPackage
from tll_jax.files import read_json, write_json
from tll_jax.settings import validate
from tll_jax.study.networks import make_program, recipe_of, training_network
from tll_jax.study.settings import Finetune, Loop, Model, Pretrain, Study
from tll_jax.training.collectives import minimum_bytes, watch_calls
from tll_jax.training.program import read_collectives, read_memory_traffic

logger = logging.getLogger(__name__)

STAGES = ("pretrain", "finetune")
FORMAT = 1
FREE_SHARE = 0.1
"""The part of a chip's memory that a step must leave free: for the next batches, and for the runtime."""
SEARCH_STEPS = 8
"""The largest batch is searched in steps of this part of the first one."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Target:
    """Devices to compile for."""

    name: str
    mesh: Mesh
    chip: Chip | None
    """Each device's; None: nothing is published, so nothing can be estimated."""


def open_targets(names: Sequence[str]) -> list[Target]:
    """The devices that targets such as "cpu:8" and "tpu:v5e:4x4" name; none has to be there.

    The process computes on its CPU from then on, and for TPUs the environment is set so that their compiler looks for
    no hardware.

    Raises:
      ValueError: a target that there is not.
      ImportError: a TPU target, and its compiler is not installed.
    """
    # Nothing runs here: an accelerator, if there is one, stays untouched.
    jax.config.update("jax_platforms", "cpu")
    return [_open_target(name, names) for name in dict.fromkeys(names)]


def _open_target(name: str, names: Sequence[str]) -> Target:
    platform, _, rest = name.partition(":")
    if platform == "cpu" and rest.isdecimal() and int(rest) > 0:
        most = max(int(other.removeprefix("cpu:")) for other in names if other.removeprefix("cpu:").isdecimal())
        devices = _cpu_devices(most)[: int(rest)]
        return Target(name=name, mesh=make_mesh(devices), chip=None)
    kind, _, topology = rest.partition(":")
    sizes = topology.split("x")
    if platform != "tpu" or kind not in CHIPS or not all(size.isdecimal() for size in sizes):
        known = ", ".join(f"tpu:{kind}" for kind in CHIPS)
        raise InvalidValue(
            f"target is {name!r}; it must be cpu:N, or one of {known} with the shape of its slice, such as tpu:v5e:4x4"
        )
    return Target(name=name, mesh=make_mesh(_tpu_devices(topology, CHIPS[kind])), chip=CHIPS[kind])


def _cpu_devices(count: int) -> list[jax.Device]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        # This process has computed something already, so that it keeps the devices that it has.
        if len(jax.devices("cpu")) < count:
            raise InvalidValue(
                f"target is cpu:{count}, and this process has started with {len(jax.devices('cpu'))} devices; "
                f"set JAX_NUM_CPU_DEVICES={count}"
            ) from None
    return jax.devices("cpu")


def _tpu_devices(topology: str, chip: Chip) -> list[jax.Device]:
    name = f"{chip.kind}:{topology}"
    if importlib.util.find_spec("libtpu") is None:
        raise MissingPackage(
            f"target is tpu:{name}, and the compiler for TPUs is not installed: pip install 'tll_jax[tpu]'"
        )
    from jax.experimental import topologies

    # Without these libtpu asks a metadata server which machine this is, and refuses where another process has it open.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chip_config_name=chip.configuration
        )
    except jax.errors.JaxRuntimeError as error:
        raise InvalidValue(
            f"target is tpu:{name}, which its compiler refuses ({error}); slices are such as 2x4 or 4x4 (v5e, "
            "v6e) and 2x2x1 or 4x4x4 (v4, v5p)"
        ) from error
    return list(description.devices)


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
class Asked:
    """Which stage of a study to plan, and what to change in it."""

    model: str = ""
    """The first by default."""
    stage: str = ""
    """"pretrain" or "finetune"; the first that the model has by default."""
    loop: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its `config.Loop` and their values, batch_size and dtype among them."""
    num_classes: int = 1000
    """Of the images, which are not opened."""

    def choose(self, study: Study) -> "Asked":
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
        unknown = sorted(set(self.loop) - set(known))
        if unknown:
            raise InvalidValue(f"the loop has no field {', '.join(unknown)}; it has {', '.join(known)}")
        training = training.with_loop(**self.loop)
        validate(training.settings.loop, path="loop")
        return training


def plan(
    study: Study,
    target_names: Sequence[str],
    *,
    asked: Asked,
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
    asked = asked.choose(study)
    training = asked.training(study)
    targets = open_targets(target_names)
    for target in targets:
        try:
            check_batch_size(training.settings.loop.batch_size, target.mesh)
        except ValueError as error:
            raise InvalidValue(f"target {target.name}: {error}") from error
        if search_largest and target.chip is None:
            raise InvalidValue(f"the largest batch needs a chip whose memory is known; {target.name} has none")
    facts = {"study": study.name, "model": asked.model, "stage": asked.stage}
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


def versions(target: Target) -> dict[str, str]:
    """Of what turns a step into a program."""
    packages = ("jax", "jaxlib", "flax", *(() if target.chip is None else ("libtpu",)))
    return {name: importlib.metadata.version(name) for name in packages}


def examine(training: Training, target: Target) -> dict[str, Any]:
    """Compiles the step for the target; what it needs there, as JSON values. Counts are of one device and one step."""
    settings, mesh = training.settings, target.mesh
    loop = settings.loop
    network = training_network(training.model, training.stage, num_classes=training.num_classes)
    # Made anew, not shared: the calls are seen while it is traced for the first time.
    program = make_program(network, recipe_of(settings), size=settings.geometry.size, mesh=mesh)
    state, base = (
        placed(shapes, split_from(shapes, loop.split_from, mesh))
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


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a device's memory by what they hold. Results that take their arguments' place count once."""
    found: Any = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    return parts | {"all": sum(parts.values())}


def fits(needed: int, target: Target) -> bool:
    """Whether a device of the target holds `needed` bytes and leaves `FREE_SHARE` of its memory free."""
    assert target.chip is not None
    return needed <= (1 - FREE_SHARE) * target.chip.memory_bytes


def estimate(
    *, flops: float, memory_traffic: float, collectives: Mapping[str, Mapping[str, int]], images: int, target: Target
) -> dict[str, Any]:
    """A roofline: how long a step takes if each of its parts ran at the rate that is published for the chip.

    Computing and memory traffic overlap, so the longer of the two counts; the collectives are added to it, as if
    nothing were computed meanwhile. An all-reduce of B bytes over n devices sends 2 B (n - 1) / n from each, an
    all-gather, reduce-scatter, all-to-all or broadcast half of that, a permutation B. Latencies, and that a slice which
    is no whole pod has fewer links, are left out. Programs do not reach these rates: this is the least time, not the
    likely one.

    Args:
      flops, memory_traffic, collectives: of one device and step. FLOPs are the compiler's count.
      images: what one step takes in on all devices, both views or sides counted.
    """
    chip = target.chip
    assert chip is not None
    num_devices = target.mesh.size
    others = (num_devices - 1) / num_devices
    sends = {"all-reduce": 2 * others, "collective-permute": 1.0}
    sent = sum(found["bytes"] * sends.get(kind, others) for kind, found in collectives.items())
    parts = {
        "compute_seconds": flops / chip.flops,
        "memory_seconds": memory_traffic / chip.memory_bandwidth,
        "collective_seconds": sent / chip.interconnect_bandwidth,
    }
    seconds = max(parts["compute_seconds"], parts["memory_seconds"]) + parts["collective_seconds"]
    return parts | {
        "step_seconds": seconds,
        "bound": max(parts, key=lambda name: parts[name]).removesuffix("_seconds"),
        "images_per_second": images / seconds,
        "flop_utilization": parts["compute_seconds"] / seconds,
    }


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


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records side by side as markdown: a row a quantity, a column a target."""
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "devices": lambda r: f"{r['num_devices']:,}",
        "batch, images a device and step": lambda r: (
            f"{r['batch_size']:,}, {2 * r['batch_size'] // r['num_devices']:,}"
        ),
        "precision": lambda r: r["dtype"],
        "parameters": lambda r: f"{r['parameters']['all'] / 1e6:,.2f} M",
        "state a device": lambda r: f"{r['state_bytes'] / GIB:.2f} GiB",
        "FLOP a device": lambda r: f"{r['flops'] / 1e12:.3g} T",
        "memory traffic a device": lambda r: f"{r['memory_traffic_bytes'] / 1e9:.4g} GB",
        "bytes accessed, as the compiler counts": lambda r: f"{r['bytes_accessed'] / 1e9:.4g} GB",
        "memory a device": _memory_words,
        "fits": lambda r: {True: "yes", False: "no", None: "unknown"}[r["fits"]],
        "collectives": lambda r: (
            ", ".join(f"{found['count']} {kind}" for kind, found in r["collectives"].items()) or "none"
        ),
        "collective bytes, over the minimum": lambda r: (
            f"{r['collective_bytes'] / 1e6:,.4g} MB, {r['collective_bytes_over_minimum']:.3f}"
        ),
        "estimate: computing": lambda r: _milliseconds(r, "compute_seconds"),
        "estimate: memory": lambda r: _milliseconds(r, "memory_seconds"),
        "estimate: collectives": lambda r: _milliseconds(r, "collective_seconds"),
        "estimate: step": lambda r: _milliseconds(r, "step_seconds"),
        "estimate: bound by": lambda r: r["estimate"]["bound"],
        "estimate: images a second": lambda r: f"{r['estimate']['images_per_second']:,.0f}",
        "estimate: utilization of FLOP/s": lambda r: f"{r['estimate']['flop_utilization']:.0%}",
        "largest batch that fits": lambda r: f"{r['largest_batch']['batch_size']:,}",
    }
    lines = [["", *(record["target"] for record in records)], ["---"] * (len(records) + 1)]
    for name, words in rows.items():
        cells = [_cell(words, record) for record in records]
        if any(cells):
            lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(words: Callable[[Mapping[str, Any]], str], record: Mapping[str, Any]) -> str:
    # A step that does not fit has not been compiled, and a CPU has no published rates.
    try:
        return words(record)
    except KeyError:
        return ""


def _memory_words(record: Mapping[str, Any]) -> str:
    needed = f"{record['memory_bytes']['all'] / GIB:.2f}"
    chip = record["chip"]
    return f"{needed} GiB" if chip is None else f"{needed} of {chip['memory_bytes'] / GIB:.0f} GiB"


def _milliseconds(record: Mapping[str, Any], part: str) -> str:
    return f"{1000 * record['estimate'][part]:.3g} ms"

"""Devices: the mesh, its shardings, and the transfer of host batches. The only file that names devices."""

import contextlib
import logging
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tll_jax.cache import cache_folder, ignoring_cache_errors, warn_of_unusable_cache
from tll_jax.errors import InvalidValue

logger = logging.getLogger(__name__)

DATA_AXIS = "data"

ANY_PLATFORM = "any"
"""A value for `tracing_for`: code that runs on every platform, if slowly on some."""

VECTOR_INSTRUCTIONS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}
"""Words for the flags of x86 processors in `/proc/cpuinfo`, the widest first."""

_target: ContextVar[str | None] = ContextVar("the platform that programs are traced for", default=None)


def check_platform() -> None:
    """Starts JAX's devices; raises ValueError if the platform in `JAX_PLATFORMS` is not available."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise
        # Cuts off JAX's advice; ours is given below.
        reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "no such device, or no package for it"
        raise InvalidValue(
            f"JAX_PLATFORMS is {asked!r}, which JAX cannot start here ({reason}); cpu is always there, and without "
            "JAX_PLATFORMS it takes the best that it finds"
        ) from error


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "data", over the given devices, by default all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """A mesh over this process's own devices, for work without the other processes."""
    return make_mesh(jax.local_devices())


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Context in which programs without shardings run on this process's CPU; no change without one in `JAX_PLATFORMS`.

    For programs that take longer to compile for an accelerator than to run.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def fsdp_shardings(tree: Any, min_size: int, mesh: Mesh) -> Any:
    """Shardings for fully sharded data parallelism (FSDP), a tree like `tree`.

    An array of at least `min_size` values is split over the devices along its longest axis that divides evenly. Smaller
    arrays, those without such an axis, and all if `min_size` is 0, are replicated. The compiler all-gathers a split
    parameter where it is used and reduce-scatters its gradient, so parameters and optimizer state take 1 / devices of
    the memory.
    """

    def sharding(leaf: Any) -> NamedSharding:
        shared = [(size, -axis) for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not min_size or leaf.size < min_size or not shared:
            return replicated(mesh)
        longest = -max(shared)[1]
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA_AXIS))

    return jax.tree.map(sharding, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Global arrays of the given shardings, from arrays that every process holds whole; no copy of placed ones."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)


def resident(tree: Any, mesh: Mesh) -> Any:
    """The tree on the devices of the mesh: arrays that lie elsewhere are copied to all of them, once for all calls of a
    compiled program, which would copy them each time."""
    devices = set(mesh.devices.flat)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.devices() == devices:
            return leaf
        return place(leaf, replicated(mesh))

    return jax.tree.map(one, tree)


def platform_of(mesh: Mesh) -> str:
    """The platform of the mesh's devices, such as "cpu" or "tpu"; the devices need not be attached."""
    return mesh.devices.flat[0].platform


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Sets the platform that `by_platform` traces for within the block.

    Enter it inside the traced function, not around the call: a jitted function is traced when it is first called.
    """
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def traced_platform() -> str | None:
    """The platform of the enclosing `tracing_for`, or None. Caches of traced functions must have it in their key,
    because JAX's own caches do not."""
    return _target.get()


@cache
def has_fused_attention(platform: str | None) -> bool:
    """Whether programs for `platform` can use cuDNN's fused attention: on NVIDIA GPUs of compute capability 8.0 or
    more (Ampere), which are attached. Others would refuse it only when they compile or run."""
    if platform not in ("gpu", "cuda"):
        return False
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:
        return False
    return all("cuda" in device.client.platform_version and float(device.compute_capability) >= 8 for device in devices)


def by_platform(*arguments: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`cpu(*arguments)` in programs for CPUs, `default(*arguments)` in all others.

    The platform is that of the enclosing `tracing_for`. Without one, both are traced and the compiler chooses, which is
    correct on every platform and slow to trace.
    """
    platform = traced_platform()
    if platform is None:
        return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)
    return (cpu if platform == "cpu" else default)(*arguments)


def hosts_of(mesh: Mesh) -> tuple[int, int]:
    """The number of processes that a mesh spans, and this process's index among them."""
    indices = sorted({device.process_index for device in mesh.devices.flat})
    return len(indices), indices.index(jax.process_index())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError if a batch cannot be split evenly over the mesh."""
    if batch_size % mesh.size:
        raise InvalidValue(
            f"batch_size is {batch_size}, which {mesh.size} devices cannot share evenly; "
            f"use a multiple of {mesh.size}, such as {batch_size // mesh.size * mesh.size or mesh.size}"
        )


def round_up_to_devices(batch_size: int, mesh: Mesh) -> int:
    """The smallest multiple of the device count that is at least `batch_size`."""
    return -(-batch_size // mesh.size) * mesh.size


def to_devices(batch: Any, sharding: NamedSharding) -> Any:
    """Global arrays from a host batch, which holds this process's rows."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, in the cache folder, for programs of all sizes.

    Small programs too: a study's fifty take a quarter of a megabyte, and compiling them takes seconds at every start. A
    damaged entry is dropped and compiled again, and without a usable folder every run compiles everything; both with a
    warning.
    """
    folder = cache_folder() / "xla"
    with ignoring_cache_errors():
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        if not isinstance(warnings.showwarning, _CacheWarnings):
            warnings.showwarning = _CacheWarnings(warnings.showwarning)


class _CacheWarnings:
    """A handler that acts on JAX's warnings about its cache and shows all other warnings.

    JAX neither names the file of a program that it cannot read nor overwrites it, so it would compile it in every run.
    """

    def __init__(self, show: Callable[..., None]) -> None:
        self._show = show

    def __call__(self, message: Warning | str, *details: Any, **more: Any) -> None:
        of_cache = re.match(
            r"Error (?:reading|writing) persistent compilation cache entry .*?(\[Errno .*)?$", str(message)
        )
        if of_cache and of_cache[1]:
            warn_of_unusable_cache(of_cache[1])
        # At once: the program compiled next is written in place of the damaged one.
        elif not (of_cache and _drop_damaged_programs()):
            self._show(message, *details, **more)


def _drop_damaged_programs() -> bool:
    """Removes damaged programs from the cache; returns whether there were any."""
    # Not a public function of JAX, but the only one that applies the compression in use.
    from jax._src.compilation_cache import decompress_executable

    dropped = False
    for path in (cache_folder() / "xla").glob("*-cache"):
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            try:
                decompress_executable(data)
            except Exception:
                # Each compression library has its own errors; none of them is an OSError of the disk.
                path.unlink()
                dropped = True
                logger.warning("the compiled program in %s is damaged: it is compiled again", path)
    return dropped


def describe() -> list[str]:
    """Descriptions of the devices, one line each, for the results."""
    return [f"{device.platform}: {device.device_kind}" for device in jax.devices()]


def hardware() -> dict[str, Any]:
    """The machine's entries in the results: platform, processor, usable cores, memory and devices."""
    return host() | {"devices": describe()}


def host() -> dict[str, Any]:
    """`hardware` without the devices, for callers that cannot start them."""
    return {
        "platform": platform.platform(),
        "cpu": _processor_name(),
        "cores": num_cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
    }


def memory_bytes() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def num_devices() -> int:
    """The number of devices of all processes."""
    return jax.device_count()


def num_cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return _described(cpuinfo.read_text() if cpuinfo.exists() else "") or platform.processor() or platform.machine()


def _described(cpuinfo: str) -> str:
    """Name and widest vector instructions of the first processor in `/proc/cpuinfo`, "" if that has no name.

    Virtual machines give processors of several generations one name, and the instructions change sums and speed.
    """
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", "").split()
    widest = next((f" ({words})" for flag, words in VECTOR_INSTRUCTIONS.items() if flag in flags), "")
    return facts["model name"] + widest if facts.get("model name") else ""

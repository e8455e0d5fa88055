"""The only file that names devices: the mesh, its shardings, and how host batches get onto it."""

import contextlib
import ctypes
import logging
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tll_jax.cache import cache_folder, keeping, tell_of_no_use
from tll_jax.errors import InvalidValue

logger = logging.getLogger(__name__)

DATA_AXIS = "data"

ANY_PLATFORM = "any"
"""For `tracing_for`: what runs on every platform, if slowly on some."""

_target: ContextVar[str | None] = ContextVar("the platform that programs are traced for", default=None)

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Options of glibc's `mallopt`: no trimming, no allocation outside the heap, one heap for all threads."""


def check_platform() -> None:
    """Starts JAX's devices; raises ValueError where the platform that `JAX_PLATFORMS` names is not there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise
        # The mend that JAX adds is said below.
        reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "no such device, or no package for it"
        raise InvalidValue(
            f"JAX_PLATFORMS is {asked!r}, which JAX cannot start here ({reason}); cpu is always there, and without "
            "JAX_PLATFORMS it takes the best that it finds"
        ) from error


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over all devices of all processes, or over those given."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """A mesh over this process's own devices: for work that no other process takes part in."""
    return make_mesh(jax.local_devices())


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def fsdp_shardings(tree: Any, min_size: int, mesh: Mesh) -> Any:
    """Shardings like `tree`: an array of at least `min_size` values is split over the devices along its longest axis
    that they can share evenly; a smaller one, one without such an axis, or any where `min_size` is 0, is everywhere.

    Parameters so split, and what the optimizer keeps of each, take a device's share of memory; the compiler gathers a
    parameter where it is used and hands out its gradient in parts (fully sharded data parallelism).
    """

    def sharding(leaf: Any) -> NamedSharding:
        shared = [(size, -axis) for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not min_size or leaf.size < min_size or not shared:
            return replicated(mesh)
        longest = -max(shared)[1]
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA_AXIS))

    return jax.tree.map(sharding, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, as global arrays of the given shardings; what lies so already stays."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)


def platform_of(mesh: Mesh) -> str:
    """What the mesh's devices are, "cpu" or "tpu" for example; they need not be there."""
    return mesh.devices.flat[0].platform


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Whatever is traced inside is for `platform` alone, so that `by_platform` need not trace the code of others.

    Enter it in the traced function, not around the call: a compiled function is traced when it is first called.
    """
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def traced_platform() -> str | None:
    """The platform of the enclosing `tracing_for`; None outside. Part of the key of what is traced once for many
    callers: JAX does not see it."""
    return _target.get()


def by_platform(*arguments: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`cpu(*arguments)` in programs for CPUs, `default(*arguments)` in all others.

    The platform is that of the enclosing `tracing_for`. Outside, both are traced and the compiler takes one, which is
    right everywhere and slow to trace.
    """
    platform = traced_platform()
    if platform is None:
        return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)
    return (cpu if platform == "cpu" else default)(*arguments)


def hosts_of(mesh: Mesh) -> tuple[int, int]:
    """How many processes a mesh spans, and which of them, counted from 0, this one is."""
    indices = sorted({device.process_index for device in mesh.devices.flat})
    return len(indices), indices.index(jax.process_index())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError where a batch cannot be split evenly over the mesh."""
    if batch_size % mesh.size:
        raise InvalidValue(
            f"batch_size is {batch_size}, which {mesh.size} devices cannot share evenly; "
            f"use a multiple of {mesh.size}, such as {batch_size // mesh.size * mesh.size or mesh.size}"
        )


def round_up_to_devices(batch_size: int, mesh: Mesh) -> int:
    """The smallest multiple of the device count that is at least `batch_size`."""
    return -(-batch_size // mesh.size) * mesh.size


def to_devices(batch: Any, sharding: NamedSharding) -> Any:
    """A host batch (this process's rows) as global arrays."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)


def keep_compiled_programs() -> None:
    """Compiled programs are kept in the cache folder, so that equal steps compile once for all models, seeds and runs.

    Small ones too: a study's fifty take a quarter of a megabyte, and compiling them seconds at every start. A damaged
    one is dropped and compiled again; where the folder cannot be used, all are compiled in every run; both with a
    warning.
    """
    folder = cache_folder() / "xla"
    with keeping():
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        if not isinstance(warnings.showwarning, _CacheWarnings):
            warnings.showwarning = _CacheWarnings(warnings.showwarning)


class _CacheWarnings:
    """Does what JAX's warnings of its cache call for, and shows all other warnings.

    JAX neither names the file of a program that it cannot read nor writes over it: it would compile it in every run.
    """

    def __init__(self, show: Callable[..., None]) -> None:
        self._show = show

    def __call__(self, message: Warning | str, *details: Any, **more: Any) -> None:
        of_cache = re.match(
            r"Error (?:reading|writing) persistent compilation cache entry .*?(\[Errno .*)?$", str(message)
        )
        if of_cache and of_cache[1]:
            tell_of_no_use(of_cache[1])
        # Now, for the program that is then compiled takes the place of the one that could not be read.
        elif not (of_cache and _drop_damaged_programs()):
            self._show(message, *details, **more)


def _drop_damaged_programs() -> bool:
    """Whether there were any."""
    # Not part of JAX's interface, but the only one who knows which compression it has chosen.
    from jax._src.compilation_cache import decompress_executable

    dropped = False
    for path in (cache_folder() / "xla").glob("*-cache"):
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            try:
                decompress_executable(data)
            except Exception:
                # Each compression has errors of its own; none of them is the disk's.
                path.unlink()
                dropped = True
                logger.warning("the compiled program in %s is damaged: it is compiled again", path)
    return dropped


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next step instead of handing it back to the system.

    XLA on a CPU allocates its buffers anew for every step, and the system clears each page that it hands out: single
    passes over a batch took up to ten times as long without this, training steps a tenth longer (measured). Memory
    stays at its peak in exchange. Nothing happens where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def describe() -> list[str]:
    """One line a device, as a results file records them."""
    return [f"{device.platform}: {device.device_kind}" for device in jax.devices()]


def hardware() -> dict[str, Any]:
    """What a results file says of the machine: platform, processor, usable cores, memory and devices."""
    return host() | {"devices": describe()}


def host() -> dict[str, Any]:
    """`hardware` without the devices, for where these cannot be had."""
    return {
        "platform": platform.platform(),
        "cpu": _processor_name(),
        "cores": num_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def num_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

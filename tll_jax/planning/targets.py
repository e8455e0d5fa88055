"""Devices to compile for, which need not be attached."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from tll_jax.devices import make_mesh
from tll_jax.errors import InvalidValue, MissingPackage
from tll_jax.planning.chips import CHIPS, Chip


@dataclass(frozen=True, kw_only=True)
class Target:
    """A mesh of devices to compile for."""

    name: str
    mesh: Mesh
    chip: Chip | None
    """Chip of each device; None if no rates are published, and nothing can be estimated."""


def open_targets(names: Sequence[str]) -> list[Target]:
    """Devices of targets such as "cpu:8" and "tpu:v5e:4x4"; none has to be attached.

    From then on this process computes on its CPU, and for TPUs the environment is set so that their compiler does not
    look for hardware.

    Raises:
      ValueError: an unknown target.
      ImportError: the compiler of a TPU target is not installed.
    """
    # Nothing runs here, so an attached accelerator is left alone.
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
        # JAX is initialized in this process, so its number of devices is fixed.
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

    # Without these, libtpu queries a metadata server for the machine, and fails if another process has libtpu open.
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


def versions(target: Target) -> dict[str, str]:
    """Versions of the packages that compile a step."""
    packages = ("jax", "jaxlib", "flax", *(() if target.chip is None else ("libtpu",)))
    return {name: importlib.metadata.version(name) for name in packages}

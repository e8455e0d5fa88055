"""`tll doctor`: the state of the installation for bug reports: versions, GPU driver, devices, memory, speed, cache,
decoders, data and extras."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tll_jax
from tll_jax.cache import cache_folder
from tll_jax.errors import UserError

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "tensorflow-datasets",
    "numpy",
    "scipy",
    "pillow",
)
DATA_SETS = ("totally-looks-like.zip", "imagenette-128.zip")
"""Files in `$TLL_DATA` that the configs use."""
NUM_TIMED = 5
CUDA_EXTRAS = {"cuda13": (580,), "cuda12": (525, 60, 13)}
"""Extras that install CUDA, newest first, with the oldest NVIDIA driver that each works with on Linux.

Source: the installation page of JAX.
"""


def examine() -> str:
    """A plain-text report, one line a topic. An error in a topic is shown in its line and does not stop the others."""
    topics: dict[str, Callable[[], str]] = {
        "tll_jax": _program,
        "versions": _versions,
        "extras": _extras,
        "machine": _machine,
        "gpu": _gpu,
        "devices": _devices,
        "speed": _speed,
        "cache": _cache,
        "decoder": _decoder,
        "emoji": _emoji,
        "data": _data,
    }
    return "\n".join(f"{topic:9} {_answer(find)}" for topic, find in topics.items())


def _answer(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception as error:
        # Every error is caught: the report must show it.
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return f"BROKEN: {kind}{' '.join(str(error).split())}"


def _program() -> str:
    python = f"Python {platform.python_version()} ({sys.executable})"
    return f"{tll_jax.__version__} in {Path(tll_jax.__file__).parent}, {python}"


def _versions() -> str:
    return ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in PACKAGES)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> str:
    try:
        extras = importlib.metadata.metadata("tll_jax").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return "unknown: tll_jax runs from its source, without having been installed"
    return ", ".join(f"{extra} {_state_of_extra(extra)}" for extra in extras)


def _state_of_extra(extra: str) -> str:
    missing = [name for name in dict.fromkeys(_packages_of(extra, "tll_jax")) if _version(name) is None]
    return f"missing ({', '.join(missing)})" if missing else "installed"


def _packages_of(extra: str, package: str) -> Iterator[str]:
    """Names of the packages in `package[extra]`, including those of extras that it refers to."""
    if _version(package) is None:
        return
    for requirement in importlib.metadata.requires(package) or ():
        parts = re.match(r"([\w.-]+)(?:\[([^]]*)\])?.*;.*extra == ['\"]([^'\"]+)", requirement)
        if parts is None or parts[3] != extra:
            continue
        yield parts[1]
        for nested in filter(None, (parts[2] or "").split(",")):
            yield from _packages_of(nested.strip(), parts[1])


def _machine() -> str:
    from tll_jax.devices import host

    found = host()
    available = re.search(r"^MemAvailable: +(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    free = f", {int(available[1]) / 2**20:.1f} available" if available else ""
    cores = "1 core" if found["cores"] == 1 else f"{found['cores']} cores"
    return f"{found['platform']}; {found['cpu']}, {cores}; memory {found['memory_gib']} GiB{free}"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _gpu() -> str:
    """The version of the NVIDIA driver, and the extra that fits it."""
    version = driver_version(_read("/proc/driver/nvidia/version"))
    if version is None and shutil.which("nvidia-smi"):
        # Under WSL there is no such file.
        version = driver_version(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout)
    return "no NVIDIA driver" if version is None else f"NVIDIA driver {version}: {cuda_advice(version)}"


def driver_version(text: str) -> str | None:
    """The driver's version in the output of nvidia-smi or in /proc/driver/nvidia/version; None if there is none.

    Examples:
      >>> driver_version("| NVIDIA-SMI 565.57.01   Driver Version: 550.54.15   CUDA Version: 12.4 |")
      '550.54.15'
    """
    found = re.search(r"(?:Driver Version:|Kernel Module(?: +for \S+)?) +(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def cuda_advice(version: str) -> str:
    """Advice on the CUDA extra that fits a driver.

    >>> cuda_advice("550.54.15")
    'install [cuda12]; [cuda13] needs driver 580 or newer'
    """
    parts = tuple(int(part) for part in version.split("."))
    oldest = {extra: ".".join(str(part) for part in least) for extra, least in CUDA_EXTRAS.items()}
    too_new: list[str] = []
    for extra, least in CUDA_EXTRAS.items():
        if parts >= least:
            return "; ".join([f"install [{extra}]", *too_new])
        too_new.append(f"[{extra}] needs driver {oldest[extra]} or newer")
    return f"TOO OLD FOR JAX: {'; '.join(too_new)}"


def _devices() -> str:
    import jax

    return "; ".join(_device(device) for device in jax.devices())


def _device(device: Any) -> str:
    memory = device.memory_stats() or {}
    limit, used = memory.get("bytes_limit"), memory.get("bytes_in_use", 0)
    size = f", memory {limit / 2**30:.1f} GiB, {used / 2**30:.1f} used" if limit else ""
    return f"{device.id}: {device.platform} {device.device_kind}{size}"


def _speed() -> str:
    """Measured speed of the first device, in GFLOP/s."""
    import jax
    import jax.numpy as jnp

    from tll_jax.models.ops.convolution import convolve_plainly

    images, kernel, square = jnp.ones((16, 32, 32, 64)), jnp.ones((3, 3, 64, 64)), jnp.ones((1024, 1024))
    convolution = _gigaflops(jax.jit(convolve_plainly), images, kernel, flops=2 * images.size * kernel.size // 64)
    dot = _gigaflops(jax.jit(jnp.matmul), square, square, flops=2 * 1024**3)
    return f"3x3 convolution of 64 channels {convolution:.0f} GFLOP/s, dot of 1024 x 1024 {dot:.0f} GFLOP/s, float32"


def _gigaflops(compute: Callable[..., Any], *arguments: Any, flops: int) -> float:
    """GFLOP/s of the fastest of a few runs."""
    compute(*arguments).block_until_ready()
    seconds = []
    for _ in range(NUM_TIMED):
        started = time.perf_counter()
        compute(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return flops / min(seconds) / 1e9


def _cache() -> str:
    folder = cache_folder()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    held = f"{folder}: {sum(sizes) / 2**20:.1f} MiB in {len(sizes)} files"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{held}; CANNOT BE WRITTEN ({error}): what it would keep is computed again in every run; set $TLL_CACHE"
    return held


def _decoder() -> str:
    import cv2
    import numpy as np

    from tll_jax.data.imaging import decode

    working = []
    for suffix in (".jpg", ".png", ".webp"):
        encoded = cv2.imencode(suffix, np.zeros((8, 8, 3), np.uint8))[1].tobytes()
        assert decode(encoded, f"an image{suffix}").shape == (8, 8, 3)
        working.append(suffix[1:])
    jpeg = re.search(r"JPEG: +(.*)", cv2.getBuildInformation())
    return f"OpenCV {cv2.__version__}, JPEG by {jpeg[1] if jpeg else 'an unknown library'}; reads {', '.join(working)}"


def _emoji() -> str:
    from tll_jax.data.emoji import EmojiPairs

    return f"{len(EmojiPairs().open()):,} pairs of the package"


def _data() -> str:
    if not os.environ.get("TLL_DATA"):
        return "$TLL_DATA is not set: the studies of photographs need it; those of emoji do not"
    folder = Path(os.environ["TLL_DATA"])
    if not folder.is_dir():
        return f"$TLL_DATA is {folder}, which is NOT A FOLDER"
    return f"$TLL_DATA is {folder}: " + "; ".join(_answer(partial(_images_in, folder / name)) for name in DATA_SETS)


def _images_in(path: Path) -> str:
    from tll_jax.data.archive import Archive

    if not path.exists():
        return f"{path.name} is not there"
    return f"{path.name} holds {len(Archive(path).images):,} images"

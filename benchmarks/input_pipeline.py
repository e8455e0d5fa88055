"""Images per second of the two-view pipeline at 224 pixels, beside a PyTorch DataLoader and beside decoding alone.

pip install -e '.[bench]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python benchmarks/input_pipeline.py [--workers 2] [--out benchmarks/results/input_pipeline.json]

Every source image is decoded once and gives two random resized crops. Two rows a source:
  crops: uint8 views, stacked. Limit: the same decoding and cropping in plain threads, with nothing around it.
  batches: finished float views, photometric augmentation included; ours on the device, the peer's with OpenCV in its
    workers, as PyTorch users do it. The limit is that of decoding and cropping still.
The peer reads the same files with the same OpenCV calls and draws its boxes the same way, in as many worker processes
as we have threads, with one thread each. Runs are interleaved, the median of `--rounds` counts; images are source
images, each decoded once. All of them have the whole machine for themselves.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import torch
from harness import show, write_results
from torch.utils.data import DataLoader, Dataset

from tll_jax.augment.recipes import barlow_view_a, barlow_view_b
from tll_jax.data.archive import Archive
from tll_jax.data.folder import FolderSource
from tll_jax.data.geometry import RandomResizedCrop
from tll_jax.data.pipeline import Readers, training_batches, view_dataset
from tll_jax.devices import batch_sharded as sharded
from tll_jax.devices import make_mesh, to_devices
from tll_jax.program import start_with_huge_pages
from tll_jax.training.step import augment_batch

SIZE, BATCH = 224, 64
CROP = RandomResizedCrop(size=SIZE, scale=(0.08, 1.0))
SOURCES = {
    "128 x 128 JPEG (Imagenette)": ("imagenette-128.zip", "imagenette/train/"),
    "200 x 245 JPEG (Totally Looks Like)": ("totally-looks-like.zip", "train/"),
}


def open_source(path: Path, prefix: str) -> FolderSource:
    archive = Archive(path)
    return FolderSource(archive, [name for name in archive.images if name.startswith(prefix)])


def ours(source: FolderSource, workers: int, *, finished: bool) -> Iterator[Any]:
    # Nothing is kept: every image is decoded at each visit, as the peer does.
    dataset = view_dataset(source, CROP, seed=0, kept_bytes=0)
    batches = training_batches(dataset, batch_size=BATCH, start_step=0, readers=Readers(num_threads=workers))
    if not finished:
        yield from batches
    sharding = sharded(make_mesh(jax.devices()[:1]))
    augment = jax.jit(lambda key, batch: augment_batch(key, batch, (barlow_view_a(), barlow_view_b())))
    key, ahead = jax.random.key(0), None
    for step, batch in enumerate(batches):
        augmented = augment(jax.random.fold_in(key, step), to_devices(batch, sharding))
        if ahead is not None:
            yield jax.block_until_ready(ahead)
        ahead = augmented


class TorchViews(Dataset):
    """Two views of every image, as a PyTorch user would write it with OpenCV."""

    def __init__(self, source: FolderSource, *, finished: bool) -> None:
        self.archive_path, self.names, self.finished = source.archive.path, source.names, finished
        self.archive: Archive | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        if self.archive is None:
            self.archive = Archive(self.archive_path)
            cv2.setNumThreads(0)
        data = np.frombuffer(self.archive.read(self.names[index]), np.uint8)
        image = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        rng = np.random.default_rng()
        views = [CROP(rng, image) for _ in range(2)]
        if self.finished:
            views = [photometric(rng, views[0], 1.0, 0.0), photometric(rng, views[1], 0.1, 0.2)]
        return *views, 0


def photometric(rng: np.random.Generator, view: np.ndarray, blur: float, solarize: float) -> np.ndarray:
    """Jitter, gray, blur and solarization of Barlow Twins in OpenCV; float32 in [0, 1]."""
    image = view.astype(np.float32) / 255
    if rng.random() < 0.8:
        image = np.clip(image * rng.uniform(0.6, 1.4), 0, 1)
        mean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()
        image = np.clip(mean + rng.uniform(0.6, 1.4) * (image - mean), 0, 1)
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        image = np.clip(gray + rng.uniform(0.8, 1.2) * (image - gray), 0, 1)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + 360 * rng.uniform(-0.1, 0.1)) % 360
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.random() < 0.2:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if rng.random() < blur:
        image = cv2.GaussianBlur(image, (23, 23), rng.uniform(0.1, 2.0))
    if rng.random() < solarize:
        image = np.where(image >= 0.5, 1 - image, image)
    return image


def peer(source: FolderSource, workers: int, *, finished: bool) -> Iterator[Any]:
    dataset = TorchViews(source, finished=finished)
    while True:
        yield from DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True, prefetch_factor=4)


def limit(source: FolderSource, workers: int) -> Iterator[Any]:
    """Decoding and two crops in threads, a batch's worth at a time; nothing is shuffled, stacked or seeded."""

    def views(index: int) -> Any:
        rng = np.random.default_rng(index)
        image, _ = source[index % len(source)]
        return CROP(rng, image), CROP(rng, image)

    with ThreadPoolExecutor(workers) as pool:
        start = 0
        while True:
            yield list(pool.map(views, range(start, start + BATCH), chunksize=BATCH // workers))
            start += BATCH


def images_per_second(batches: Iterator[Any], *, seconds: float) -> float:
    """Source images per second, the first batches (start of workers, compilation) left out."""
    for _ in range(4):
        next(batches)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(batches)
        count += BATCH
    rate = count / (time.perf_counter() - started)
    if hasattr(batches, "close"):
        batches.close()
    return rate


def main() -> None:
    """Measures every row and prints one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_with_huge_pages()
    folder = Path(os.environ["TLL_DATA"])
    rows = []
    for label, (name, prefix) in SOURCES.items():
        source = open_source(folder / name, prefix)
        for kind in ("crops", "batches"):
            finished = kind == "batches"
            systems: dict[str, Callable[[], Iterator[Any]]] = {
                "ours": lambda source=source, f=finished: ours(source, arguments.workers, finished=f),
                "pytorch": lambda source=source, f=finished: peer(source, arguments.workers, finished=f),
                "limit": lambda source=source: limit(source, arguments.workers),
            }
            rates: dict[str, list[float]] = {system: [] for system in systems}
            for _ in range(arguments.rounds):
                for system, start in systems.items():
                    rates[system].append(images_per_second(start(), seconds=arguments.seconds))
            medians = {system: statistics.median(values) for system, values in rates.items()}
            row = {
                "benchmark": "input_pipeline",
                "row": f"{kind}, {label}",
                "ours": round(medians["ours"], 1),
                "peer": round(medians["pytorch"], 1),
                "peer_name": "PyTorch DataLoader with OpenCV",
                "ratio": round(medians["ours"] / medians["pytorch"], 3),
                "unit": "source images/s",
                "limit": round(medians["limit"], 1),
                "ratio_to_limit": round(medians["ours"] / medians["limit"], 3),
                "workers": arguments.workers,
                "all_runs": {system: [round(value, 1) for value in values] for system, values in rates.items()},
            }
            show(row)
            rows.append(row)
    versions = {"torch": torch.__version__, "jax": jax.__version__, "opencv": cv2.__version__}
    write_results(arguments.out, versions=versions, rows=rows)


if __name__ == "__main__":
    main()

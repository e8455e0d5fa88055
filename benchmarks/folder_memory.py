"""Peak memory of training input from a folder of many images, which must not grow with their number.

python benchmarks/folder_memory.py [--images 200000] [--out benchmarks/results/folder_memory.json]

Makes a folder of hard links to the emoji of the package, opens it as `ImageFolder`, and reads batches of two 64-pixel
views. Prints one JSON line: peak resident memory with so many images and with a hundredth of them, and seconds to open.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import write_results

from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.folder import ImageFolder
from tll_jax.data.geometry import RandomResizedCrop
from tll_jax.data.pipeline import Readers, training_batches, view_dataset

NUM_FILES, PER_FOLDER, NUM_BATCHES = 100, 1000, 50


def make_folder(folder: Path, num_images: int) -> None:
    """`num_images` names of 100 files, a thousand names a folder."""
    archive = Archive(ARCHIVE)
    originals = []
    for index, name in enumerate(archive.images[:NUM_FILES]):
        original = folder / f"original-{index}"
        original.write_bytes(archive.read(name))
        originals.append(original)
    for start in range(0, num_images, PER_FOLDER):
        part = folder / "images" / f"{start:08}"
        part.mkdir(parents=True)
        for index in range(start, min(start + PER_FOLDER, num_images)):
            os.link(originals[index % NUM_FILES], part / f"{index:08}.webp")


def read(folder: str) -> None:
    """Opens and reads; prints peak memory and times as JSON."""
    started = time.perf_counter()
    source = ImageFolder(path=folder, subfolder="images").open(held_out=frozenset())
    source.digest()
    opened = time.perf_counter() - started
    dataset = view_dataset(source, RandomResizedCrop(size=64), seed=0)
    batches = training_batches(dataset, batch_size=128, start_step=0, readers=Readers(num_threads=2))
    for _ in range(NUM_BATCHES):
        next(batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"images": len(source), "peak_gib": round(peak, 3), "seconds_to_open": round(opened, 2)}))


def main() -> None:
    """Measures both sizes, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read)
        return
    rows = []
    for num_images in (arguments.images // 100, arguments.images):
        with tempfile.TemporaryDirectory() as folder:
            make_folder(Path(folder), num_images)
            command = [sys.executable, __file__, "--read", folder]
            rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    few, many = rows
    row = {
        "benchmark": "folder_memory",
        "row": f"{many['images']:,} images",
        "ours": many["peak_gib"],
        "peer": few["peak_gib"],
        "peer_name": f"the same with {few['images']:,} images",
        "ratio": round(few["peak_gib"] / many["peak_gib"], 3),
        "unit": "GiB at peak",
        "seconds_to_open": many["seconds_to_open"],
    }
    print(json.dumps(row))
    write_results(arguments.out, **row)


if __name__ == "__main__":
    main()

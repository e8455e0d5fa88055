"""How well the model of `tll find` ranks known look-alikes and finds changed copies, beside other programs.

TLL_DATA=FOLDER python benchmarks/find_quality.py --work FOLDER [--model FILE ...] [--out FILE]

Look-alikes: the 325 test pairs of Totally Looks Like, each side among the other sides of all. Copies: 1,000 photos of
Imagenette and five changed copies of each, every copy against all photos. A program that scores a copy with its photo
above its threshold has found it; the threshold is the one at which .99 of all that it finds is right, which favors all
programs alike. `near-duplicates` is what `tll find` sets aside, by thresholds of its own. fastdup and difPy are
installed by pip, each in WORK/NAME; one that cannot be installed makes a row that says so. Equal scores are ordered at
random.
"""

import argparse
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import find
import imagehash
import model_files
import numpy as np
from harness import imagenette_photos, show, write_results
from PIL import Image

from tll_jax import load
from tll_jax.data.imaging import decode, read_image, write_image
from tll_jax.data.splits import Manifest
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.evaluation import metrics
from tll_jax.gallery.kinds import are_near
from tll_jax.gallery.pictures import perceptual_hashes
from tll_jax.ranking import dense

NUM_PHOTOS, PRECISION, SEED = 1000, 0.99, 0
HASHES = {"pHash": imagehash.phash, "dHash": imagehash.dhash, "wHash": imagehash.whash}

Scores = np.ndarray
"""Of the files of one folder with those of another, `[files, others]`; larger means more alike."""


def by_model(file: str) -> Callable[[Path, Path], Scores]:
    """Cosines of a model file's embeddings."""
    model = load(file)

    def embed(folder: Path) -> np.ndarray:
        return model.explainer.embed([read_image(path) for path in sorted(folder.iterdir())])

    def scores(left: Path, right: Path) -> Scores:
        sides = [embed(folder) for folder in (left, right)]
        ours, theirs = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
        return ours @ theirs.T

    return scores


def by_hash(function: Callable[[Image.Image], imagehash.ImageHash]) -> Callable[[Path, Path], Scores]:
    """Bits in which hashes agree, of 64."""

    def bits(folder: Path) -> np.ndarray:
        return np.stack([function(Image.open(path)).hash.ravel() for path in sorted(folder.iterdir())])

    def scores(left: Path, right: Path) -> Scores:
        ours, theirs = (2.0 * bits(folder) - 1 for folder in (left, right))
        return (64 + ours @ theirs.T) / 2

    return scores


FEATURES = {
    # Vectors of 576 numbers, of its default network.
    "fastdup": """
import fastdup
work = OUT + ".work"
fastdup.create(input_dir=DIR, work_dir=work).run(threshold=.9, nearest_neighbors_k=2, ccthreshold=.96, overwrite=True)
names, rows = fastdup.load_binary_feature(work + "/atrain_features.dat", d=576)
""",
    # Colors at 50 x 50 pixels.
    "difpy": """
import difPy
made = difPy.build(DIR, show_progress=False)
names = [made._filename_dictionary[key] for key in made._tensor_dictionary]
rows = numpy.stack([made._tensor_dictionary[key].ravel() for key in made._tensor_dictionary])
""",
}
"""How a peer describes the pictures of DIR: file names, and a row for each."""


def by_peer(name: str, work: Path) -> Callable[[Path, Path], Scores]:
    """Cosines of fastdup's features; negative mean squared differences of difPy's, without its turned copies."""
    python = find.installed(work / name, find.PEERS[name][0])

    def features(folder: Path) -> np.ndarray:
        out = work / f"{name}-{folder.name}.npz"
        code = (
            f"import numpy, os\nDIR, OUT = {str(folder)!r}, {str(out)!r}\n{FEATURES[name]}\n"
            "numpy.savez(OUT, names=[os.path.basename(name) for name in names], rows=rows)\n"
        )
        environment = os.environ | {"SENTRY_OPT_OUT": "1"}
        subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, env=environment)
        found = np.load(out)
        by_name = dict(zip(found["names"].tolist(), found["rows"].astype(np.float32), strict=True))
        return np.stack([by_name[path.name] for path in sorted(folder.iterdir())])

    def scores(left: Path, right: Path) -> Scores:
        ours, theirs = features(left), features(right)
        products = ours @ theirs.T
        lengths = [np.sum(side**2, axis=1) for side in (ours, theirs)]
        if name == "fastdup":
            return products / np.sqrt(np.outer(*lengths))
        return -(lengths[0][:, None] + lengths[1] - 2 * products) / ours.shape[1]

    return scores


def near_duplicates(left: Path, right: Path) -> Scores:
    """1 where `tll find` sets a pair aside as near-duplicates."""

    def hashes(folder: Path) -> np.ndarray:
        files = sorted(folder.iterdir())
        return np.array([perceptual_hashes(decode(path.read_bytes(), path.name)) for path in files], np.uint64)

    return are_near(hashes(left)[:, None], hashes(right)[None]).astype(np.float64)


def look_alikes(work: Path) -> tuple[Path, Path]:
    """Two folders with the sides of the test pairs, in their order."""
    pairs = TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip").open()
    images = pairs.images(pairs.indices(Manifest.load(model_files.TEST_PAIRS).test))
    folders = work / "left", work / "right"
    for folder, side in zip(folders, (images.left, images.right), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(len(images.ids)):
            write_image(folder / f"{number:04}.png", np.asarray(side[number]))
    return folders


def _turned(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), 25, 1), (width, height))


def _cropped(image: np.ndarray) -> np.ndarray:
    margins = [round(size * (1 - 0.87) / 2) for size in image.shape[:2]]
    return image[margins[0] : image.shape[0] - margins[0], margins[1] : image.shape[1] - margins[1]]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG of quality 30": lambda image: image,
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "inner 87 % of both sides": _cropped,
    "mirrored": lambda image: image[:, ::-1],
    "turned by 25 degrees": _turned,
}


def copies(work: Path) -> tuple[Path, dict[str, Path]]:
    """A folder of photos, and one of the copies of each kind."""
    originals = work / "originals"
    folders = {kind: work / f"copies-{number}" for number, kind in enumerate(CHANGES)}
    for folder in (originals, *folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (member, data) in enumerate(imagenette_photos(NUM_PHOTOS)):
        (originals / f"{number:04}.jpg").write_bytes(data)
        for kind, change in CHANGES.items():
            quality = 30 if kind.startswith("JPEG") else 90
            image = np.ascontiguousarray(change(decode(data, member))[..., ::-1])
            _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
            (folders[kind] / f"{number:04}.jpg").write_bytes(encoded.tobytes())
    return originals, folders


def recalls(scores: dict[str, Scores], threshold: float | None = None) -> dict[str, Any]:
    """Share of the copies of each kind that are found, at the lowest threshold of the required precision, or at one."""
    every = np.concatenate(list(scores.values()))
    is_right = np.tile(np.eye(every.shape[1], dtype=bool), (len(scores), 1))
    if threshold is None:
        order = np.argsort(-every, axis=None, kind="stable")
        ordered, right = every.ravel()[order], is_right.ravel()[order]
        # All pairs of one score are found together.
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        precise = ends[np.cumsum(right)[ends] / (ends + 1) >= PRECISION]
        threshold = float(ordered[precise[-1]]) if len(precise) else np.inf
    found = every >= threshold
    row: dict[str, Any] = {"precision": round(float(is_right[found].mean()), 4) if found.any() else None}
    return row | {kind: round(float(np.mean(np.diag(part) >= threshold)), 3) for kind, part in scores.items()}


def ranks_of(scores: Scores) -> np.ndarray:
    """Ranks of the true matches, `[2, pairs]`: each side asks among the other sides; equal scores in random order."""
    generator = np.random.default_rng(SEED)
    ranks = []
    for way in (scores, scores.T):
        places = np.argsort(np.lexsort((generator.random(way.shape), way), axis=1), axis=1)
        ranks.append(np.asarray(dense.ranks(places, np.arange(len(way)))))
    return np.stack(ranks)


def ranked(name: str, ranks: np.ndarray, first: tuple[str, np.ndarray]) -> dict[str, Any]:
    """MRR and hits, and by how much the first system is ahead."""
    table = metrics.metrics_row(name, "file", ranks[None])
    row = {"pairs": ranks.shape[1]} | {column: table[column] for column in model_files.COLUMNS}
    if name == first[0]:
        return row
    compared = metrics.compare({first[0]: first[1][None], name: ranks[None]}, planned=[(first[0], name)])
    ahead = {one["metric"]: {key: one[key] for key in ("difference", "low", "high")} for one in compared}
    return row | {"first_ahead_by": ahead}


def systems(work: Path, models: Sequence[str]) -> dict[str, Callable[[], Callable[[Path, Path], Scores]]]:
    """How to make the scores of each program, by name."""
    ours = {f"tll find, {Path(model).stem}": lambda model=model: by_model(model) for model in models}
    hashes = {name: lambda function=function: by_hash(function) for name, function in HASHES.items()}
    return ours | hashes | {name: lambda name=name: by_peer(name, work) for name in FEATURES}


def main() -> None:
    """Prints and writes a row for each program and task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", nargs="*", default=["default"], metavar="FILE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    sides, (originals, folders) = look_alikes(work), copies(work)
    tasks: dict[str, list[dict[str, Any]]] = {"rows": [], "copies": [], "failed": []}
    ranks: dict[str, np.ndarray] = {}

    def add(task: str, row: dict[str, Any]) -> None:
        tasks[task].append(row)
        show(row)

    for name, make in systems(work, arguments.model).items():
        try:
            scores = make()
            ranks[name] = ranks_of(scores(*sides))
            add("rows", {"system": name} | ranked(name, ranks[name], next(iter(ranks.items()))))
            found = recalls({kind: scores(folder, originals) for kind, folder in folders.items()})
            add("copies", {"system": name} | found)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            add("failed", {"system": name, "why": find.last_words(error)})
    aside = {kind: near_duplicates(folder, originals) for kind, folder in folders.items()}
    add("copies", {"system": "tll find, near-duplicates"} | recalls(aside, threshold=1.0))
    write_results(arguments.out, **tasks)


if __name__ == "__main__":
    main()

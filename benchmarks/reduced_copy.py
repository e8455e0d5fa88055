"""Reduced copies of the two research sets, small enough to carry to a machine without a network.

TLL_DATA=FOLDER python benchmarks/reduced_copy.py OUT

OUT gets zips of equal names and layout, with smaller pictures in WebP (names unchanged: the format is read from the
content), and `cache/` with face counts and perceptual hashes of the whole pictures, which a machine without dlib needs;
set TLL_DATA=OUT and TLL_CACHE to a copy of OUT/cache. Studies on the copies are of other pictures than those on the
whole sets, and are not to be compared with them.
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

from PIL import Image as PillowImage

from tll_jax.data.duplicates import NearDuplicates
from tll_jax.data.faces import DlibFaces
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.files import expand

SIZES = {
    "totally-looks-like.zip": {"train/": (80, 80)},
    # Validation pictures are only probed, at 64 pixels; crops of training pictures are smaller than the picture.
    "imagenette-128.zip": {"imagenette/train/": (96, 75), "imagenette/val/": (64, 80)},
}
"""Shorter side in pixels and WebP quality, by zip and folder."""


def reduced(data: bytes, side: int, quality: int) -> bytes:
    """A picture with a shorter side of at most `side`, as WebP."""
    picture = PillowImage.open(io.BytesIO(data)).convert("RGB")
    scale = min(1.0, side / min(picture.size))
    width, height = (round(scale * length) for length in picture.size)
    written = io.BytesIO()
    picture.resize((width, height), PillowImage.Resampling.LANCZOS).save(written, "WEBP", quality=quality, method=6)
    return written.getvalue()


def copy_zip(source: Path, out: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """Copies a zip with its pictures reduced; all other files stay as they are."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(out, "w") as write:
        for entry in read.infolist():
            size = next((size for folder, size in sizes.items() if entry.filename.startswith(folder)), None)
            is_picture = entry.filename.endswith(".jpg")
            data = read.read(entry)
            write.writestr(entry.filename, reduced(data, *size) if size and is_picture else data)


def write_cache(whole: Path, copy: Path, out: Path) -> None:
    """Writes what is known of the whole pictures of the pairs under the content hashes of the reduced ones."""
    faces, duplicates = DlibFaces(), NearDuplicates()
    known, pairs = (TotallyLooksLike(path=str(path), faces=faces).open() for path in (whole, copy))
    assert known.ids == pairs.ids
    images = known.images(range(len(known)))
    flat = [image for both in zip(images.left, images.right, strict=True) for image in both]
    hashes = [content for both in known.hashes for content in both]
    names = [content for both in pairs.hashes for content in both]
    out.mkdir(parents=True, exist_ok=True)
    for file, values in (
        (f"face-counts-dlib-{faces.upsample}.json", known.num_faces().reshape(-1).tolist()),
        ("perceptual-hashes.json", duplicates.hashes_of(flat, hashes)),
    ):
        (out / file).write_text(json.dumps(dict(zip(names, values, strict=True)), indent=0) + "\n")


def main() -> None:
    """Writes both copies and the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    data = expand("$TLL_DATA")
    for name, sizes in SIZES.items():
        copy_zip(data / name, out / name, sizes)
    pairs = "totally-looks-like.zip"
    write_cache(data / pairs, out / pairs, out / "cache")


if __name__ == "__main__":
    main()

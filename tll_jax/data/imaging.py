"""Encoded bytes to RGB pixels, whatever the file, or a reason why not."""

import hashlib
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage

from tll_jax.contracts import Image
from tll_jax.errors import InvalidValue, MissingFile

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded, where Pillow starts to warn of decompression bombs."""

READ_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
"""OpenCV's flag for a JPEG read at one over so much of its size."""

# The pipeline decodes in threads of its own; OpenCV's would fight them for the cores.
cv2.setNumThreads(0)
# What is broken is reported by `BrokenImage`; OpenCV would print it a second time.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class BrokenImage(InvalidValue):
    """An image that cannot be used; says which and why."""


def decode(data: bytes, name: str, *, shortest_side: int | None = None) -> Image:
    """uint8 `[height, width, 3]` RGB of a JPEG, PNG, WebP, BMP, TIFF or GIF's first frame.

    Gray and palette images become RGB, 16 bits become 8, CMYK is converted, transparency is composited on
    white, and EXIF orientation is applied. With `shortest_side` a JPEG is decoded at a half, a quarter or an eighth of
    its size where its shorter side keeps so many pixels: the decoder then averages areas, at a fraction of the time.

    Raises:
      BrokenImage: empty, unreadable or truncated data, or more than `MAX_PIXELS` pixels.
    """
    if not data:
        raise BrokenImage(f"{name}: the file is empty")
    try:
        # Reads the header only.
        header = PillowImage.open(io.BytesIO(data))
    except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning) as error:
        raise BrokenImage(f"{name}: more pixels than the {MAX_PIXELS:,} that are read ({error})") from error
    except Exception as error:
        raise BrokenImage(f"{name}: not an image that can be read") from error
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are read")
    opaque = header.mode in ("RGB", "L") and "transparency" not in header.info
    needs_pillow = not opaque or header.format in ("GIF", "TIFF")
    divisor = 1
    if shortest_side is not None and header.format == "JPEG":
        divisor = max((d for d in READ_REDUCED if min(width, height) >= d * shortest_side), default=1)
    pixels = _with_pillow(header, name) if needs_pillow else _with_opencv(data, divisor)
    if pixels is None:
        raise BrokenImage(f"{name}: the image data is damaged or cut short")
    return pixels


def read_image(path: Path) -> Image:
    """`decode` of a file.

    Raises:
      FileNotFoundError: there is no such file.
      BrokenImage: it is not an image that can be read.
    """
    if not path.is_file():
        raise MissingFile(f"there is no image file {path}")
    return decode(path.read_bytes(), str(path))


def _with_opencv(data: bytes, divisor: int) -> Image | None:
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        return None  # A JPEG whose last scan has no end marker: OpenCV would fill the rest with gray.
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), READ_REDUCED[divisor])
    except cv2.error:
        return None
    return None if decoded is None else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _with_pillow(header: PillowImage.Image, name: str) -> Image | None:
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(header)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            wide = np.asarray(image, np.float64)
            return np.repeat(np.clip(wide / 257, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = PillowImage.alpha_composite(PillowImage.new("RGBA", rgba.size, "white"), rgba)
        return np.array(image.convert("RGB"))
    except Exception as error:
        raise BrokenImage(f"{name}: the image data is damaged or cut short ({error})") from error


def shrink(image: Image, longest_side: int) -> Image:
    """The image in its own shape, its longer side at most `longest_side` pixels; small ones stay as they are."""
    scale = min(1.0, longest_side / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def resize(image: Image, height: int, width: int | None = None) -> Image:
    """Squashes an image to `[height, width, 3]`, a square by default: area averaging to shrink, bicubic to enlarge.

    Both are antialiased. As the mean over photos, in gray levels of 255, shrinking is .3 to 2.6 from Pillow's bilinear
    and .9 to 1.8 from its bicubic; enlarging is .7 from its bicubic.
    """
    width = height if width is None else width
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def content_hash(image: Image) -> str:
    """A name for an image's pixels and size."""
    return hashlib.blake2b(
        repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16
    ).hexdigest()

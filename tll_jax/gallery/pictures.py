"""Decoding of photos of phones and cameras, animations and pictures cut short, to the input of a model and of two
perceptual hashes."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import JpegImagePlugin

from tll_jax.data.imaging import MAX_PIXELS, START_BYTES, BrokenImage, decode, format_of
from tll_jax.errors import missing_package
from tll_jax.gallery.scan import RAW, readers
from tll_jax.typing import Geometry, Image

DECODER = 1
"""Raised when the same file comes to mean other pixels."""
MAX_ANIMATED_PIXELS = 2**31
"""Frames times pixels of an animation; of more only the first frame is taken, for later ones need all before."""
LEAST_READ = 0.5
"""A picture of which less is there, by its rows, is broken and not cut short."""
_EXIF, _ORIENTATION, _DETAILS, _TAKEN = b"Exif", 0x0112, 0x8769, 0x9003
_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)")
_CLOCKWISE = {3: 2, 5: 3, 6: 1}
"""Quarter turns by what LibRaw calls flip."""


class Decoded(NamedTuple):
    """A picture, or a frame of one, ready for the network."""

    frame: int
    pixels: Image
    """uint8 `[size, size, 3]`."""
    phash: int
    dhash: int
    width: int
    height: int
    """Width and height of the upright picture in the file."""
    taken: str | None
    """EXIF's date and time, `YYYY-MM-DDTHH:MM:SS`."""
    cut_short: bool


def decoder() -> str:
    """Version of the decoders: a file that is broken to one decoder may not be to another."""
    return "+".join([str(DECODER), *sorted(readers())])


def decode_all(data: bytes, name: str, geometry: Geometry) -> list[Decoded]:
    """The picture of a file as the network's input; of an animation the first, the middle and the last frame.

    Raises:
      BrokenImage: not a picture that can be read; the message says why, without the name.
    """
    is_jpeg = format_of(data[:START_BYTES]) == "JPEG"
    frames, cut_short, taken = read_frames(data, name, geometry.shortest_side)
    height, width = frames[0][1].shape[:2]
    if is_jpeg and not _is_raw(name):
        width, height, taken = _jpeg_facts(data, (width, height))
    return [
        Decoded(
            frame,
            geometry(np.random.default_rng(0), pixels),
            *perceptual_hashes(pixels),
            width,
            height,
            taken,
            cut_short,
        )
        for frame, pixels in frames
    ]


def read_frames(data: bytes, name: str, shortest_side: int | None) -> tuple[list[tuple[int, Image]], bool, str | None]:
    """Numbered frames of a file, whether it was cut short, and the time at which it was taken, where decoding gives it.

    Raises:
      BrokenImage: not a picture that can be read; the message says why, without the name.
    """
    try:
        if _is_raw(name):
            return [(0, _raw_preview(data, shortest_side))], False, None
        if format_of(data[:START_BYTES]) == "HEIC":
            pixels, taken = _heic(data)
            return [(0, pixels)], False, taken
        pixels, cut_short = _decode_even_cut(data, shortest_side)
        return [(0, pixels), *_later_frames(data)], cut_short, None
    except BrokenImage as error:
        raise BrokenImage(str(error).removeprefix(": ")) from error


def _is_raw(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in RAW.split()


def _decode_even_cut(data: bytes, shortest_side: int | None) -> tuple[Image, bool]:
    """The pixels, and whether the file is a JPEG that was cut short."""
    try:
        return decode(data, "", shortest_side=shortest_side), False
    except BrokenImage:
        if format_of(data[:START_BYTES]) != "JPEG":
            raise
        try:
            pixels = decode(data + b"\xff\xd9", "", shortest_side=shortest_side)
        except BrokenImage:
            pixels = np.zeros((1, 1, 3), np.uint8)
        # The decoder fills what is missing with one color.
        rows_there = int(np.flatnonzero(np.any(pixels != pixels[:, :1], axis=(1, 2))).max(initial=-1)) + 1
        if rows_there < LEAST_READ * len(pixels):
            raise
        return pixels, True


def _later_frames(data: bytes) -> Iterator[tuple[int, Image]]:
    """The middle and the last frame of an animation, or page; none where they cannot be read."""
    kind = format_of(data[:START_BYTES])
    may_move = {
        "GIF": True,
        "TIFF": True,
        "PNG": b"acTL" in data[: max(0, data.find(b"IDAT"))],
        "WEBP": data[12:16] == b"VP8X" and bool(data[20] & 2),
        "AVIF": b"avis" in data[:START_BYTES],
    }
    if kind is None or not may_move.get(kind):
        return
    with contextlib.suppress(Exception), PillowImage.open(io.BytesIO(data), formats=(kind,)) as image:
        num_frames = getattr(image, "n_frames", 1)
        if image.width * image.height * num_frames > MAX_ANIMATED_PIXELS:
            return
        for frame in sorted({num_frames // 2, num_frames - 1} - {0}):
            image.seek(frame)
            if image.width * image.height > MAX_PIXELS:
                return
            yield frame, _on_white(image)


def _on_white(image: PillowImage.Image) -> Image:
    rgba = image.convert("RGBA")
    return np.asarray(PillowImage.alpha_composite(PillowImage.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def _heic(data: bytes) -> tuple[Image, str | None]:
    try:
        import pi_heif
    except ImportError as error:
        raise BrokenImage(f"HEIC: {missing_package('reading it', 'heic')}") from error
    try:
        opened = pi_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
        if opened.size[0] * opened.size[1] > MAX_PIXELS:
            raise BrokenImage(f"{opened.size[0]} x {opened.size[1]} pixels; at most {MAX_PIXELS:,} are read of HEIC")
        image = opened.to_pillow()
        return _on_white(image), _taken(image.getexif())
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:
        raise BrokenImage(f"a damaged HEIC ({error})") from error


def _raw_preview(data: bytes, shortest_side: int | None) -> Image:
    try:
        import rawpy
    except ImportError as error:
        raise BrokenImage(f"RAW: {missing_package('reading it', 'raw')}") from error
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            preview, flip = raw.extract_thumb(), raw.sizes.flip
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenImage(f"no preview can be read from the RAW file ({error})") from error
    if preview.format == rawpy.ThumbFormat.JPEG:
        pixels = decode(bytes(preview.data), "", shortest_side=shortest_side)
    else:
        pixels = np.asarray(preview.data)
    # A preview that is as upright as the camera says needs no turn.
    lies = pixels.shape[1] > pixels.shape[0]
    return np.ascontiguousarray(np.rot90(pixels, -_CLOCKWISE[flip])) if flip in (5, 6) and lies else pixels


def _jpeg_facts(data: bytes, decoded: tuple[int, int]) -> tuple[int, int, str | None]:
    """Width and height, upright, and the time; JPEGs are decoded smaller than they are."""
    try:
        # Not `Image.open`, which refuses sizes that are read at an eighth here.
        header = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception:
        return *decoded, None
    width, height = header.size
    if _EXIF not in data[: 2**16]:
        return width, height, None
    orientation, taken = 1, None
    with contextlib.suppress(Exception):
        exif = header.getexif()
        orientation, taken = exif.get(_ORIENTATION, 1), _taken(exif)
    return (height, width, taken) if orientation in (5, 6, 7, 8) else (width, height, taken)


def _taken(exif: Any) -> str | None:
    with contextlib.suppress(Exception):
        if found := _DATE.match(str(exif.get_ifd(_DETAILS).get(_TAKEN, ""))):
            return f"{found[1]}-{found[2]}-{found[3]}T{found[4]}"
    return None


def perceptual_hashes(image: Image) -> tuple[int, int]:
    """pHash and dHash, 64 bits each, by area averages: within a few bits of the package imagehash's, in a tenth of the
    time."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    waves: np.ndarray = cv2.dct(cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[:8, :8]
    # OpenCV's transform is orthonormal, imagehash's is not; the median compares them all.
    waves[0] *= np.float32(2**0.5)
    waves[:, 0] *= np.float32(2**0.5)
    # Areas first, then the filter that imagehash takes, whose ripples make a tenth of the bits of dHash.
    areas = cv2.resize(gray, (144, 128), interpolation=cv2.INTER_AREA)
    small = np.asarray(PillowImage.fromarray(areas).resize((9, 8), PillowImage.Resampling.LANCZOS))
    return _as_number(waves > np.median(waves)), _as_number(small[:, 1:] > small[:, :-1])


def _as_number(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")

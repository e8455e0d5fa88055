"""Safe decoding of image files of any supported format to RGB pixels, and resizing."""

import contextlib
import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps as PillowOps
from PIL import features

from tll_jax.errors import InvalidValue, MissingFile
from tll_jax.files import write_whole
from tll_jax.typing import Image

MAX_PIXELS = 89_478_485
"""Maximum number of pixels of an image, checked before decoding: Pillow's limit for decompression bombs."""
MAX_SIDE = 2**17
"""Maximum side in pixels; decoders keep a pointer per row, so that a one-pixel-wide image would take many times its
size."""
MAX_MEMORY = 2**30
"""Maximum memory for decoding one image, in bytes; formats that need more per pixel get a limit below `MAX_PIXELS`."""
MAX_BYTES = 2**28
"""Maximum file size in bytes: that of `MAX_PIXELS` uncompressed."""
MAX_PARTS = 2**17
"""Maximum number of PNG chunks, JPEG segments or TIFF strips, because even an empty one costs time."""
MAX_SCANNED = 24 * MAX_PIXELS
"""Maximum of pixels times scans of a progressive JPEG, because each scan covers the whole image; most have ten
scans."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
"""Supported formats; AVIF only where Pillow supports it (11.3 and newer)."""
_STARTS = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0", re.DOTALL)),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("AVIF", re.compile(rb".{4}ftyp(avi[fs]|m[is]f1.{4,40}avi[fs])", re.DOTALL)),
    ("HEIC", re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL)),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
)
START_BYTES = 64
"""Number of leading bytes that suffice to identify a format."""

READ_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
"""OpenCV's flags for decoding a JPEG at 1/1, 1/2, 1/4 or 1/8 of its size."""
_PILLOW_BYTES = {"WEBP": 24, "AVIF": 16}
"""Measured peak memory of Pillow in bytes per pixel, by format; 12 for the others."""
_STRIP_PIXELS = 2**21
"""Number of pixels converted at once."""

_CUT = "the image data is damaged or cut short"
_TOO_MANY_PARTS = f"more than {MAX_PARTS:,} parts; no more are read"


class BrokenImage(InvalidValue):
    """Error for an unusable image; the message names the image and the reason."""


def quiet_opencv() -> None:
    """Turns off OpenCV's threads and messages in this process.

    The pipeline decodes in its own threads, with which OpenCV's would compete for cores, and broken images are reported
    by `BrokenImage` already. Called by programs only; importing the package changes nothing.
    """
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def format_of(start: bytes) -> str | None:
    """Format of a file from its first `START_BYTES`: one of `FORMATS`, a known unsupported one, or None."""
    return next((kind for kind, pattern in _STARTS if pattern.match(start)), None)


def decode(data: bytes, name: str, *, shortest_side: int | None = None) -> Image:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF, AVIF or the first frame of a GIF to uint8 `[height, width, 3]` RGB.

    The format is detected from the content. Gray, palette and CMYK images are converted to RGB, transparency is
    composited on white, and the EXIF orientation is applied.

    Images of more than 8 bits are converted to 8 as follows: integers with a maximum of at most 255 are kept, larger
    ones are scaled by 255 / 65535; floats in [0, 1] are multiplied by 255, and floats with a maximum from 2 to 255 are
    kept. Other ranges are refused.

    Args:
      name: name of the image, for error messages.
      shortest_side: if given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps this
        many pixels. The decoder then averages areas, which takes a fraction of the time.

    Raises:
      BrokenImage: the data is empty, unreadable, truncated or of an unsupported format, or decoding it would take more
        than `MAX_MEMORY` or many seconds.
    """
    if not data:
        raise BrokenImage(f"{name}: the file is empty")
    kind = format_of(data[:START_BYTES])
    try:
        if kind == "JPEG":
            return _decode_jpeg(data, shortest_side)
        if kind is not None and kind in FORMATS:
            return _decode_other(data, kind)
        raise BrokenImage(
            "not an image that can be read" if kind is None else f"{kind}, which is not read: convert it to JPEG or PNG"
        )
    except BrokenImage as error:
        raise BrokenImage(f"{name}: {error}") from error


def read_image(path: Path) -> Image:
    """Reads and decodes an image file (see `decode`).

    Raises:
      FileNotFoundError: the file does not exist, or is not a regular file.
      BrokenImage: the file is not a readable image.
    """
    if not path.is_file():
        what = "is no regular file" if path.exists() else "is not there"
        raise MissingFile(f"the image {path} {what}: give the path of an image file")
    if path.stat().st_size > MAX_BYTES:
        raise BrokenImage(f"{path}: {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    return decode(path.read_bytes(), str(path))


class _Jpeg(NamedTuple):
    width: int
    height: int
    num_components: int
    orientation: int
    num_scans: int
    is_buffered: bool
    """Whether the decoder buffers the whole image even when decoding at a reduced size."""
    extras: list[int]
    """Byte offsets of the markers of application segments."""


_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Marker with a meaning: in a scan, 0xFF is otherwise followed only by zero or a restart marker (0xD0 to 0xD7)."""
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _APP1, _APP15 = 0xD8, 0xD9, 0xDA, 0xE1, 0xEF
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ROW_BY_ROW = (0xC0, 0xC1)
_EXTRAS = range(_APP1, 0xEE)
"""APP1 to APP13, which are ignored; APP14 holds the color transform."""


def _jpeg_header(data: bytes) -> _Jpeg:
    """Header of a JPEG, parsed up to the end of the image; data after it, as in motion photos, is ignored."""
    frame, frame_marker, orientation, num_scans, is_buffered, extras = b"", 0, 1, 0, False, list[int]()
    position = 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, position)
        marker = _START_OF_IMAGE if found is None else data[found.start() + 1]
        if found is None or marker == _START_OF_IMAGE or (marker == _END_OF_IMAGE and not num_scans):
            break
        if marker == _END_OF_IMAGE:
            precision, height, width, num_components = struct.unpack_from(">BHHB", frame)
            if precision != 8:
                raise BrokenImage(f"a JPEG of {precision} bits, which is not read: save it with 8")
            return _Jpeg(width, height, num_components, orientation, num_scans, is_buffered, extras)
        start = found.end()
        position = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        if marker in _EXTRAS:
            extras.append(start - 1)
        if marker in _FRAMES:
            frame, frame_marker = data[start + 2 : start + 8], marker
        elif marker == _APP1 and orientation == 1 and data[start + 2 : start + 6] == b"Exif":
            orientation = _exif_orientation(data[start + 2 : position])
        elif marker == _START_OF_SCAN:
            if len(frame) < 6:
                break
            num_scans += 1
            is_buffered |= frame_marker not in _ROW_BY_ROW or data[start + 2 : start + 3] < frame[5:]
    else:
        raise BrokenImage(_TOO_MANY_PARTS)
    raise BrokenImage(_CUT)


def _decode_jpeg(data: bytes, shortest_side: int | None) -> Image:
    header = _jpeg_header(data)
    width, height = header.width, header.height
    is_cmyk = header.num_components == 4
    divisor = 1
    if shortest_side is not None and not is_cmyk:
        divisor = max((d for d in READ_REDUCED if min(width, height) >= d * shortest_side), default=1)
    # Without buffering, only the reduced image takes memory; decoding still takes time for all pixels.
    kept = 1 if header.is_buffered else divisor
    _check_size(width, height, max_pixels=MAX_PIXELS * min(kept**2, 8))
    if width * height * header.num_scans > MAX_SCANNED:
        raise BrokenImage(f"{width} x {height} pixels in {header.num_scans} scans would take too long to decode")
    if not is_cmyk:
        return _upright(_with_opencv(data, READ_REDUCED[divisor]), header.orientation)
    plain = bytearray(data)
    for place in header.extras:
        # Pillow ignores APP15, so that damaged EXIF data cannot stop it.
        plain[place] = _APP15
    return _upright(_with_pillow(_open_with_pillow(bytes(plain), "JPEG")), header.orientation)


def _decode_other(data: bytes, kind: str) -> Image:
    orientation = 1
    if kind == "PNG":
        data, orientation = _plain_png(data)
    elif kind == "TIFF":
        _check_strips(data)
    elif kind == "GIF":
        _check_blocks(data)
    header = _open_with_pillow(data, kind)
    if kind in ("WEBP", "AVIF"):
        orientation = _exif_orientation(header.info.get("exif", b""))
    opaque = header.mode in ("RGB", "L") and "transparency" not in header.info
    if opaque and kind in ("PNG", "WEBP", "BMP"):
        _check_size(*header.size)
        pixels = _with_opencv(data, cv2.IMREAD_COLOR)
    else:
        _check_size(*header.size, max_pixels=MAX_MEMORY // _PILLOW_BYTES.get(kind, 12))
        pixels = _with_pillow(header)
    return _upright(pixels, orientation)


_PNG_PARTS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


def _plain_png(data: bytes) -> tuple[bytes, int]:
    """PNG stripped of chunks that its pixels do not need, and its EXIF orientation.

    The chunks removed include texts and color profiles, which may unpack to any size. An animation is reduced to its
    default image.
    """
    position, orientation, kept = 8, 1, [memoryview(data)[:8]]
    for _ in range(MAX_PARTS):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        part = memoryview(data)[position : position + length + 12]
        if len(part) < length + 12:
            break
        if kind in _PNG_PARTS:
            if zlib.crc32(part[4:-4]) != int.from_bytes(part[-4:], "big"):
                break
            kept.append(part)
        elif kind == b"eXIf":
            orientation = _exif_orientation(bytes(part[8:-4]))
        if kind == b"IEND":
            return b"".join(kept), orientation
        position += len(part)
    else:
        raise BrokenImage(_TOO_MANY_PARTS)
    raise BrokenImage(_CUT)


_ORIENTATION, _STRIP_PLACES, _TILE_PLACES = 0x0112, 0x0111, 0x0144


def _tiff_tags(data: bytes) -> dict[int, tuple[int, int]]:
    """Count and first value of each tag in the first directory of TIFF or EXIF data; damaged tags are left out.

    First values are meaningful only for tags that hold small integers.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    tags: dict[int, tuple[int, int]] = {}
    if order is None:
        return tags
    try:
        is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
        (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
        (num_tags,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", data, start)
        entry = struct.Struct(f"{order}HHQH6x" if is_big else f"{order}HHIH2x")
        start += 8 if is_big else 2
        for index in range(min(num_tags, 2**16)):
            tag, _, count, value = entry.unpack_from(data, start + index * entry.size)
            tags.setdefault(tag, (count, value))
    except (struct.error, OverflowError):
        pass
    return tags


def _exif_orientation(exif: bytes) -> int:
    """EXIF orientation from 1 to 8; 1 (upright) if it is missing or damaged."""
    _, orientation = _tiff_tags(exif.removeprefix(b"Exif\0\0")).get(_ORIENTATION, (0, 1))
    return orientation if 1 <= orientation <= 8 else 1


def _check_strips(data: bytes) -> None:
    tags = _tiff_tags(data)
    num_strips = max(tags.get(tag, (0, 0))[0] for tag in (_STRIP_PLACES, _TILE_PLACES))
    if num_strips > MAX_PARTS:
        raise BrokenImage(f"{num_strips:,} strips; at most {MAX_PARTS:,} are read")


def _check_blocks(data: bytes) -> None:
    """Limits the number of blocks before the first frame of a GIF, such as comments."""
    has_palette = len(data) > 10 and data[10] & 0x80
    position, num_blocks = 13 + (6 << (data[10] & 7) if has_palette else 0), 0
    while data[position : position + 1] == b"!" and num_blocks <= MAX_PARTS:
        position += 2
        while (size := int.from_bytes(data[position : position + 1], "big")) and num_blocks <= MAX_PARTS:
            position += 1 + size
            num_blocks += 1
        position += 1
        num_blocks += 1
    if num_blocks > MAX_PARTS:
        raise BrokenImage(_TOO_MANY_PARTS)


def _check_size(width: int, height: int, *, max_pixels: int = MAX_PIXELS) -> None:
    if width * height > max_pixels:
        raise BrokenImage(f"{width} x {height} pixels, more pixels than the {max_pixels:,} that are read of its kind")
    if max(width, height) > MAX_SIDE:
        raise BrokenImage(f"{width} x {height} pixels; a side of at most {MAX_SIDE:,} is read")


def _with_opencv(data: bytes, flag: int) -> Image:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            raise MemoryError(str(error)) from error
        raise BrokenImage(_CUT) from error
    if decoded is None:
        raise BrokenImage(_CUT)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _open_with_pillow(data: bytes, kind: str) -> PillowImage.Image:
    """Opens an image with Pillow, which reads only the header."""
    try:
        return PillowImage.open(io.BytesIO(data), formats=(kind,))
    except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning) as error:
        raise BrokenImage(f"more pixels than the {MAX_PIXELS:,} that are read ({error})") from error
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenImage(f"not an image that can be read: a damaged {kind}, or one of a rare kind") from error


def _with_pillow(image: PillowImage.Image) -> Image:
    try:
        image.load()
        if image.format == "TIFF":
            with contextlib.suppress(Exception):
                PillowOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _in_strips(image, _to_eight_bits(image))
        has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        return _in_strips(image, _on_white if has_alpha else _to_rgb)
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:
        raise BrokenImage(f"{_CUT} ({error})") from error


def _strips(image: PillowImage.Image) -> Iterator[tuple[slice, PillowImage.Image]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _in_strips(image: PillowImage.Image, convert: Callable[[PillowImage.Image], Any]) -> Image:
    """Converts an image a few rows at a time, because each step on a whole image would allocate another copy of it."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, strip in _strips(image):
        pixels[rows] = convert(strip)
    return pixels


def _to_rgb(image: PillowImage.Image) -> PillowImage.Image:
    return image.convert("RGB")


def _on_white(image: PillowImage.Image) -> PillowImage.Image:
    rgba = image.convert("RGBA")
    return PillowImage.alpha_composite(PillowImage.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _to_eight_bits(image: PillowImage.Image) -> Callable[[PillowImage.Image], np.ndarray]:
    """Conversion of gray values of more than 8 bits to 8 bits, chosen from the value range of the whole image."""
    ranges = [(values.min(), values.max()) for values in (np.asarray(strip) for _, strip in _strips(image))]
    lowest, highest = np.min(ranges), np.max(ranges)
    if not (lowest >= 0 and np.isfinite(highest)):
        raise BrokenImage(f"its values go from {lowest} to {highest}; from 0 on are read")
    scale: float | None
    if image.mode == "F":
        scale = 255 if highest <= 1 else 1 if 2 <= highest <= 255 else None
        allowed = "floats from 0 to 1, or to 255 with some above 2"
    else:
        scale = 1 if highest <= 255 else 1 / 257 if highest <= 65535 else None
        allowed = "whole numbers to 65535"
    if scale is None:
        raise BrokenImage(f"its values go to {highest}; {allowed} are read")
    return lambda strip: (np.asarray(strip, np.float64) * scale).astype(np.uint8)[:, :, None]


_TURNED: dict[int, Callable[[Image], Image]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.flip(cv2.transpose(image), -1),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""Transforms that make images upright, by EXIF orientation."""


def _upright(image: Image, orientation: int) -> Image:
    return _TURNED[orientation](image) if orientation in _TURNED else image


def shrink(image: Image, longest_side: int) -> Image:
    """Shrinks an image to a longer side of at most `longest_side` pixels; smaller images are kept."""
    scale = min(1.0, longest_side / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def resize(image: Image, height: int, width: int | None = None) -> Image:
    """Resizes an image to `[height, width, 3]` without preserving the aspect ratio; a square by default.

    Shrinks by area averaging and enlarges by bicubic interpolation, both antialiased. The mean absolute difference over
    photos, in gray levels of 255, is 0.3 to 2.6 from Pillow's bilinear and 0.9 to 1.8 from its bicubic when shrinking,
    and 0.7 from its bicubic when enlarging.
    """
    width = height if width is None else width
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def content_hash(image: Image) -> str:
    """BLAKE2b hash of an image's shape and pixels, as 32 hexadecimal digits."""
    return hashlib.blake2b(
        repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16
    ).hexdigest()


def write_image(path: Path, image: Image) -> None:
    """Writes a PNG file atomically.

    Raises:
      OSError: the disk is full, or the path is not writable; the message names the path and suggests a remedy.
    """
    # OpenCV's own writer ignores a full disk and crashes on paths that are not UTF-8.
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise InvalidValue(f"{path} cannot be written: OpenCV makes no PNG of an image of shape {image.shape}")
    write_whole(path, data.tobytes())

"""A camera's RAW file by hand: a DNG of gray sensor values with a JPEG preview."""

import io
import struct

_FORMATS = {1: "B", 3: "H", 4: "I", 5: "II", 10: "ii"}


def dng(preview, orientation=1, side=48):
    """The bytes; `orientation` is EXIF's."""
    file = io.BytesIO()
    preview.save(file, "JPEG", quality=92)
    jpeg = file.getvalue() + b"\0" * (len(file.getvalue()) % 2)
    raw = struct.pack("<H", 800) * side * side
    places = [0, 0, 0]
    # The first pass finds where the parts lie.
    for _ in range(2):
        directories = _directories(preview, orientation, side, places, (len(jpeg), len(raw)))
        first = _directory(directories[0], 8)
        places[0] = 8 + len(first)
        second = _directory(directories[1], places[0])
        places[1] = places[0] + len(second)
        places[2] = places[1] + len(jpeg)
    return b"II*\0" + struct.pack("<I", 8) + first + second + jpeg + raw


def _directories(preview, orientation, side, places, sizes):
    width, height = preview.size
    unit = [(int(row == column), 1) for row in range(3) for column in range(3)]
    return [
        [
            *((254, 4, [1]), (256, 4, [width]), (257, 4, [height]), (258, 3, [8, 8, 8]), (259, 3, [7]), (262, 3, [6])),
            *((271, 2, b"Test"), (272, 2, b"Test 1"), (273, 4, [places[1]]), (274, 3, [orientation]), (277, 3, [3])),
            *((278, 4, [height]), (279, 4, [sizes[0]]), (284, 3, [1]), (330, 4, [places[0]])),
            *((50706, 1, [1, 4, 0, 0]), (50707, 1, [1, 1, 0, 0]), (50708, 2, b"Test 1"), (50721, 10, unit)),
            *((50728, 5, [(1, 1)] * 3), (50778, 3, [21])),
        ],
        [
            *((254, 4, [0]), (256, 4, [side]), (257, 4, [side]), (258, 3, [16]), (259, 3, [1]), (262, 3, [32803])),
            *((273, 4, [places[2]]), (277, 3, [1]), (278, 4, [side]), (279, 4, [sizes[1]]), (284, 3, [1])),
            *((33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2]), (50714, 3, [0]), (50717, 3, [4095])),
        ],
    ]


def _directory(entries, start):
    head, data = struct.pack("<H", len(entries)), b""
    base = start + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        if kind == 2:
            packed, count = values + b"\0", len(values) + 1
        else:
            pairs = [value if isinstance(value, tuple) else (value,) for value in values]
            packed, count = b"".join(struct.pack(f"<{_FORMATS[kind]}", *pair) for pair in pairs), len(values)
        if len(packed) <= 4:
            head += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
        else:
            head += struct.pack("<HHII", tag, kind, count, base + len(data))
            data += packed + b"\0" * (len(packed) % 2)
    return head + struct.pack("<I", 0) + data

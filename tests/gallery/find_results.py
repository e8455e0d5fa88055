"""A result of `tll find` made by hand, with every kind of entry."""

from tll_jax.gallery.result import (
    Box,
    Broken,
    Counts,
    Duplicates,
    FileName,
    Folder,
    Group,
    Hub,
    Model,
    Pair,
    Picture,
    PlacePair,
    RandomPairs,
    Reason,
    Reasons,
    Result,
    Run,
    Search,
    Skipped,
    WhatIf,
)

HOSTILE = "<img src=x onerror=alert(1)>\n\"'&%#,;.jpg"
NOT_UTF8 = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")


def picture(path, content="0" * 32, **facts):
    return Picture(folder=0, path=path, content=content, width=640, height=480, size=12_345, **facts)


def reasons(rows=2, columns=2):
    places = [0.0] * (rows * columns) ** 2
    for at in range(rows * columns):
        places[at * rows * columns + at] = 0.1
    places[1] = 0.4
    return Reasons(
        rows=rows,
        columns=columns,
        left_box=Box(top=0.0, left=0.0, height=1.0, width=1.0),
        right_box=Box(top=0.0, left=0.125, height=1.0, width=0.75),
        places=tuple(places),
        same_places=0.5,
        strongest=(PlacePair(left=(0, 0), right=(0, 1), value=0.4),),
        stages={"texture": 0.2, "parts": 0.3, "objects": 0.5},
        what_ifs=(WhatIf(measure="without-color", change=-0.02),),
        sentences=(Reason(measure="without-color", value=-0.02, random=-0.11, text="Color does not matter (-.02)."),),
    )


def pair(left, right, **facts):
    given = {"kind": "look-alike", "cosine": 0.8, "score": 0.31, "one_in": 52_000.0} | facts
    return Pair(left=left, right=right, **given)


def result(pairs=None, **facts):
    a, b, c = picture("a.jpg", "a" * 32), picture(HOSTILE, "b" * 32), picture(NOT_UTF8, "c" * 32)
    if pairs is None:
        pairs = (
            pair(a, b, reasons=reasons(), left_rank=1, right_rank=2, left_margin=0.1, left_lists=3, phash_bits=21),
            pair(a, c, one_in=100_000.0, one_in_is_bound=True),
        )
    given = {
        "command": "tll find 'my pictures'",
        "versions": {"tll_jax": "0.2.0"},
        "mode": "within",
        "model": Model(name="default", fingerprint="f" * 32, dimension=256),
        "folders": (Folder(path="/home/me/my pictures"),),
        "counts": Counts(images=6, contents=5, compared=3, broken=1, skipped=41, cut_short=1, pairs=2, ignored=0),
        "search": Search(exact=True, neighbors=20, hub_correction=True),
        "random_pairs": RandomPairs(count=100_000, seed=0, quantiles={"0.5": 0.1, "0.99": 0.4, "1": 0.7}),
        "pairs": tuple(pairs),
        "duplicates": (
            Duplicates(kind="same-file", kept=a, others=(picture("copies/a.jpg", "a" * 32),)),
            Duplicates(kind="near-duplicate", kept=b, others=(picture("b small.jpg", "d" * 32, frame=2),)),
        ),
        "groups": (Group(medoid=a, members=(b, c), cosines=(0.8, 0.7), least_cosine=0.6),),
        "hubs": (Hub(picture=a, lists=3),),
        "broken": (Broken(folder=0, path="half.jpg", reason="the image data is damaged or cut short"),),
        "skipped": (Skipped(suffix=".heic", count=41, mend="pip install 'tll_jax[heic]'"),),
        "run": Run(created="2026-11-26T14:00:00Z", kept=3, embedded=3, renamed=0, seconds={"embed": 1.5}),
    }
    return Result(**(given | facts))


LINKED = picture("linked.jpg", aliases=(FileName(folder=0, path="link.jpg"),), taken="2024-05-01T12:00:00")

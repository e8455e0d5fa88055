"""Saliency maps of pairs of look-alikes, a page a pair: what `tll find --maps` adds."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from tll_jax.errors import InvalidValue
from tll_jax.files import spelled_out
from tll_jax.gallery.result import Pair, Picture
from tll_jax.study.explain import Explainer, ExplainRequest
from tll_jax.study.folder import PAGE
from tll_jax.typing import Image

MAPS = "maps"
METHODS = ("integrated-gradients", "occlusion")
PAIRS_AT_ONCE = 8
HASH_DIGITS = 16
"""Number of digits of each content in the name of a pair's folder."""


def with_maps(
    pairs: Sequence[Pair],
    folder: Path,
    *,
    explainer: Explainer,
    read: Callable[[Picture], Image],
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Writes the page of every pair below `folder/maps`; the pairs with their pages, but for one of which a picture can
    no longer be read.

    Integrated Gradients and occlusion take some hundred forward passes a pair.
    """
    # Matplotlib, which a search without maps need not wait for.
    from tll_jax.report.explanation import write_explanation

    found = list(pairs)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        block = []
        for at in range(start, min(start + PAIRS_AT_ONCE, len(pairs))):
            pair = pairs[at]
            try:
                block.append((at, read(pair.left), read(pair.right)))
            except (InvalidValue, OSError):
                continue
        if block:
            names = [(spelled_out(pairs[at].left.path), spelled_out(pairs[at].right.path)) for at, _, _ in block]
            lefts, rights = [left for _, left, _ in block], [right for _, _, right in block]
            explained = explainer(lefts, rights, names, ExplainRequest(methods=METHODS))
            for (at, _, _), one in zip(block, explained, strict=True):
                page = f"{MAPS}/{_name(pairs[at])}"
                write_explanation(one, folder / page)
                found[at] = dataclasses.replace(pairs[at], maps=f"{page}/{PAGE}")
        if progress is not None:
            progress(min(start + PAIRS_AT_ONCE, len(pairs)), len(pairs))
    return found


def _name(pair: Pair) -> str:
    return "-".join(f"{one.content[:HASH_DIGITS]}.{one.frame}" for one in (pair.left, pair.right))

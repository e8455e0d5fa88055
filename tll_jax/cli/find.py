"""`tll find`."""

import argparse
import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tll_jax import __version__
from tll_jax.cli.arguments import a_path, a_place, at_least, positive, start_devices
from tll_jax.errors import FileProblem, InvalidValue, MissingFile
from tll_jax.files import check_writable
from tll_jax.gallery import state
from tll_jax.gallery.result import RESULT, Result
from tll_jax.gallery.scan import UNREACHABLE, Scan, ScanOptions, readers, roots_of, scan

if TYPE_CHECKING:
    from tll_jax.gallery.embed import Progress

logger = logging.getLogger(__name__)

HELP = "find the pictures in folders that look alike, and show why"
FOUND, BROKEN = 11, 12
"""Exit statuses of --fail-on."""
INTERVALS = {True: 0.2, False: 10.0}
"""Seconds between progress messages, on a terminal (True) and elsewhere (False)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "pictures",
        type=a_place,
        nargs="+",
        metavar="PICTURES",
        help="folders, zip files or pictures; two single pictures are compared with each other",
    )
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--query",
        type=a_place,
        action="append",
        metavar="PATH",
        help="find what looks like a picture, or those of a folder; may be repeated",
    )
    others.add_argument(
        "--against",
        type=a_place,
        action="append",
        metavar="PATH",
        help="find pairs between PICTURES and PATH only; may be repeated",
    )
    parser.add_argument(
        "--out", type=a_path, default=Path("find"), metavar="DIR", help="folder of page and find.json; default: find"
    )
    parser.add_argument(
        "--model",
        type=a_place,
        default="default",
        metavar="FILE|RUN",
        help="a model file or run folder; default: the model of `make look-alike` if it was made, else that of the "
        "package",
    )
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="neighbors of each picture; default 10")
    parser.add_argument("--pairs", type=positive, default=200, metavar="N", help="pairs on the page; default 200")
    kinds = ("same-file", "near-duplicate", "look-alike")
    parser.add_argument("--kind", choices=kinds, action="append", help="only this kind; may be repeated")
    parser.add_argument(
        "--min-strength", type=_count, default=0, metavar="N", help="only pairs as alike as 1 in N random pairs"
    )
    parser.add_argument("--maps", action="store_true", help="also saliency maps of the pairs, which take minutes")
    parser.add_argument("--group", action="store_true", help="also groups of pictures that look alike")
    parser.add_argument(
        "--ignore", type=a_path, metavar="FILE", help="pairs that are not alike, as the page writes them"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="names or paths to leave out; may be repeated"
    )
    parser.add_argument("--hidden", action="store_true", help="look into names that begin with a dot")
    parser.add_argument("--links", choices=("follow", "skip"), default="follow", help="symbolic links; default: follow")
    search = parser.add_mutually_exclusive_group()
    search.add_argument("--exact", action="store_true", help="compare with every picture, the default")
    search.add_argument(
        "--approximate",
        action="store_true",
        help="search by an index, whose recall is measured; for --query among millions",
    )
    parser.add_argument("--cache", type=a_place, metavar="DIR", help="folder of embeddings; default: $TLL_CACHE/find")
    parser.add_argument("--prune", action="store_true", help="forget pictures that are gone from PICTURES")
    parser.add_argument("--verify", action="store_true", help="read every file again, even if unchanged by its time")
    parser.add_argument("--export", type=_table, metavar="FILE", help="also write the pairs as .parquet or .csv")
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, and progress as lines of JSON on standard error"
    )
    parser.add_argument(
        "--fail-on",
        choices=("found", "broken"),
        action="append",
        default=[],
        help="exit with status 11 if there are pairs, or 12 if there are broken files",
    )


def _count(text: str) -> int:
    return at_least(0, text)


def _table(text: str) -> Path:
    path = a_path(text)
    if path.suffix not in (".parquet", ".csv"):
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must end in .parquet or .csv")
    return path


def run(arguments: argparse.Namespace) -> None:
    """Finds pictures that look alike, shows why on a page, and lists copies; it changes no picture. Pictures are
    embedded once: later runs embed only new content, and renames cost nothing."""
    if arguments.export is not None:
        check_writable(arguments.export)
    mode, scans = _scans(arguments)
    options = _options(arguments) | {"version": __version__, "readers": sorted(readers()), "mode": mode}
    found = state.fingerprint(scans, arguments.model, options)
    line = None if arguments.verify or arguments.prune else state.remembered(arguments.out, found)
    result = None
    if line is None:
        result = _find(arguments, mode, scans)
        line = _line_of(result)
        if not any(one.reason.startswith(UNREACHABLE) for one in result.broken):
            state.remember(arguments.out, found, line)
    if arguments.export is not None or arguments.json:
        from tll_jax.gallery import export
        from tll_jax.gallery import result as results

        result = result or results.read(arguments.out / RESULT)
        if arguments.export is not None:
            export.write(result, arguments.export)
        if arguments.json:
            print(json.dumps(results.to_json(result)))
    summary = state.summary(arguments.out, **(line["counts"]))
    if line["recall"] is not None:
        print(f"approximate search: it finds {line['recall']:.3f} of the exact neighbors", file=sys.stderr)
    print(summary, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if "broken" in arguments.fail_on and line["counts"]["broken"]:
        raise SystemExit(BROKEN)
    if "found" in arguments.fail_on and line["found"]:
        raise SystemExit(FOUND)


def _scans(arguments: argparse.Namespace) -> tuple[Any, dict[Any, Scan]]:
    options = ScanOptions(exclude=tuple(arguments.exclude), hidden=arguments.hidden, links=arguments.links)
    roots = roots_of(_present(arguments))
    if arguments.query:
        return "query", {"searched": scan(roots, options), "query": scan(roots_of(arguments.query), options)}
    if arguments.against:
        return "against", {"searched": scan(roots, options), "against": scan(roots_of(arguments.against), options)}
    if len(roots) == 2 and all(root.only is not None for root in roots):
        return "pair", {"searched": scan(roots[:1], options), "against": scan(roots[1:], options)}
    return "within", {"searched": scan(roots, options)}


def _present(arguments: argparse.Namespace) -> list[str]:
    """The given places without missing ones whose pictures are in the cache."""
    there = [place for place in arguments.pictures if os.path.lexists(place)]
    away = [place for place in arguments.pictures if not os.path.lexists(place)]
    if there and away:
        from tll_jax.gallery.store import Store, store_place

        known = Store(store_place(arguments.cache)).roots()
        for place in away:
            if os.path.abspath(place) not in known:
                raise MissingFile(f"{place} is not there: give a folder, a zip file or a picture")
            logger.warning("%s is not there now: its pictures are left out, and stay in the cache", place)
        return there
    return list(arguments.pictures)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that a result depends on, beside files and the model."""
    names = ("top", "pairs", "kind", "min_strength", "group", "approximate", "maps")
    try:
        ignore = None if arguments.ignore is None else arguments.ignore.read_text("utf-8", "replace")
    except OSError as error:
        raise FileProblem(
            f"--ignore {arguments.ignore} cannot be read ({error.strerror}): give the file that the page made"
        ) from error
    return {name: getattr(arguments, name) for name in names} | {"ignore": ignore}


def _find(arguments: argparse.Namespace, mode: Any, scans: dict[Any, Scan]) -> Result:
    if arguments.approximate and mode != "query":
        raise InvalidValue("--approximate goes with --query: all pairs of pictures are compared exactly")
    start_devices()
    from tll_jax.gallery.builder import Request
    from tll_jax.gallery.find import find

    request = Request(
        scans=scans,
        mode=mode,
        out=arguments.out,
        command=shlex.join(["tll", *sys.argv[1:]]),
        model=arguments.model,
        top=arguments.top,
        pairs=arguments.pairs,
        kinds=tuple(arguments.kind or ()),
        min_strength=arguments.min_strength,
        group=arguments.group,
        ignore=arguments.ignore,
        approximate=arguments.approximate,
        cache=arguments.cache,
        prune=arguments.prune,
        verify=arguments.verify,
        maps=arguments.maps,
    )
    teller = _Teller(as_json=arguments.json)
    try:
        return find(request, teller)
    finally:
        teller.end()


def _line_of(result: Result) -> dict[str, Any]:
    counts = {
        "images": result.counts.images,
        "embedded": result.run.embedded,
        "renamed": result.run.renamed,
        "broken": result.counts.broken,
        "skipped": {one.suffix: one.count for one in result.skipped},
    }
    return {"counts": counts, "found": bool(result.pairs or result.duplicates), "recall": result.search.recall}


class _Teller:
    """Progress on standard error: one line that is overwritten on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_terminal = sys.stderr.isatty() and not as_json
        self.last = time.monotonic()
        self.width = 0

    def __call__(self, part: str, share: float, progress: "Progress | None") -> None:
        now = time.monotonic()
        if now - self.last < (1.0 if self.as_json else INTERVALS[self.is_terminal]):
            return
        self.last = now
        if self.as_json:
            facts: dict[str, Any] = {"part": part, "fraction": round(share, 4)}
            if progress is not None:
                facts |= {"done": progress.done, "total": progress.total, "images_per_second": round(progress.rate, 1)}
                facts |= {"seconds_left": round(progress.seconds_left)}
            print(json.dumps(facts), file=sys.stderr, flush=True)
            return
        words = f"{part}: {share:.0%}"
        if progress is not None:
            left = time.strftime("%H:%M:%S", time.gmtime(progress.seconds_left))
            words = f"{part}: {progress.done:,} of {progress.total:,}, {progress.rate:.0f} images/s, {left} left"
        end = "" if self.is_terminal else "\n"
        start = "\r" if self.is_terminal else ""
        print(f"{start}{words:<{self.width}}", end=end, file=sys.stderr, flush=True)
        self.width = len(words)

    def end(self) -> None:
        """Clears the line."""
        if self.is_terminal and self.width:
            print(f"\r{'':<{self.width}}\r", end="", file=sys.stderr, flush=True)

"""The pages of `tll find`: look-alikes as cards with their reasons, duplicates, groups, hubs, and what was not read.

`index.html` opens from disk and asks for nothing outside its folder; thumbnails are files beside it, loaded as they are
scrolled to.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote_from_bytes

import cv2

from tll_jax.data.imaging import shrink
from tll_jax.errors import InvalidValue
from tll_jax.files import write_whole
from tll_jax.gallery.result import RESULT, Broken, Duplicates, FileName, Group, Hub, Pair, Picture, Result
from tll_jax.report import find_cards, markup, numbers
from tll_jax.typing import Image

INDEX = "index.html"
THUMBNAILS = "thumbnails"
CARDS = 100
"""Pairs, sets or groups on one page."""
FIRST_SETS = 30
"""Sets and groups on the first page, beside the pairs."""
MEMBERS = 12
"""Pictures that a set or a group shows; more are named."""
NAMED = 200
"""Names in one list; the result file has all."""
LARGE, SMALL = 320, 112
"""Pixels of a thumbnail's longer side, on cards and elsewhere."""
BOXES = {LARGE: (320, 240), SMALL: (88, 88)}
"""CSS pixels that a thumbnail fills at most."""
QUALITY = 80
IMAGES = "'self' file: data:"
SIZE_WORDS = f"more are in {RESULT}"
_OWN_PAGES = re.compile(r"(look-alikes|duplicates|groups)-\d+\.html")
_OWN_THUMBNAILS = re.compile(r"[0-9a-f]{32}-\d+-\d+\.webp")

Read = Callable[[Picture, int], Image]
"""Decodes a picture, of which the shorter side needs no more than so many pixels; raises `InvalidValue` or `OSError`
where it cannot."""
Item = TypeVar("Item", Pair, Duplicates, Group)


class Site(NamedTuple):
    """Shared state of the pages: the result, their folder, and thumbnails by picture and size."""

    result: Result
    folder: Path
    thumbnails: dict[tuple[str, int, int], str]

    def name(self, file: FileName) -> str:
        """A file by its path, below the name of its folder where there are several."""
        paths = list(dict.fromkeys(folder.path for folder in self.result.folders))
        if len(paths) < 2:
            return file.path
        own = self.result.folders[file.folder].path
        last = [os.path.basename(path.rstrip("/")) for path in paths]
        return f"{own if len(set(last)) < len(last) else last[paths.index(own)]}/{file.path}"

    def link(self, file: FileName) -> str | None:
        """The address of the original, relative to the pages; None of one in a zip file or gone."""
        path = os.path.join(self.result.folders[file.folder].path, file.path)
        if not os.path.isfile(path):
            return None
        return quote_from_bytes(os.fsencode(os.path.relpath(os.path.realpath(path), os.path.realpath(self.folder))))

    def image(self, picture: Picture, size: int) -> str:
        """A thumbnail as HTML, or a placeholder for one that could not be made; the name is its alternative text."""
        words = markup.text(self.name(picture))
        found = self.thumbnails.get((picture.content, picture.frame, size))
        if found is None:
            return f'<span class="gone" role="img" aria-label="{words}, which can no longer be read">?</span>'
        width, height = _shown_size(picture, size)
        return (
            f'<img src="{found}" alt="{words}" title="{words}" width="{width}" height="{height}" loading="lazy" '
            'decoding="async">'
        )

    def original(self, picture: Picture, size: int) -> str:
        """A thumbnail that opens the original, where that can be."""
        image, link = self.image(picture, size), self.link(picture)
        return image if link is None else f'<a href="{escape(link)}" target="_blank" rel="noopener">{image}</a>'


def _shown_size(picture: Picture, size: int) -> tuple[int, int]:
    """Width and height on the page, which enlarges small pictures."""
    width, height = BOXES[size]
    scale = min(width / picture.width, height / picture.height, 3.0)
    return max(1, round(scale * picture.width)), max(1, round(scale * picture.height))


def write_find_page(result: Result, folder: Path, *, read: Read) -> Path:
    """Writes the pages and thumbnails of a result into a folder; returns the path of the first.

    Pages and thumbnails of an earlier result that are no longer used are removed; nothing else is.
    """
    site = Site(result, folder, {})
    pages = _pages(site)
    site.thumbnails.update(_write_thumbnails(pages, folder, read))
    for page in pages:
        write_whole(folder / page.name, _document(site, page))
    _remove_unused(folder, {page.name for page in pages}, set(site.thumbnails.values()))
    return folder / INDEX


class _Page(NamedTuple):
    """One file: its slices of pairs, duplicates and groups, with the number of the first of each."""

    name: str
    title: str
    pairs: tuple[int, Sequence[Pair]] = (0, ())
    duplicates: tuple[int, Sequence[Duplicates]] = (0, ())
    groups: tuple[int, Sequence[Group]] = (0, ())
    hubs: Sequence[Hub] = ()
    before: str = ""
    after: str = ""

    def large(self) -> Iterator[Picture]:
        for pair in self.pairs[1]:
            yield from (pair.left, pair.right)

    def small(self) -> Iterator[Picture]:
        for one in self.duplicates[1]:
            yield from _shown(one)
        for group in self.groups[1]:
            yield group.medoid
            yield from group.members[: MEMBERS - 1]
        for hub in self.hubs:
            yield hub.picture


def _shown(duplicates: Duplicates) -> list[Picture]:
    """The pictures of a set that differ to the eye."""
    others = () if duplicates.kind == "same-file" else duplicates.others
    return [duplicates.kept, *others[: MEMBERS - 1]]


def _pages(site: Site) -> list[_Page]:
    result = site.result
    cut = FIRST_SETS
    first = _Page(
        INDEX,
        _title(site),
        pairs=(0, result.pairs[:CARDS]),
        duplicates=(0, result.duplicates[:cut]),
        groups=(0, result.groups[:cut]),
        hubs=result.hubs[:cut],
    )
    further = [
        *(_Page(name, title, pairs=part) for name, title, part in _further("look-alikes", result.pairs, CARDS)),
        *(_Page(name, title, duplicates=part) for name, title, part in _further("duplicates", result.duplicates, cut)),
        *(_Page(name, title, groups=part) for name, title, part in _further("groups", result.groups, cut)),
    ]
    linked = []
    for at, page in enumerate(further):
        kind = page.name.rpartition("-")[0]
        before = further[at - 1].name if at and further[at - 1].name.startswith(kind) else INDEX
        after = further[at + 1].name if at + 1 < len(further) and further[at + 1].name.startswith(kind) else ""
        linked.append(page._replace(before=before, after=after))
    return [first, *linked]


def _further(name: str, items: Sequence[Item], start: int) -> Iterator[tuple[str, str, tuple[int, Sequence[Item]]]]:
    for number, at in enumerate(range(start, len(items), CARDS), 2):
        title = f"{name.capitalize()} {at + 1:,} to {min(at + CARDS, len(items)):,} of {len(items):,}"
        yield f"{name}-{number}.html", title, (at, items[at : at + CARDS])


def _write_thumbnails(pages: Sequence[_Page], folder: Path, read: Read) -> dict[tuple[str, int, int], str]:
    """Writes what is not there yet; returns the addresses by content, frame and size."""
    wanted = {(one.content, one.frame, SMALL): one for page in pages for one in page.small()}
    wanted |= {(one.content, one.frame, LARGE): one for page in pages for one in page.large()}

    def write(key: tuple[str, int, int]) -> str | None:
        content, frame, size = key
        name = f"{THUMBNAILS}/{content}-{frame}-{size}.webp"
        path = folder / name
        if path.is_file():
            return name
        try:
            image = shrink(read(wanted[key], size), size)
        except (InvalidValue, OSError):
            return None
        _, data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
        write_whole(path, data.tobytes())
        return name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = list(pool.map(write, wanted))
    return {key: name for key, name in zip(wanted, names, strict=True) if name is not None}


def _remove_unused(folder: Path, pages: set[str], thumbnails: set[str]) -> None:
    for path in folder.iterdir():
        if _OWN_PAGES.fullmatch(path.name) and path.name not in pages:
            path.unlink()
    if (folder / THUMBNAILS).is_dir():
        for path in (folder / THUMBNAILS).iterdir():
            if _OWN_THUMBNAILS.fullmatch(path.name) and f"{THUMBNAILS}/{path.name}" not in thumbnails:
                path.unlink()


def _document(site: Site, page: _Page) -> str:
    result = site.result
    sections: dict[str, Iterator[str]] = {"Look-alikes": _look_alikes(site, page)}
    sections["Duplicates"] = _duplicates(site, page)
    sections["Groups"] = _groups(site, page)
    lead = "Further results of the same search."
    if page.name == INDEX:
        lead = _lead(result)
        sections["Hubs"] = _hubs(site, page)
        sections["Not read"] = _not_read(site)
        sections["How it was found"] = _how(result)
    assets = files("tll_jax.report")
    script, css = (
        "".join(assets.joinpath(name).read_text(encoding="utf-8") for name in names)
        for names in (("regions.js", "find.js"), ("find.css",))
    )
    return markup.document(page.title, lead, sections, script=script, css=css, images=IMAGES)


def _title(site: Site) -> str:
    result = site.result
    if result.mode == "pair" and result.pairs:
        pair = result.pairs[0]
        return f"How alike {site.name(pair.left)} and {site.name(pair.right)} are"
    searched = [os.path.basename(one.path.rstrip("/")) or one.path for one in result.folders if one.role == "searched"]
    where = searched[0] if len(searched) == 1 else f"{searched[0]} and {len(searched) - 1} more" if searched else ""
    return f"Look-alikes in {where}" if where else "Look-alikes"


def _lead(result: Result) -> str:
    counts = result.counts
    parts = [numbers.plural(counts.images, "image")]
    if counts.contents < counts.images:
        parts[0] += f" with {counts.contents:,} different contents"
    shown = len(result.pairs)
    of = f" of {counts.pairs:,}" if counts.pairs > shown else ""
    parts.append(f"{numbers.plural(shown, 'pair')}{of} shown, strongest first" if shown else "no look-alikes found")
    if result.duplicates:
        parts.append(numbers.plural(len(result.duplicates), "set") + " of duplicates")
    if result.groups:
        parts.append(numbers.plural(len(result.groups), "group"))
    if counts.broken:
        parts.append(f"{numbers.plural(counts.broken, 'file')} broken")
    if counts.skipped:
        parts.append(f"{counts.skipped:,} of other kinds not read")
    if counts.ignored:
        parts.append(f"{numbers.plural(counts.ignored, 'pair')} left out as not alike")
    return "; ".join(parts) + "."


def _look_alikes(site: Site, page: _Page) -> Iterator[str]:
    start, pairs = page.pairs
    if page.name == INDEX and not pairs:
        yield markup.paragraph("No two pictures are look-alikes by these settings.", css="muted")
        return
    if not pairs:
        return
    yield markup.paragraph(find_cards.LEGEND, css="muted")
    yield f'<div class="look-alikes" data-result="{escape(_identity(site.result))}">'
    query = None
    for number, pair in enumerate(pairs, start + 1):
        if site.result.mode == "query" and pair.left != query:
            query = pair.left
            yield f"<h3>Most like {markup.text(site.name(query))}</h3>"
        sides = [
            find_cards.Side(site.original(one, LARGE), site.name(one), _facts_of(site, one))
            for one in (pair.left, pair.right)
        ]
        yield find_cards.card(pair, number, sides)
    yield "</div>"
    yield find_cards.dismissed(site.result.command)
    yield _turn(page, "look-alikes", len(site.result.pairs) > len(pairs))


def _identity(result: Result) -> str:
    """Key of the browser's storage for "not alike"."""
    return f"{result.model.fingerprint} {' '.join(folder.path for folder in result.folders)}"


def _facts_of(site: Site, picture: Picture) -> str:
    facts = [f"{picture.width:,} × {picture.height:,}", _bytes(picture.size)]
    if picture.frame:
        facts.append(f"frame {picture.frame + 1:,}")
    if picture.cut_short:
        facts.append("cut short")
    if picture.aliases:
        facts.append("also " + ", ".join(site.name(alias) for alias in picture.aliases[:3]))
    return " · ".join(facts)


def _bytes(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:,.0f} kB" if size < 999_500 else f"{size / 1e6:,.1f} MB"


def _turn(page: _Page, kind: str, more: bool) -> str:
    """Links to the pages before and after."""
    after = page.after or (f"{kind}-2.html" if page.name == INDEX and more else "")
    links = []
    if page.before:
        links.append(f'<a rel="prev" href="{page.before}">← Before</a>')
    if after:
        links.append(f'<a rel="next" href="{after}">Further {kind} →</a>')
    return f'<p class="turn">{" ".join(links)}</p>' if links else ""


def _duplicates(site: Site, page: _Page) -> Iterator[str]:
    _, sets = page.duplicates
    if not sets:
        return
    yield markup.paragraph(
        "Equal files, and pictures that are nearly equal by two perceptual hashes, count as one picture in the search. "
        "Nothing was deleted or moved.",
        css="muted",
    )
    shown = []
    for one in sets:
        kind = "The same file" if one.kind == "same-file" else "Nearly the same picture"
        pictures = "".join(site.original(picture, SMALL) for picture in _shown(one))
        names = _names(site, [one.kept, *one.others])
        shown.append(f'<div class="set"><p>{kind}, {len(one.others) + 1:,} times</p><div>{pictures}</div>{names}</div>')
    total = len(site.result.duplicates)
    number = numbers.plural(total, "set")
    listed = [f'<div class="sets">{"".join(shown)}</div>']
    yield from [markup.details(f"{number} of duplicates", listed)] if page.name == INDEX else listed
    yield _turn(page, "duplicates", total > len(sets))


def _names(site: Site, found: Sequence[FileName]) -> str:
    items = "".join(f"<li>{_linked(site, one)}</li>" for one in found[:NAMED])
    more = f"<li>and {len(found) - NAMED:,} more, in {RESULT}</li>" if len(found) > NAMED else ""
    return f"<ul>{items}{more}</ul>"


def _linked(site: Site, file: FileName) -> str:
    link, name = site.link(file), markup.text(site.name(file))
    return name if link is None else f'<a href="{escape(link)}" target="_blank" rel="noopener">{name}</a>'


def _groups(site: Site, page: _Page) -> Iterator[str]:
    start, groups = page.groups
    if not groups:
        return
    yield markup.paragraph(
        "Each group is a star: every picture of it is a look-alike of the first one, its middle. Any two of the others "
        "may be less alike; the least cosine of any two is given.",
        css="muted",
    )
    for number, group in enumerate(groups, start + 1):
        pictures = "".join(site.original(one, SMALL) for one in (group.medoid, *group.members[: MEMBERS - 1]))
        size = len(group.members) + 1
        more = f'<span class="more">and {size - MEMBERS:,} more</span>' if size > MEMBERS else ""
        words = f"Group {number:,}: {size:,} pictures, least cosine {numbers.fraction(group.least_cosine)}"
        names = markup.details("Names", [_names(site, [group.medoid, *group.members])])
        yield f'<div class="set"><p>{words}</p><div class="star">{pictures}{more}</div>{names}</div>'
    yield _turn(page, "groups", len(site.result.groups) > len(groups))


def _hubs(site: Site, page: _Page) -> Iterator[str]:
    if not page.hubs:
        return
    yield markup.paragraph(
        f"Pictures that are among the {site.result.search.neighbors} nearest of many others. "
        + (
            "The order of pairs is corrected for them."
            if site.result.search.hub_correction
            else "The order of pairs is not corrected for them."
        ),
        css="muted",
    )
    items = "".join(
        f"<figure>{site.original(hub.picture, SMALL)}<figcaption>{markup.text(site.name(hub.picture))}<br>"
        f"in {hub.lists:,} of {site.result.counts.compared:,} lists</figcaption></figure>"
        for hub in page.hubs
    )
    yield f'<div class="hubs">{items}</div>'


def _not_read(site: Site) -> Iterator[str]:
    result = site.result
    if result.skipped:
        rows = [
            markup.row(one.suffix or "no suffix", [f"{one.count:,}", f"<code>{markup.text(one.mend)}</code>"])
            for one in result.skipped
        ]
        yield markup.table(["suffix", "files", "to read them"], rows, caption="Files of kinds that are not read")
    if result.broken:
        rows = [_broken_row(site, one) for one in result.broken[:NAMED]]
        if len(result.broken) > NAMED:
            yield markup.paragraph(f"The first {NAMED} of {len(result.broken):,} broken files; {SIZE_WORDS}.")
        yield markup.table(["file", "why"], rows, caption="Broken files: tried again when they change")


def _broken_row(site: Site, broken: Broken) -> str:
    return f'<tr><th scope="row">{_linked(site, broken)}</th><td>{markup.text(broken.reason)}</td></tr>'


def _how(result: Result) -> Iterator[str]:
    yield markup.command(result.command)
    search, run = result.search, result.run
    how = "exact, every picture with every other"
    if not search.exact:
        how = "approximate"
        if search.recall is not None:
            of = f" of {numbers.plural(search.recall_queries or 0, 'query', 'queries')}"
            how += f"; {search.recall:.1%}{of if search.recall_queries else ''} neighbors found".replace("%", " %")
    made = f"{run.embedded:,} embedded, {run.kept:,} known before, {run.renamed:,} renamed"
    if run.images_per_second:
        made += f"; {run.images_per_second:,.0f} images a second"
    items = [
        ("when", run.created),
        (
            "folders",
            ", ".join(f"{one.path}{'' if one.role == 'searched' else f' ({one.role})'}" for one in result.folders),
        ),
        ("model", f"{result.model.name} ({result.model.fingerprint[:12]}), {result.model.dimension} numbers a picture"),
        ("images", made),
        ("search", how + (", corrected for hubs" if search.hub_correction else "")),
    ]
    if result.model.description:
        items.insert(3, ("what the model is", result.model.description))
    if result.random_pairs is not None:
        random = result.random_pairs
        shares = ", ".join(
            f"{_percent(share)} at most {numbers.fraction(value)}" for share, value in random.quantiles.items()
        )
        items.append(("random pairs", f"cosines of {random.count:,}: {shares}"))
    if run.seconds:
        items.append(("time", ", ".join(f"{name} {numbers.duration(took)}" for name, took in run.seconds.items())))
    yield markup.definitions(items)
    yield markup.details("Versions", [markup.definitions(result.versions.items())])


def _percent(share: str) -> str:
    return f"{100 * float(share):.6g} %"

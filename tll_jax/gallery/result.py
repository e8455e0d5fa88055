"""The result of `tll find` as typed values, and its JSON form `tll-find/1`.

Everything outside `Result.run` depends on the pictures, the model and the options alone, so that two results can be
compared. Neither JAX nor NumPy is imported: a command that finds nothing changed reads a result and ends.
"""

import base64
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tll_jax.errors import DamagedFile, InvalidValue
from tll_jax.files import read_json, spelled_out, write_json

FORMAT = "tll-find/1"
RESULT = "find.json"

Kind = Literal["same-file", "near-duplicate", "look-alike"]
"""Equal bytes; pHash and dHash both close; neither, but neighbors by the model."""
Mode = Literal["within", "against", "query", "pair"]
"""Pairs within the folders; across two sets of them; of queries and their neighbors; the two pictures given."""
Role = Literal["searched", "against", "query"]
Measure = Literal[
    "same-places",
    "strongest-places",
    "texture",
    "parts",
    "objects",
    "without-color",
    "mirrored",
    "blurred",
    "outer-quarter-gone",
    "mutual-rank",
    "same-size",
    "same-folder",
    "same-second",
    "hash-bits",
]


@dataclass(frozen=True, kw_only=True)
class FileName:
    """One name of a file."""

    folder: int
    """Index into `Result.folders`."""
    path: str
    """Relative to the folder, with `/`; bytes that are not UTF-8 as surrogates (`os.fsdecode`)."""


@dataclass(frozen=True, kw_only=True)
class Picture(FileName):
    """A picture, by the first of its names."""

    content: str
    """BLAKE2b-128 of the file's bytes, 32 hexadecimal digits."""
    width: int
    height: int
    """Pixels, upright."""
    size: int
    """Bytes of the file."""
    taken: str | None = None
    """Date and time of EXIF, `YYYY-MM-DDTHH:MM:SS`."""
    frame: int = 0
    """Frame of an animated file that counts here."""
    cut_short: bool = False
    aliases: tuple[FileName, ...] = ()
    """Further names of the same file (links), not of copies."""


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The cosine of a pair after one change of the pictures, minus the cosine without it."""

    measure: Literal["without-color", "mirrored", "blurred", "outer-quarter-gone"]
    change: float


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of a picture in fractions of its height and width; one that is padded to a square reaches beyond it."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True, kw_only=True)
class PlacePair:
    """Contribution of a place of the left picture and one of the right to the cosine; counted from 0."""

    left: tuple[int, int]
    """Row and column."""
    right: tuple[int, int]
    value: float


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A sentence about a pair, and the number that makes it true."""

    measure: Measure
    value: float
    """Cosine after a change that does not matter."""
    random: float | None
    """The bound of the same number over random pairs of the folder, beyond which `value` lies; None for facts that need
    no such bound."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Why two pictures count as alike."""

    rows: int
    columns: int
    left_box: Box
    """The part of the left picture that its places cover."""
    right_box: Box
    places: tuple[float, ...]
    """The place table: `rows * columns` places of the left picture times as many of the right, row by row, the left
    place slowest. The sum is the cosine, to .001."""
    same_places: float
    """The fraction of the cosine that equal places add."""
    strongest: tuple[PlacePair, ...]
    """The three pairs of places that add most, most first."""
    stages: dict[str, float]
    """Fractions of the cosine by the stage of the network, `texture`, `parts` and `objects`; empty where the model does
    not separate them."""
    what_ifs: tuple[WhatIf, ...]
    sentences: tuple[Reason, ...]
    """Only those whose number is beyond that of random pairs."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two pictures and how alike they are."""

    left: Picture
    right: Picture
    kind: Kind
    cosine: float
    score: float
    """Score that pairs are ordered by: the cosine, corrected for hubs (CSLS) if the search does so."""
    one_in: float | None
    """As alike as one in so many random pairs of the folder; None where there are too few pictures to tell."""
    one_in_is_bound: bool = False
    """No random pair was as alike: rarer than one in `one_in`."""
    left_rank: int | None = None
    """The rank of the right picture among the neighbors of the left one, from 1; None if it is not among them."""
    right_rank: int | None = None
    left_margin: float | None = None
    """The cosine minus that of the left picture's next neighbor in rank (its first, if this pair's rank is not 1)."""
    right_margin: float | None = None
    left_lists: int | None = None
    """In how many lists of nearest neighbors the left picture is."""
    right_lists: int | None = None
    phash_bits: int | None = None
    """Differing bits of 64; None where the two were not compared."""
    dhash_bits: int | None = None
    reasons: Reasons | None = None
    maps: str | None = None
    """The page of saliency maps, relative to the result's folder, with `/`."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Pictures that count as one in the search: `others` are equal to, or near-duplicates of, `kept`."""

    kind: Literal["same-file", "near-duplicate"]
    kept: Picture
    others: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """A star of look-alikes round its medoid."""

    medoid: Picture
    members: tuple[Picture, ...]
    """Without the medoid."""
    cosines: tuple[float, ...]
    """Cosine of each member with the medoid."""
    least_cosine: float
    """Least cosine of any two pictures of the group."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A picture that is among the nearest neighbors of many others."""

    picture: Picture
    lists: int


@dataclass(frozen=True, kw_only=True)
class Broken(FileName):
    """A file that could not be read as a picture."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Files that were not read, by suffix."""

    suffix: str
    """In lower case, with its dot; empty for names without one."""
    count: int
    mend: str
    """Command that makes them readable (`pip install 'tll_jax[heic]'`), or why they are not read."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder, a zip file or a single picture that was given."""

    path: str
    """Absolute."""
    role: Role = "searched"


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model that embeds the pictures."""

    name: str
    fingerprint: str
    dimension: int
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of pictures and pairs."""

    images: int
    """Names of pictures that were read or known."""
    contents: int
    """Distinct contents among them."""
    compared: int
    """Contents left after same files and near-duplicates are collapsed."""
    broken: int
    skipped: int
    cut_short: int
    pairs: int
    """Look-alike pairs before the list was cut to `--pairs`."""
    ignored: int
    """Pairs left out because `--ignore` names them."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of the search, and its measured recall."""

    exact: bool
    neighbors: int
    """Number of neighbors of each picture."""
    hub_correction: bool
    recall: float | None = None
    """Recall of an approximate search, measured against an exact one of a sample."""
    recall_queries: int | None = None
    """Size of that sample."""


@dataclass(frozen=True, kw_only=True)
class RandomPairs:
    """Cosines of random pairs of the folder, by which strength is counted."""

    count: int
    seed: int
    quantiles: dict[str, float]
    """The cosine below which a fraction of them lies, by the fraction: `"0.5"`, `"0.99"`, ..., `"1"`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Facts that differ from run to run."""

    created: str
    """UTC, ISO 8601."""
    kept: int
    """Images whose embedding was there already."""
    embedded: int
    renamed: int
    seconds: dict[str, float]
    """By part of the work."""
    images_per_second: float | None = None
    """Rate of the pictures embedded in this run."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that `tll find` found."""

    command: str
    versions: dict[str, str]
    mode: Mode
    model: Model
    folders: tuple[Folder, ...]
    counts: Counts
    search: Search
    random_pairs: RandomPairs | None
    pairs: tuple[Pair, ...]
    duplicates: tuple[Duplicates, ...]
    groups: tuple[Group, ...]
    hubs: tuple[Hub, ...]
    broken: tuple[Broken, ...]
    skipped: tuple[Skipped, ...]
    run: Run


def write(result: Result, folder: Path) -> Path:
    """Writes `find.json` into a folder, whole or not at all; returns its path."""
    path = folder / RESULT
    write_json(path, to_json(result))
    return path


def read(path: Path) -> Result:
    """The result in a file that `write` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedFile: it is not JSON of the format `tll-find/1`; names the file.
    """
    content = read_json(path)
    try:
        return from_json(content)
    except InvalidValue as error:
        raise DamagedFile(f"{path} is no result of `tll find` of this version: {error}") from error


def to_json(result: Result) -> dict[str, Any]:
    """A result as JSON values of Python's own types, whatever number types it was made of.

    Raises:
      ValueError: a number is NaN or infinite.
    """
    return {"format": FORMAT, **_encoded(result, Result, "result")}


def from_json(content: Any) -> Result:
    """The inverse of `to_json`.

    Raises:
      InvalidValue: the format is another one, or a value is missing or of a wrong type; names its place.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InvalidValue(f"the format is {found!r}; it must be {FORMAT!r}")
    rest = {name: value for name, value in content.items() if name != "format"}
    return _decoded(rest, Result, "result")


def _encoded(value: Any, kind: Any, place: str) -> Any:
    """A value as JSON, by its annotation."""
    kind = _present(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _encoded_fields(value, kind, place)
    if origin is tuple:
        return [_encoded(one, _item(arguments, at), f"{place}[{at}]") for at, one in enumerate(value)]
    if origin is dict:
        return {spelled_out(name): _encoded(one, arguments[1], f"{place}.{name}") for name, one in value.items()}
    if kind is float:
        number = float(value)
        if not math.isfinite(number):
            raise InvalidValue(f"{place} is {number}; JSON has no such number")
        return number
    if kind is bool:
        return bool(value)
    if kind is int:
        return operator.index(value)
    return None if value is None else spelled_out(value)


def _encoded_fields(value: Any, kind: Any, place: str) -> dict[str, Any]:
    written = {}
    for name, annotation in typing.get_type_hints(kind).items():
        one = getattr(value, name)
        written[name] = _encoded(one, annotation, f"{place}.{name}")
        if name == "path" and written[name] != one:
            data = one.encode("utf-8", "surrogateescape")
            written["path_base64"] = base64.b64encode(data).decode()
    return written


def _decoded(value: Any, kind: Any, place: str) -> Any:
    """A value from JSON, by its annotation."""
    kind = _present(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decoded_fields(_expected(value, dict, place), kind, place)
    if origin is tuple:
        values = _expected(value, list, place)
        return tuple(_decoded(one, _item(arguments, at), f"{place}[{at}]") for at, one in enumerate(values))
    if origin is dict:
        return {
            name: _decoded(one, arguments[1], f"{place}.{name}") for name, one in _expected(value, dict, place).items()
        }
    if origin is Literal:
        if value not in arguments:
            raise InvalidValue(f"{place} is {value!r}; it must be one of {', '.join(arguments)}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    return _expected(value, kind, place)


def _decoded_fields(value: Mapping[str, Any], kind: Any, place: str) -> Any:
    found = {}
    for name, annotation in typing.get_type_hints(kind).items():
        if name not in value:
            raise InvalidValue(f"{place} has no {name!r}")
        found[name] = _decoded(value[name], annotation, f"{place}.{name}")
    if "path_base64" in value:
        try:
            data = base64.b64decode(_expected(value["path_base64"], str, place), validate=True)
        except ValueError as error:
            raise InvalidValue(f"{place}.path_base64 is no base64") from error
        found["path"] = data.decode("utf-8", "surrogateescape")
    return kind(**found)


def _expected(value: Any, kind: Any, place: str) -> Any:
    if type(value) is not kind:
        raise InvalidValue(f"{place} is {value!r}, not of type {kind.__name__}")
    return value


def _present(kind: Any, value: Any) -> Any:
    """The type of the value in `X | None`."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return types.NoneType if value is None else typing.get_args(kind)[0]
    return kind


def _item(arguments: tuple[Any, ...], at: int) -> Any:
    return arguments[0] if arguments[-1] is Ellipsis else arguments[min(at, len(arguments) - 1)]

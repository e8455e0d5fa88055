"""The pairs of a result as a table: CSV or Parquet."""

import csv
import io
from pathlib import Path
from typing import Any

from tll_jax.errors import missing_package
from tll_jax.files import csv_cell, replacing, spelled_out, write_whole
from tll_jax.gallery.result import Pair, Picture, Result

SIDE = ("folder", "path", "content", "frame", "width", "height", "size")
PAIR = (
    *("kind", "one_in", "one_in_is_bound", "cosine", "score", "left_rank", "right_rank"),
    *("left_lists", "right_lists", "phash_bits", "dhash_bits"),
)
COLUMNS = (*(f"left_{name}" for name in SIDE), *(f"right_{name}" for name in SIDE), *PAIR, "reasons")


def write(result: Result, path: Path) -> None:
    """Writes one row a pair, in the format of the suffix.

    Raises:
      MissingPackage: `tll_jax[find]` is not installed, and it is Parquet.
      OSError: the file cannot be written.
    """
    rows = [_row(result, pair) for pair in result.pairs]
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows([csv_cell(cell) if isinstance(cell, str) else cell for cell in row.values()] for row in rows)
        write_whole(path, text.getvalue())
        return
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise missing_package("writing Parquet", "find") from error
    text_columns = ("path", "folder", "content", "kind", "reasons")
    schema = pa.schema([(name, _type(name, pa, text_columns)) for name in COLUMNS])
    rows = [{name: spelled_out(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]
    with replacing(path) as partial:
        parquet.write_table(pa.Table.from_pylist(rows, schema), partial)


def _type(name: str, pa: Any, text_columns: tuple[str, ...]) -> Any:
    if name.endswith(text_columns):
        return pa.string()
    if name == "one_in_is_bound":
        return pa.bool_()
    return pa.float64() if name in ("one_in", "cosine", "score") else pa.int64()


def _row(result: Result, pair: Pair) -> dict[str, Any]:
    def side(name: str, picture: Picture) -> dict[str, Any]:
        values = {column: getattr(picture, column) for column in SIDE}
        values["folder"] = result.folders[picture.folder].path
        return {f"{name}_{column}": value for column, value in values.items()}

    reasons = "" if pair.reasons is None else " ".join(one.text for one in pair.reasons.sentences)
    facts = {name: getattr(pair, name) for name in PAIR}
    return side("left", pair.left) | side("right", pair.right) | facts | {"reasons": reasons}

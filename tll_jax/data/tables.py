"""CSV tables as people, spreadsheets and this program write them."""

import csv
import io
from pathlib import Path

from tll_jax.errors import FileProblem, InvalidValue, MissingFile


def read_rows(data: bytes, where: str) -> list[tuple[int, list[str]]]:
    """The rows of a CSV in UTF-8 but for empty ones, each with the line that it ends on; texts are as they stand there,
    with spaces at their ends.

    Raises:
      ValueError: it is no CSV, or a quote is left open; names `where` and the line.
    """
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        # Else a quote that is left open would take in the rest of the file without a word.
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            line = reader.line_num + 1
            if row:
                rows.append((reader.line_num, row))
    except (UnicodeDecodeError, csv.Error) as error:
        reason = "a quote is opened there and not closed" if "unexpected end" in str(error) else error
        at = "" if isinstance(error, UnicodeDecodeError) else f"line {line}: "
        raise InvalidValue(f"{where} is not a CSV in UTF-8 ({at}{reason}): mend it, or save it anew as one") from error
    return rows


def read_csv(path: Path, *, what: str) -> list[tuple[int, list[str]]]:
    """`read_rows` of a file.

    Args:
      what: what should be there and where it comes from, for a message.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be read.
      ValueError: it is no CSV; names the line.
    """
    if not path.is_file():
        raise MissingFile(f"no file at {path}: {what}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror or error}): look after the file") from error
    return read_rows(data, str(path))

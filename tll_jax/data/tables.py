"""CSV tables as written by people, spreadsheets and this package."""

import csv
import io
from pathlib import Path

from tll_jax.errors import FileProblem, InvalidValue, MissingFile


def read_rows(data: bytes, where: str) -> list[tuple[int, list[str]]]:
    """Non-empty rows of a UTF-8 CSV, each with the number of its last line; leading and trailing spaces are kept.

    Args:
      where: name of the table, for error messages.

    Raises:
      ValueError: the data is not a CSV, or a quote is not closed; the message contains `where` and the line.
    """
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        # Strict, because an unclosed quote would otherwise swallow the rest of the file silently.
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
    """Rows of a CSV file (see `read_rows`).

    Args:
      what: description of the expected file and its origin, for error messages.

    Raises:
      FileNotFoundError: the file does not exist.
      OSError: the file cannot be read.
      ValueError: the file is not a CSV; the message names the line.
    """
    if not path.is_file():
        raise MissingFile(f"no file at {path}: {what}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror or error}): look after the file") from error
    return read_rows(data, str(path))

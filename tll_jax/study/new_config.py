"""`tll new`: a commented config for your own pairs, made from the package's template."""

import json
from pathlib import Path

from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.pair_folders import MatchingFolders, PairFiles, PairsFromTable
from tll_jax.data.recognize import recognize_pairs
from tll_jax.errors import InvalidValue
from tll_jax.files import given_path

TEMPLATE = Path(__file__).parents[1] / "studies" / "template.py"
MIN_PAIRS = 12
"""Least number of pairs: enough for eight training and two test pairs."""
TRAINED_FRACTION = 0.7
"""Fraction of training pairs in the template's split, beside a fifth for testing and a tenth for validation."""
LARGEST_BATCH = 32
DOCSTRING = '''"""A study of {num_pairs:,} pairs of {path}.

tll run THIS_FILE runs/mine        trains, ranks and explains; open runs/mine/report.html

The values suit some hundred pairs. Change what you like here, or for one run with --config.dotted.field=value; a
misspelled field is answered with the names that there are.
"""'''


def new_config(path: str) -> str:
    """The text of a config file for the pairs at `path`.

    Args:
      path: "emoji", a folder, a zip, or a CSV with the columns left,right.

    Raises:
      FileNotFoundError: nothing is at `path`.
      ValueError: no pairs are recognized there, or too few.
    """
    pairs = recognize_pairs(path)
    if not isinstance(pairs, EmojiPairs):
        # Off by default: detecting faces needs an extra and minutes.
        pairs.faces = None
    num_pairs = len(pairs.open())
    if num_pairs < MIN_PAIRS:
        raise InvalidValue(f"{path} holds {num_pairs} pairs; training and testing need {MIN_PAIRS} or more")
    _, _, body = TEMPLATE.read_text(encoding="utf-8").split('"""', 2)
    body = _with_pairs(body, pairs)
    batch = min(LARGEST_BATCH, 2 ** (int(num_pairs * TRAINED_FRACTION).bit_length() - 1))
    body = _replaced(body, f"batch_size={LARGEST_BATCH}", f"batch_size={batch}")
    shown = path.replace("\\", "/").replace('"', "'").encode(errors="backslashreplace").decode()
    return DOCSTRING.format(num_pairs=num_pairs, path=shown.replace("\\", "\\\\")) + body


def _with_pairs(body: str, pairs: EmojiPairs | PairFiles) -> str:
    """The template's code with the settings of these pairs in place of its own."""
    name = type(pairs).__name__
    body = _replaced(
        body, "from tll_jax.data.pair_folders import PairsFromTable", f"from {type(pairs).__module__} import {name}"
    )
    body = _replaced(body, "-> PairsFromTable:", f"-> {name}:")
    if isinstance(pairs, EmojiPairs):
        start = body.index("PairsFromTable(")
        end = body.index("\n        )\n", start) + len("\n        )")
        body = body[:start] + "EmojiPairs()" + body[end:]
        body = _replaced(body, "from tll_jax.data.duplicates import NearDuplicates\n", "")
        return _replaced(body, 'path: str = "$PAIRS"', "")
    body = _replaced(body, "return PairsFromTable(", f"return {name}(")
    layout: dict[str, str] = {}
    if isinstance(pairs, PairsFromTable):
        layout = {"table": pairs.table}
    elif isinstance(pairs, MatchingFolders):
        layout = {"left": pairs.left, "right": pairs.right}
    lines = "".join(f"            {field}={_literal(value)},\n" for field, value in layout.items())
    body = _replaced(body, '            table="pairs.csv",\n', lines)
    return _replaced(body, '"$PAIRS"', _literal(str(given_path(pairs.path).resolve())))


def _literal(text: str) -> str:
    """A Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise AssertionError(f"the template has no {old!r}")
    return text.replace(old, new)

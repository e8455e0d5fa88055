"""What the docs say of the code is so."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_stop_of_an_images_journey_is_there():
    text = (ROOT / "docs" / "journey.md").read_text(encoding="utf-8")
    stops = re.findall(r"`(tll_jax/[\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", text)
    assert len(stops) > 15
    for path, names in stops:
        defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert set(re.findall(r"\w+", names)) <= defined, path

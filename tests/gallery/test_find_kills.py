import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tll_jax.gallery.embed import contents_schema
from tll_jax.gallery.store import FILES, Store

NUM_PHOTOS, ROUNDS, KILLS_A_ROUND = 150, 4, 5
COMMAND = """
from tll_jax.cli import main
from tll_jax.gallery import builder, embed
# Several commits, and reasons that take no longer than the rest.
embed.CHUNK = 32
builder.NUM_RANDOM = 20
main()
"""


def outcome(out, cache):
    """All that a run leaves: the result but for its own facts, the names of the files, and both tables."""
    result = json.loads((out / "find.json").read_text())
    del result["run"], result["command"]
    store = Store(str(cache))
    (model,) = store.models()
    both = (store.files(), FILES.names), (store.contents(model), contents_schema(1).names)
    tables = [table.rows(names).select(names).sort_by("id").to_pylist() for table, names in both]
    return result, sorted(str(path.relative_to(out)) for path in out.rglob("*")), tables


@pytest.mark.release
@pytest.mark.skipif("TLL_DATA" not in os.environ, reason="TLL_DATA names no folder with the research sets")
def test_twenty_kills_at_random_moments_change_no_result(environment, tmp_path):
    pytest.importorskip("lancedb")
    photos = tmp_path / "photos"
    photos.mkdir()
    with zipfile.ZipFile(Path(os.environ["TLL_DATA"]) / "imagenette-128.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for name in names[:: len(names) // NUM_PHOTOS][:NUM_PHOTOS]:
            (photos / Path(name).name).write_bytes(archive.read(name))
    # Compiled as users have it, for the network takes most of the time.
    variables = environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}

    def find(name, seconds=None):
        """Whether the command ended before it was killed."""
        options = ["--out", str(tmp_path / name), "--cache", str(tmp_path / f"{name}-cache"), "--pairs", "20"]
        command = [sys.executable, "-c", COMMAND, "find", str(photos), *options]
        try:
            ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        assert ran.returncode == 0, ran.stderr
        return True

    def undisturbed(name):
        find(name)
        return outcome(tmp_path / name, tmp_path / f"{name}-cache")

    expected = undisturbed("whole")
    # Without compiling anew.
    assert undisturbed("again") == expected
    seconds = sum(json.loads((tmp_path / "again" / "find.json").read_text())["run"]["seconds"].values()) + 3
    moments = random.Random(0)
    for number in range(ROUNDS):
        ended = [find(f"killed-{number}", moments.uniform(0, seconds)) for _ in range(KILLS_A_ROUND)]
        print("killed", ended.count(False), "of", len(ended), flush=True)
        assert undisturbed(f"killed-{number}") == expected

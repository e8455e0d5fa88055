"""Model files on the 325 look-alikes without faces: python benchmarks/model_files.py FILE... --out RESULTS.json

Each file (or "default") embeds both sides of the test pairs of configs/tll_systems.py; each side asks among the other
sides of all 325. Needs TLL_DATA and the extras find and faces. A minute on two cores.
"""

import argparse
import json
from pathlib import Path

from tll_jax import load, ranking
from tll_jax.data.splits import Manifest
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.devices import local_mesh
from tll_jax.evaluation import metrics
from tll_jax.files import write_json

TEST_PAIRS = Path(__file__).parents[1] / "configs" / "splits" / "tll_no_face.json"
COLUMNS = ("mrr", "top1", "top5", "top10")


def main() -> None:
    """Prints and writes a row a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="RESULTS.json")
    arguments = parser.parse_args()
    pairs = TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip").open()
    manifest = Manifest.load(TEST_PAIRS)
    images = pairs.images(pairs.indices(manifest.test))
    rows = []
    for name in arguments.models:
        model = load(name)
        learned = set(model.file.pictures) if model.file else set()
        test = {content for index in pairs.indices(manifest.test) for content in pairs.hashes[index]}
        assert not learned & test, f"{name} was fitted on test pictures"
        left, right = (model.explainer.embed(side) for side in (images.left, images.right))
        ranks = ranking.pair_ranks(left, right, mesh=local_mesh())
        row = metrics.metrics_row(model.source.stem, "file", ranks[None])
        rows.append({"model": model.source.stem, "fingerprint": model.fingerprint, "pairs": len(images.ids)})
        rows[-1] |= {column: row[column] for column in COLUMNS} | {"median_rank": row["median_rank"]}
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out is not None:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()

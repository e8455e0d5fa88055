"""The model that `tll find` takes where it is there: linear, on frozen features, fitted on Totally Looks Like.

make look-alike TLL_DATA=FOLDER_WITH_THE_ZIPS      (runs this, and writes the model file into the cache folder)

Two CPU cores, beside other work: three minutes. `lite0-rca` of configs/tll_systems.py with 256 numbers in the place of
512; the same 325 test pairs are left out of its training. benchmarks/results/model_files.json has its figures.
"""

from pathlib import Path

from tll_jax.data.faces import DlibFaces
from tll_jax.data.geometry import Resize
from tll_jax.data.splits import Split
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.study.default_model import look_alike
from tll_jax.study.settings import Evaluate, Study

TEST_PAIRS = Path(__file__).parent / "splits" / "tll_no_face.json"


def get_config() -> Study:
    """One system."""
    return Study(
        name="look_alike",
        pairs=TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip", faces=DlibFaces()),
        split=Split(path=str(TEST_PAIRS), validation_fraction=0.15),
        models={},
        systems={"lite0-rca": look_alike(shrinkage=0.43, whitening=-0.5)},
        evaluate=Evaluate(geometry=Resize(size=224)),
    )

"""The model that `tll find` prefers to the package's: linear, on frozen features, fitted on Totally Looks Like.

python -m tll_jax.main --config=configs/look_alike.py --workdir=runs/look_alike
(or: make look-alike TLL_DATA=FOLDER_WITH_THE_ZIPS, which also writes the model file into the cache folder)

Two CPU cores, beside other work: two minutes, with faces and features in the cache. `lite0-rca` of
configs/tll_systems.py with 256 in place of 512 dimensions: top-1 .29, top-5 .44 and mean reciprocal rank .37 on its 325
test pairs.
"""

import tll

from tll_jax.data.geometry import Resize
from tll_jax.study.default_model import look_alike
from tll_jax.study.settings import Evaluate, Study


def get_config() -> Study:
    """A study of one system."""
    return Study(
        name="look_alike",
        pairs=tll.pairs(),
        split=tll.split(__file__),
        models={},
        systems={"lite0-rca": look_alike(shrinkage=0.43, whitening=-0.5)},
        evaluate=Evaluate(geometry=Resize(size=224)),
    )

"""MobileNetV2 computes what PyTorch computes, with the names of the package that holds its weights."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from tests.models import references
from tll_jax.models.mobilenet import MobileNetV2
from tll_jax.models.stages import stage_of
from tll_jax.models.weights import WeightFile, load_backbone, to_torch


@cache
def stored():
    return references.load("mobilenet_v2")


def loaded(folder):
    path = folder / "mobilenet.safetensors"
    save_file(references.draw_state(stored()["shapes"]), path)
    return load_backbone(MobileNetV2(), WeightFile(path=str(path)))


def test_every_stage_is_that_of_pytorch(tmp_path):
    module = MobileNetV2().build(dtype=jnp.float32)
    found = jax.jit(partial(module.apply, train=False))(loaded(tmp_path), references.images(65, 96))
    references.assert_as_stored(found.stages, stored()["summaries"], tolerance=1e-4)
    np.testing.assert_allclose(found.pooled, np.asarray(found.stages[-1]).mean((1, 2)), rtol=1e-5)


def test_stages_and_names_are_all_there(tmp_path):
    variables = loaded(tmp_path)
    assert sorted(stage_of(name) for name in variables["params"]) == list(range(MobileNetV2().num_stages))
    assert to_torch(variables, MobileNetV2().torch_name).keys() == stored()["shapes"].keys()
    # Sandler et al.'s 3.4 million with the classifier's 1,281,000.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 2_223_872

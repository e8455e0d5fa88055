"""EfficientNet-Lite with its ImageNet weights computes what PyTorch computes, and knows real things."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import references
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.imaging import resize
from tll_jax.models.efficientnet_lite import EfficientNetLite0, EfficientNetLite2
from tll_jax.models.network import trainable_mask
from tll_jax.models.stages import stage_of
from tll_jax.models.torch_files import read_state_dict
from tll_jax.models.weights import EfficientNetLite0ImageNet, EfficientNetLite2ImageNet, load_backbone

IMAGES = references.images(65, 96)


KINDS = {
    0: (EfficientNetLite0(), EfficientNetLite0ImageNet(), 224),
    2: (EfficientNetLite2(), EfficientNetLite2ImageNet(), 260),
}


@cache
def weights(number):
    return read_state_dict(KINDS[number][1].find())


@cache
def loaded(number=0):
    backbone, file, _ = KINDS[number]
    variables = load_backbone(backbone, file)
    return variables, jax.jit(lambda images: backbone.build(dtype=jnp.float32).apply(variables, images, train=False))


def logits(images, number=0):
    _, apply = loaded(number)
    state = weights(number)
    return np.asarray(apply(images).pooled) @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.mark.parametrize("number", KINDS)
def test_every_stage_and_the_logits_are_those_of_pytorch(number):
    _, apply = loaded(number)
    found = [*apply(IMAGES).stages, logits(IMAGES, number)]
    stored = references.load(f"efficientnet_lite{number}")["summaries"]
    references.assert_as_stored(found, stored, tolerance=1e-3)


@pytest.mark.parametrize("number", KINDS)
def test_logits_are_those_of_the_model_that_the_weights_were_made_for(number):
    size = KINDS[number][2]
    found = logits(references.images(size, size), number)
    stored = references.load(f"efficientnet_lite{number}")["package_logits"]
    references.assert_as_stored([found], [stored], tolerance=1e-3)


def test_the_pretrained_network_classifies_emoji():
    # Banana, strawberry, pineapple, pizza, broccoli, lemon, accordion, trumpet, violin, pretzel, scorpion.
    wanted = {"1f34c": 954, "1f353": 949, "1f34d": 953, "1f355": 963, "1f966": 937, "1f34b": 951}
    wanted |= {"1fa97": 401, "1f3ba": 513, "1f3bb": 889, "1f968": 932, "1f982": 71}
    pairs = EmojiPairs().open()
    left = pairs.images(pairs.indices(wanted)).left
    images = np.stack([resize(image, 224) for image in left]).astype(np.float32) / 255
    # By twos, as the network is compiled for above.
    scores = np.concatenate([logits(images[[at, at - 1]])[:1] for at in range(len(images))])
    ranks = [(row > row[index]).sum() for row, index in zip(scores, wanted.values(), strict=True)]
    # Drawings are not what it learned from; chance is 500.
    assert np.median(ranks) < 20


def test_the_parameters_top_level_is_the_stages_and_those_of_the_backbone_freeze():
    variables, _ = loaded()
    names = sorted(variables["params"], key=stage_of)
    assert [stage_of(name) for name in names] == list(range(EfficientNetLite0().num_stages))
    mask = trainable_mask({"backbone": variables["params"]}, 8)["backbone"]
    assert {name for name in names if any(jax.tree.leaves(mask[name]))} == {"stage8"}


# TensorFlow's table of the Lite models has 4.7 and 6.1 million.
@pytest.mark.parametrize(("number", "parameters"), [(0, 4_652_008), (2, 6_092_072)])
def test_the_published_number_of_parameters(number, parameters):
    variables, _ = loaded(number)
    classifier = 1280 * 1000 + 1000
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) + classifier == parameters


def test_frozen_stages_get_no_gradient_and_keep_their_statistics():
    variables, _ = loaded()
    module = EfficientNetLite0().build(dtype=jnp.float32)

    @jax.jit
    def gradient(params):
        def loss(params):
            features, updated = module.apply(
                variables | {"params": params}, IMAGES, train=True, frozen_stages=7, mutable=["batch_stats"]
            )
            return jnp.sum(features.pooled**2), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = gradient(variables["params"])
    for name in gradients:
        moves = any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients[name]))
        changes = [
            bool(jnp.any(new != old))
            for new, old in zip(
                jax.tree.leaves(statistics[name]), jax.tree.leaves(variables["batch_stats"][name]), strict=True
            )
        ]
        assert moves == any(changes) == (stage_of(name) >= 7)

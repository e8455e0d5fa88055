"""EfficientNet-Lite0 with its ImageNet weights computes what PyTorch computes, and knows real things."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.imaging import resize
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.network import trainable_mask
from tll_jax.models.resnet import stage_of
from tll_jax.models.torch_files import read_state_dict
from tll_jax.models.weights import EfficientNetLite0ImageNet, load_backbone

IMAGES = np.random.default_rng(0).uniform(size=(2, 65, 96, 3)).astype(np.float32)


@cache
def weights():
    return read_state_dict(EfficientNetLite0ImageNet().find())


@cache
def loaded():
    backbone = EfficientNetLite0()
    variables = load_backbone(backbone, EfficientNetLite0ImageNet())
    return variables, jax.jit(lambda images: backbone.build(dtype=jnp.float32).apply(variables, images, train=False))


def logits(images):
    _, apply = loaded()
    return np.asarray(apply(images).pooled) @ weights()["_fc.weight"].T + weights()["_fc.bias"]


def torch_stages(images):
    """The maps of the nine stages and the logits, written from the paper's table with PyTorch's functions."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    state = {name: torch.from_numpy(value) for name, value in weights().items()}

    def convolve(maps, name, strides=1, depthwise=False):
        kernel = state[f"{name}.weight"]
        pads = []
        for size in (maps.shape[3], maps.shape[2]):
            total = max((-(-size // strides) - 1) * strides + kernel.shape[-1] - size, 0)
            pads += [total // 2, total - total // 2]
        groups = maps.shape[1] if depthwise else 1
        return functional.conv2d(functional.pad(maps, pads), kernel, stride=strides, groups=groups)

    def norm(maps, name):
        mean, var, scale, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(maps, mean, var, scale, bias, eps=1e-3)

    maps = (torch.from_numpy(images).permute(0, 3, 1, 2) * 255 - 127) / 128
    maps = functional.relu6(norm(convolve(maps, "_conv_stem", 2), "_bn0"))
    outputs, number = [maps], 0
    for repeats, strides in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for repeat in range(repeats):
            name, inputs = f"_blocks.{number}", maps
            if f"{name}._expand_conv.weight" in state:
                maps = functional.relu6(norm(convolve(maps, f"{name}._expand_conv"), f"{name}._bn0"))
            maps = convolve(maps, f"{name}._depthwise_conv", 1 if repeat else strides, depthwise=True)
            maps = functional.relu6(norm(maps, f"{name}._bn1"))
            maps = norm(convolve(maps, f"{name}._project_conv"), f"{name}._bn2")
            maps = maps + inputs if repeat else maps
            number += 1
        outputs.append(maps)
    outputs.append(functional.relu6(norm(convolve(maps, "_conv_head"), "_bn1")))
    scores = outputs[-1].mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
    return [output.permute(0, 2, 3, 1).numpy() for output in outputs], scores.numpy()


def test_every_stage_and_the_logits_are_those_of_pytorch():
    _, apply = loaded()
    expected, scores = torch_stages(IMAGES)
    found = apply(IMAGES).stages
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=2e-4 * np.abs(theirs).max())
    np.testing.assert_allclose(logits(IMAGES), scores, atol=1e-3)


def test_it_knows_what_emoji_show():
    # Banana, strawberry, pineapple, pizza, broccoli, lemon, accordion, trumpet, violin, pretzel, scorpion.
    wanted = {"1f34c": 954, "1f353": 949, "1f34d": 953, "1f355": 963, "1f966": 937, "1f34b": 951}
    wanted |= {"1fa97": 401, "1f3ba": 513, "1f3bb": 889, "1f968": 932, "1f982": 71}
    pairs = EmojiPairs().open()
    left = pairs.images(pairs.indices(wanted)).left
    images = np.stack([resize(image, 224) for image in left]).astype(np.float32) / 255
    scores = logits(images)
    ranks = [(row > row[index]).sum() for row, index in zip(scores, wanted.values(), strict=True)]
    # Drawings are not what it learned from; chance is 500.
    assert np.median(ranks) < 20


def test_the_parameters_top_level_is_the_stages_and_those_of_the_backbone_freeze():
    variables, _ = loaded()
    names = sorted(variables["params"], key=stage_of)
    assert [stage_of(name) for name in names] == list(range(EfficientNetLite0().num_stages))
    mask = trainable_mask({"backbone": variables["params"]}, 8)["backbone"]
    assert {name for name in names if any(jax.tree.leaves(mask[name]))} == {"stage8"}


def test_the_published_number_of_parameters():
    variables, _ = loaded()
    classifier = 1280 * 1000 + 1000
    # 4.65 million: the paper's "4.7M".
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) + classifier == 4_652_008


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

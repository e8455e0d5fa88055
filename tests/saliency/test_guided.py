"""ReLUs with another way back: the rule by hand, and every backbone with every ReLU replaced."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax.models.alexnet_vgg import AlexNet, Vgg16
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.inverted_residual import Design, InvertedResidualNetwork, StageSettings
from tll_jax.models.mobilenet import MobileNetV2
from tll_jax.models.resnet import ResNet
from tll_jax.saliency.guided import deconvnet_relu, guided_relu

INVERTED = Design(
    stages=(
        StageSettings(blocks=1, kernel_size=3, strides=1, expansion=1, channels=8),
        StageSettings(blocks=2, kernel_size=3, strides=2, expansion=2, channels=8),
    ),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    symmetric=True,
    epsilon=1e-5,
)


@pytest.mark.parametrize(
    ("activation", "expected"), [(guided_relu, [0.0, 0.0, 0.0, 0.0, 7.0]), (deconvnet_relu, [5.0, 0.0, 0.0, 6.0, 7.0])]
)
def test_gradients_of_modified_relus_are_worked_by_hand(activation, expected):
    values, back = jax.vjp(activation, jnp.array([-1.0, -2.0, 3.0, 0.0, 4.0]))
    assert values.tolist() == [0.0, 0.0, 3.0, 0.0, 4.0]
    assert back(jnp.array([5.0, -5.0, -6.0, 6.0, 7.0]))[0].tolist() == expected


@pytest.mark.parametrize(
    ("backbone", "num_relus"),
    # A ResNet's block has 2; an inverted one 2, or 1 where nothing is expanded; stem and last convolution 1 each.
    [
        (ResNet(depth=18), 1 + 8 * 2),
        (ResNet(depth=50), 1 + 16 * 3),
        (EfficientNetLite0(), 1 + 1 + 15 * 2 + 1),
        (MobileNetV2(), 1 + 1 + 16 * 2 + 1),
        (AlexNet(), 5),
        (Vgg16(), 13),
    ],
)
def test_every_relu_of_a_backbone_is_replaced(backbone, num_relus):
    replaced = []

    def activation(maps):
        replaced.append(maps.shape)
        return nn.relu(maps)

    module = backbone.build(dtype=jnp.float32, activation=activation)
    jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    assert len(replaced) == num_relus


@pytest.mark.parametrize(
    "make",
    [
        lambda activation: networks.resnet(num_stages=2, activation=activation),
        lambda activation: InvertedResidualNetwork(INVERTED, jnp.float32, activation),
        lambda activation: AlexNet().build(dtype=jnp.float32, activation=activation),
    ],
    ids=["resnet", "inverted residual", "alexnet"],
)
def test_a_backbone_with_guided_relus_has_equal_outputs_and_other_gradients(make):
    images = networks.images(1, 32)
    variables = networks.filled_variables(make(nn.relu), images)

    def explain(activation):
        module = make(activation)
        score = lambda images: jnp.sum(jnp.sin(module.apply(variables, images, train=False).pooled))  # noqa: E731
        return jax.jit(jax.value_and_grad(score))(images)

    (value, gradient), (guided_value, guided_gradient) = explain(nn.relu), explain(guided_relu)
    assert guided_value == pytest.approx(float(value), rel=1e-5)
    scale = np.abs(gradient).max()
    assert scale > 0
    assert np.abs(guided_gradient - gradient).max() > 0.1 * scale

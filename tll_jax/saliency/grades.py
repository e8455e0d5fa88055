"""Measured faithfulness of the saliency methods, and the order in which pages show them."""

from collections.abc import Iterable
from typing import NamedTuple

from tll_jax.saliency.methods import DECOMPOSITION

NOISE = "random"


class Grade(NamedTuple):
    """Faithfulness of a method, measured with the cosine on 100 test pairs of two small networks: docs/faithfulness.md.

    The gain is the area between the curves of similarity while a map's hottest pixels are put in first and while they
    are taken out first. The cascade is the rank correlation with the map of a network made random from the head down.
    """

    gain_emoji: float
    gain_photographs: float
    cascade_emoji: float
    cascade_photographs: float


GRADES = {
    "gradient": Grade(0.042, 0.019, 0.376, 0.264),
    "gradient-x-input": Grade(0.058, 0.106, 0.246, 0.483),
    "smoothgrad-absolute": Grade(0.042, 0.023, 0.478, 0.467),
    "integrated-gradients": Grade(0.261, 0.411, 0.243, 0.282),
    "integrated-gradients-black": Grade(0.050, 0.090, 0.231, 0.480),
    "integrated-gradients-blurred": Grade(0.478, 0.602, 0.703, 0.561),
    "integrated-gradients-noise": Grade(0.133, 0.194, 0.254, 0.234),
    "integrated-gradients-mean": Grade(0.317, 0.400, 0.319, 0.294),
    "expected-gradients": Grade(0.337, 0.387, 0.356, 0.217),
    "guided-backprop": Grade(0.122, 0.123, 0.584, 0.522),
    "deconvnet": Grade(0.119, 0.128, 0.448, 0.381),
    "grad-cam": Grade(0.031, 0.008, 0.237, 0.261),
    "grad-cam++": Grade(0.032, 0.013, 0.393, 0.433),
    "hires-cam": Grade(0.052, 0.014, 0.146, 0.115),
    "layer-cam": Grade(0.047, 0.013, 0.272, 0.217),
    "occlusion": Grade(0.042, 0.144, 0.282, 0.163),
    "sbsm": Grade(0.039, 0.133, 0.390, 0.275),
    "rise": Grade(0.133, 0.071, 0.165, 0.244),
    "decomposition": Grade(0.066, 0.062, 0.072, 0.112),
    NOISE: Grade(-0.003, -0.000, -0.002, -0.001),
}
"""Grades by method. SmoothGrad of signed gradients, SquareGrad, VarGrad and the methods for transformers have none."""

RECOMMENDED = ("integrated-gradients", "integrated-gradients-mean", "expected-gradients", DECOMPOSITION)
"""Methods to believe first: the pixels that make two pictures alike, and the exact contributions of places."""
STUDY_METHOD = "gradient"
"""The saliency of [Munteanu 2022]."""


def ordered(names: Iterable[str]) -> list[str]:
    """Methods in the order of a page: the recommended ones, then that of [Munteanu 2022], then the others as given."""
    first = (*RECOMMENDED, STUDY_METHOD)
    return sorted(names, key=lambda name: first.index(name) if name in first else len(first))

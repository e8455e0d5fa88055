"""What PyTorch computed with given numbers, stored by `make_references.py`, so that tests need no PyTorch."""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "reference"
NUM_VALUES = 8


def images(height, width):
    """Two random pictures `[2, height, width, 3]` in [0, 1]."""
    return np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)


def draw_state(shapes):
    """A state dict of random numbers that keep maps finite; variances and scales positive."""
    rng, state = np.random.default_rng(1), {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if len(shape) == 1:
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            state[name] = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return state


def summary(values):
    """Shape, mean, standard deviation and a few values, evenly spread, of an array, and as "wave" its scaled inner
    product with a cosine, which depends on where every number stands; sums in fp64."""
    values = np.asarray(values)
    places = np.linspace(0, values.size - 1, NUM_VALUES).astype(int)
    return {
        "shape": list(values.shape),
        "mean": float(values.mean(dtype=np.float64)),
        "std": float(values.std(dtype=np.float64)),
        "wave": float(np.cos(np.arange(values.size)) @ values.ravel() / np.sqrt(values.size)),
        "values": [float(f"{value:.7g}") for value in values.ravel()[places]],
    }


def load(name):
    """A stored reference: "shapes" by tensor name where the state was drawn, and "summaries"."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def assert_as_stored(arrays, summaries, *, tolerance):
    """Every array has its stored summary, within `tolerance` times its root mean square."""
    for array, stored in zip(arrays, summaries, strict=True):
        found = summary(array)
        assert found["shape"] == stored["shape"]
        scale = (stored["mean"] ** 2 + stored["std"] ** 2) ** 0.5
        for key in ("mean", "std", "wave", "values"):
            np.testing.assert_allclose(found[key], stored[key], rtol=0, atol=tolerance * scale, err_msg=key)

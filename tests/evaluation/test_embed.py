"""Embeddings batch by batch, and negative squared distances, by which systems score."""

import jax
import numpy as np
import pytest

from tll_jax.data.geometry import Resize
from tll_jax.devices import make_mesh
from tll_jax.evaluation.embed import Embedder, negative_squared_distance


def test_variables_are_copied_to_the_devices_once_for_all_batches(monkeypatch):
    def embed(variables, images):
        return images.mean((1, 2)) * variables["scale"]

    mesh = make_mesh(jax.devices()[:1])
    embedder = Embedder(embed=embed, geometry=Resize(size=4), batch_size=2, mesh=mesh)
    given, compiled = [], embedder._compiled

    def recorded(variables, images):
        given.append(variables["scale"])
        return compiled(variables, images)

    monkeypatch.setattr(embedder, "_compiled", recorded)
    images = [np.full((4, 4, 3), value, np.uint8) for value in (0, 51, 102, 153, 204)]
    found = embedder({"scale": np.float32(2)}, images)
    np.testing.assert_allclose(found, np.repeat([[0], [0.4], [0.8], [1.2], [1.6]], 3, axis=1), rtol=1e-6)
    assert len(given) == 3
    assert isinstance(given[0], jax.Array)
    assert given[0] is given[1] is given[2]


@pytest.mark.parametrize("offset", [0, 3000])
def test_negative_squared_distance_is_minus_the_squared_distance_however_far_from_the_origin(offset):
    rng = np.random.default_rng(0)
    queries, candidates = (rng.normal(size=(n, 8)).astype(np.float32) + np.float32(offset) for n in (40, 50))
    expected = -((queries[:, None].astype(np.float64) - candidates[None]) ** 2).sum(-1)
    queries[3] = np.nan
    found = negative_squared_distance(queries, candidates)
    assert found.dtype == np.float32
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(np.delete(found, 3, axis=0), np.delete(expected, 3, axis=0), rtol=1e-4, atol=1e-4)

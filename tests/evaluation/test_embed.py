"""Negative squared distances, by which systems score."""

import numpy as np
import pytest

from tll_jax.evaluation.embed import negative_squared_distance


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

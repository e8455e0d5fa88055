"""Several devices and two hosts: every image is embedded once, and training rows equal those of a single host."""

import jax
import numpy as np
import pytest

from tests.data import one_of_two_hosts
from tests.pairs_of_processes import run_pair
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import Resize
from tll_jax.devices import make_mesh
from tll_jax.evaluation.embed import Embedder


@pytest.fixture(scope="module")
def images():
    pairs = EmojiPairs().open()
    return pairs.images(range(one_of_two_hosts.NUM_IMAGES)).left


def slow_embeddings(images):
    weights = np.arange(1, 17)[:, None, None]
    return np.stack([2 * (Resize(size=16)(None, image) / 255 * weights).sum((0, 1)) for image in images])


@pytest.mark.parametrize("num_devices", [1, 4, 8])
def test_every_image_is_embedded_once_on_any_number_of_devices(images, num_devices):
    mesh = make_mesh(jax.devices()[:num_devices])
    embedder = Embedder(embed=one_of_two_hosts.color_sums, geometry=Resize(size=16), batch_size=4, mesh=mesh)
    np.testing.assert_allclose(embedder(np.float32(2), images), slow_embeddings(images), rtol=1e-5)


def test_two_hosts_share_every_batch_and_embed_every_image_once(images, tmp_path):
    outputs = run_pair(one_of_two_hosts, tmp_path, devices=2)
    one_of_two_hosts.read(str(tmp_path / "alone.npz"))
    first, second, alone = (np.load(path) for path in (*outputs, tmp_path / "alone.npz"))
    assert first["devices"] == second["devices"] == 4
    assert np.array_equal(np.concatenate([first["rows"], second["rows"]], axis=1), alone["rows"])
    for host in (first, second):
        np.testing.assert_allclose(host["embeddings"], slow_embeddings(images), rtol=1e-5)

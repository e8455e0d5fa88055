"""Program of one of two hosts, run twice at once by tests/data/test_hosts.py: reads and embeds its share."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from tll_jax import processes
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.pipeline import pair_dataset, training_batches
from tll_jax.devices import make_mesh
from tll_jax.evaluation.embed import Embedder

NUM_IMAGES = 13
NUM_STEPS = 3


def color_sums(variables: float, images: jax.Array) -> jax.Array:
    """Embedding that distinguishes the pictures by their colors."""
    return variables * jnp.sum(images * jnp.arange(1, 17)[:, None, None], axis=(1, 2))


def read(output: str) -> None:
    """Writes this host's training rows and all embeddings to `output`."""
    pairs = EmojiPairs().open()
    dataset = pair_dataset(pairs, np.arange(40), RandomResizedCrop(size=16), seed=1)
    batches = training_batches(dataset, batch_size=8, start_step=2)
    rows = np.stack([next(batches).left for _ in range(NUM_STEPS)])
    embedder = Embedder(embed=color_sums, geometry=Resize(size=16), batch_size=4, mesh=make_mesh())
    embeddings = embedder(np.float32(2), pairs.images(range(NUM_IMAGES)).left)
    np.savez(output, rows=rows, embeddings=embeddings, devices=len(jax.devices()))


if __name__ == "__main__":
    address, host, output = sys.argv[1:]
    processes.start(coordinator=address, num_processes=2, process_id=int(host))
    read(output)

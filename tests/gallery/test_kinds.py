import cv2
import imagehash
import numpy as np
import PIL.Image

from tll_jax.gallery import kinds
from tll_jax.gallery.neighbors import Neighbors
from tll_jax.gallery.pictures import perceptual_hashes


def lists(indices):
    indices = np.array(indices, np.int32)
    cosines = np.where(indices >= 0, 0.5, -np.inf).astype(np.float32)
    return Neighbors(indices=indices, cosines=cosines, bound=np.zeros(len(indices), np.float32))


def test_near_duplicates_need_both_hashes_close_and_a_neighbor_list():
    ten, fourteen = (1 << 10) - 1, (1 << 14) - 1
    hashes = np.array([[0, 0], [ten, fourteen], [2 * ten + 1, 0], [0, 2 * fourteen + 1], [0, 0]], np.uint64)
    found = kinds.near_duplicates(lists([[1, 2, 3], [0, -1, -1], [0, -1, -1], [0, -1, -1], [2, 3, -1]]), hashes)
    # 2 has 11 other bits of pHash than 0, and 3 has 15 of dHash; 4 equals 0 and is in no list with it.
    assert found.tolist() == [[0, 1]]


def test_stars_never_chain():
    # A chain 0-1-2-3-4: 1 and 3 have as many links; 1 comes first.
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert kinds.stars(edges, range(5)) == {1: [0, 2], 3: [4]}
    assert kinds.stars(edges, [9, 8, 0, 1, 9]) == {2: [1, 3]}
    assert kinds.stars(np.zeros((0, 2), int), []) == {}


def test_perceptual_hashes_are_within_a_few_bits_of_imagehash():
    generator = np.random.default_rng(0)
    for seed in range(12):
        small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
        image = cv2.resize(small, (300, 200), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image.astype(int) + generator.integers(-4, 5, image.shape), 0, 255).astype(np.uint8)
        picture = PIL.Image.fromarray(image)
        phash, dhash = perceptual_hashes(image)
        assert (phash ^ int(str(imagehash.phash(picture)), 16)).bit_count() <= 4
        assert (dhash ^ int(str(imagehash.dhash(picture)), 16)).bit_count() <= 4

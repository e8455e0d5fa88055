"""Galleries split over devices and processes: the slow loop's ranks and neighbors, and how little is sent."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import one_of_two_galleries
from tests.pairs_of_processes import run_pair
from tll_jax.devices import batch_sharded, make_mesh, replicated
from tll_jax.ranking import (
    blocked,
    inner_product,
    negative_squared_distance,
    shard_gallery,
    sharded,
    sharded_ranks,
    sharded_top_k,
)

NAN = np.nan


@pytest.fixture(params=[2, 8])
def mesh(request):
    return make_mesh(jax.devices()[: request.param])


def slow(queries, candidates, matches, k, score):
    """Ranks and columns in Python's own numbers, one candidate at a time."""
    found_ranks, found_top = [], []
    for query, match in zip(queries.tolist(), matches.tolist(), strict=True):
        row = []
        for candidate in candidates.tolist():
            value = sum(a * b for a, b in zip(query, candidate, strict=True))
            row.append(value - sum(b * b for b in candidate) / 2 if score is negative_squared_distance else value)
        found_ranks.append(sum(1 for value in row if not value < row[match]))
        numbers = [column for column, value in enumerate(row) if value == value]
        broken = [column for column, value in enumerate(row) if value != value]
        found_top.append((sorted(numbers, key=lambda column: -row[column]) + broken)[:k])
    return found_ranks, found_top


# Around a part's block and two of them, not divisible by the devices, fewer than devices, fewer than k.
@pytest.mark.parametrize(
    ("num_queries", "num_candidates", "k"),
    [(1, 1, 1), (5, 3, 2), (9, 40, 50), (3, 128, 7), (6, 129, 20), (9, 301, 1), (2, 301, 40)],
)
@pytest.mark.parametrize("score", [inner_product, negative_squared_distance])
def test_sharded_ranks_and_neighbors_are_those_of_the_slow_loop(
    num_queries, num_candidates, k, score, mesh, small_blocks
):
    rng = np.random.default_rng(num_candidates)
    for broken_fraction in (0, 0.3, 1):
        # Few values, so that ties are many, also across the borders of devices.
        queries = rng.integers(-2, 3, (num_queries, 3)).astype(np.float32)
        candidates = rng.integers(-2, 3, (num_candidates, 3)).astype(np.float32)
        candidates[rng.random(num_candidates) < broken_fraction, 1] = NAN
        matches = rng.integers(0, num_candidates, num_queries)
        expected_ranks, expected_top = slow(queries, candidates, matches, k, score)
        gallery = shard_gallery(candidates, mesh=mesh)
        assert sharded_ranks(queries, gallery, matches, mesh=mesh, score=score).tolist() == expected_ranks
        assert sharded_top_k(queries, gallery, k, mesh=mesh, score=score).tolist() == expected_top


@pytest.mark.parametrize("num_candidates", [5, 9001])
@pytest.mark.parametrize("score", [inner_product, negative_squared_distance])
def test_duplicates_of_the_positive_tie_with_it_on_every_device(num_candidates, score, mesh):
    rng = np.random.default_rng(0)
    candidates = np.repeat(rng.normal(size=(1, 129)).astype(np.float32), num_candidates, axis=0)
    queries = rng.normal(size=(21, 129)).astype(np.float32)
    gallery = shard_gallery(candidates, mesh=mesh)
    matches = rng.integers(0, num_candidates, 21)
    assert set(sharded_ranks(queries, gallery, matches, mesh=mesh, score=score).tolist()) == {num_candidates}
    assert (sharded_top_k(queries, gallery, 5, mesh=mesh, score=score) == np.arange(5)).all()


def test_a_gallery_on_one_device_is_ranked_as_one_on_several(small_blocks):
    rng = np.random.default_rng(0)
    queries, candidates = (rng.integers(-2, 3, (size, 3)).astype(np.float32) for size in (6, 129))
    matches, mesh = rng.integers(0, 129, 6), make_mesh(jax.devices()[:1])
    expected_ranks, expected_top = slow(queries, candidates, matches, 20, inner_product)
    gallery = shard_gallery(candidates, mesh=mesh)
    assert sharded_ranks(queries, gallery, matches, mesh=mesh, score=inner_product).tolist() == expected_ranks
    assert sharded_top_k(queries, gallery, 20, mesh=mesh, score=inner_product).tolist() == expected_top


def test_duplicates_on_two_devices_are_ranked_in_column_order():
    mesh = make_mesh()
    candidates = np.zeros((16, 2), np.float32)
    candidates[[1, 2, 15]] = [1, 0]  # Two columns a device: the last of the first, the first of the second, the last.
    gallery, query = shard_gallery(candidates, mesh=mesh), np.array([[1, 0]], np.float32)
    assert sharded_top_k(query, gallery, 4, mesh=mesh).tolist() == [[1, 2, 15, 0]]
    assert sharded_ranks(query, gallery, np.array([2]), mesh=mesh).tolist() == [3]
    assert sharded_ranks(query, gallery, np.array([0]), mesh=mesh).tolist() == [16]


def collectives(program):
    """(operation, number of values) of everything that devices tell each other, from the compiled program."""
    found = []
    for line in program.as_text().splitlines():
        match = re.search(r"= (.*?) (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)", line)
        if match:
            shapes = re.findall(r"\[([\d,]*)\]", match[1])
            found.append((match[2], sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)))
    return found


def test_only_the_best_scores_and_columns_of_a_query_are_gathered_and_counts_summed():
    mesh, num_queries, num_candidates, dim, k = make_mesh(), 100, 800_000, 4, 25
    gallery = jax.device_put(jnp.zeros((num_candidates, dim)), batch_sharded(mesh))
    queries, matches = jax.device_put(
        (jnp.zeros((num_queries, dim)), jnp.zeros(num_queries, jnp.int32)), replicated(mesh)
    )
    sent, options = {}, (("score", negative_squared_distance), ("num_candidates", num_candidates))
    for measure, rows, more in (
        (sharded._ranks_of_parts, [queries, matches], ()),
        (sharded._top_k_of_parts, [queries], (("k", k),)),
    ):
        layout = {"candidates_at": batch_sharded(mesh), "rows_at": replicated(mesh)}
        program = blocked._on_devices.lower(
            gallery, rows, measure=measure, options=(*options, *more), **layout
        ).compile()
        sent[measure] = collectives(program)
        # A hundred thousand candidates are on each device; the bytes are those of all eight, which share a process.
        assert program.memory_analysis().temp_size_in_bytes < num_queries * num_candidates * 4 / 2
    # The origin that all center on comes first.
    assert sent[sharded._ranks_of_parts] == [("all-reduce", dim)] + [("all-reduce", num_queries)] * 2
    origin, *gathered = sent[sharded._top_k_of_parts]
    assert origin == ("all-reduce", dim)
    assert {operation for operation, _ in gathered} == {"all-gather"}
    assert sum(size for _, size in gathered) == 2 * num_queries * k * mesh.size


@pytest.mark.parametrize(("shape", "named"), [((0, 4), "holds 0 vectors"), ((2**31, 4), "holds 2,147,483,648 vectors")])
def test_a_gallery_that_cannot_be_counted_is_refused(shape, named):
    class Rows:
        def __getitem__(self, rows):
            raise AssertionError("nothing is read")

    Rows.shape = shape
    with pytest.raises(ValueError, match=named):
        shard_gallery(Rows(), mesh=make_mesh())


def test_two_processes_with_half_the_gallery_each_find_the_neighbors_of_one(tmp_path):
    outputs = run_pair(one_of_two_galleries, tmp_path, devices=2)
    first, second = (np.load(output) for output in outputs)
    assert first["devices"] == second["devices"] == 4
    # Twelve rows a device, the last of which is padding.
    assert first["read"].tolist() == list(range(24))
    assert second["read"].tolist() == list(range(24, 45))
    expected_ranks, expected_top = slow(
        *one_of_two_galleries.vectors(), one_of_two_galleries.TOP, negative_squared_distance
    )
    for found in (first, second):
        assert found["ranks"].tolist() == expected_ranks
        assert found["top"].tolist() == expected_top

"""Faithfulness of every saliency method, on test pairs of a trained model.

python benchmarks/saliency_faithfulness.py STUDY/models/NAME/seed-K --out benchmarks/results/saliency_grades_emoji.json

What is explained is the cosine of a pair. The first `--pairs` test pairs in a seeded random order are measured, both
sides of each, and the mean over the two is the pair's value; unexplained variance, sensitivity, the cascade and the
agreement stand on the first `--subset` of them. Methods that the log holds already are not measured again: delete it
when a method has changed. Maps of the subset stay in the cache folder, for the agreement with methods measured later.
Seconds are with compiling, for the first method that of the measures too.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tll_jax import serialize
from tll_jax.cache import cache_folder
from tll_jax.devices import hardware, keep_compiled_programs
from tll_jax.evaluation.metrics import estimate
from tll_jax.files import write_whole
from tll_jax.models.network import Network
from tll_jax.program import start_with_huge_pages
from tll_jax.saliency import curves, faithfulness
from tll_jax.saliency.baselines import Baseline, constant
from tll_jax.saliency.decomposition import is_linear
from tll_jax.saliency.integrated_gradients import completeness_error
from tll_jax.saliency.methods import Method, baselines, make_methods
from tll_jax.saliency.networks import NetworkEmbedding, stage_name
from tll_jax.saliency.side_by_side import decompose_pair
from tll_jax.saliency.targets import EmbeddedScore, cosine
from tll_jax.study.explain import applicability, spatial_stage
from tll_jax.study.folder import StudyFolder
from tll_jax.study.load import load_run
from tll_jax.study.networks import explainable
from tll_jax.study.settings import Model

BLOCK = 8
"""How many images pass a method together."""
NUM_REFERENCES = 64
"""Images, of pairs that are not graded where there are enough, for Expected Gradients and the mean baseline."""
CONTROL, DECOMPOSITION = "random", "decomposition"
Explain = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(variables, image, the other image of its pair) -> heat map of the image."""
COLUMNS = {
    "similarity_gain": "insertion − deletion, similarity",
    "similarity_insertion": "insertion ↑",
    "similarity_deletion": "deletion ↓",
    "reciprocal_rank_gain": "insertion − deletion, 1 / rank",
    "unexplained_variance": "unexplained variance ↓",
    "max_sensitivity": "sensitivity ↓",
    "completeness_error": "completeness error ↓",
    "cascade_mean": "cascade, mean → 0",
    "cascade_last": "cascade, last → 0",
    "sparseness": "sparseness",
    "agreement": "agreement",
}


@dataclass(kw_only=True)
class Bench:
    """A trained model with the pairs that methods are graded on, and the graders, compiled once for all methods.

    Images are `[2 sides, pairs, h, w, 3]`: the other image of `[side, pair]` is `[1 - side, pair]`.
    """

    model: Model
    variables: Any
    images: jax.Array
    """Order of all test pairs, the graded ones first."""
    num_pairs: int
    num_subset: int
    steps: int
    noise_samples: int
    squares: int
    seed: int
    references: jax.Array = field(init=False)
    baselines: dict[str, Baseline] = field(init=False)

    def __post_init__(self) -> None:
        self.references = jnp.concatenate(list(self.images[:, -(NUM_REFERENCES // 2) :]))
        # The same that `make_methods` takes with the same seed.
        self.baselines = baselines(size=self.size, key=self.key, references=self.references)

    @property
    def size(self) -> int:
        return self.images.shape[2]

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.seed)

    @property
    def stage(self) -> int:
        """Stage whose maps the CAM family shows."""
        return spatial_stage(self.model, self.variables, size=self.size)

    def network(self, activation: Callable[[jax.Array], jax.Array] = nn.relu) -> Network:
        return explainable(self.model, activation=activation)

    def score(self, variables: Any, other: jax.Array, activation: Any = nn.relu) -> EmbeddedScore:
        """The cosine to the other image, as a score of the image."""
        embed = NetworkEmbedding(network=self.network(activation), variables=variables)
        embedding = embed(other)
        return EmbeddedScore(embed, lambda z: cosine(z, embedding))

    @cached_property
    def candidates(self) -> jax.Array:
        """The embeddings of all test images, `[2 sides, all test pairs, dim]`."""

        def embed(variables: Any, image: jax.Array) -> jax.Array:
            return NetworkEmbedding(network=self.network(), variables=variables)(image)

        compiled = jax.jit(jax.vmap(embed, (None, 0)))
        found = in_blocks(compiled, self.variables, flat(self.images), block=64)
        return jnp.asarray(found).reshape(2, -1, found.shape[-1])

    @cached_property
    def curve_areas(self) -> Any:
        """(variables, candidates, image, heat map, other side, match) -> every curve, `[sides, steps + 1]`."""

        def once(variables: Any, candidates: jax.Array, image: Any, heatmap: Any, other: Any, match: Any) -> Any:
            embed = NetworkEmbedding(network=self.network(), variables=variables)
            gallery = candidates[other]
            found = {}
            for name, curve in (("deletion", curves.deletion_curve), ("insertion", curves.insertion_curve)):
                along = curve(embed, image, heatmap, baseline=self.baselines["blurred"], steps=self.steps)
                found[f"similarity_{name}"] = curves.similarities(along, gallery[match])
                found[f"reciprocal_rank_{name}"] = curves.reciprocal_ranks(along, gallery, match)
            return found

        return jax.jit(over_sides(once, num_shared=2))

    @cached_property
    def unexplained_variance(self) -> Any:
        """(variables, image, other image, heat map) -> unexplained variance, `[sides]`."""

        def once(variables: Any, image: Any, other: Any, heatmap: Any) -> jax.Array:
            return faithfulness.unexplained_variance(
                self.key,
                self.score(variables, other),
                image,
                heatmap,
                baseline=self.baselines["blurred"],
                samples=self.squares,
            )

        return jax.jit(over_sides(once))

    @cached_property
    def completeness(self) -> Any:
        """(variables, image, other image, heat map, baseline picture) -> completeness error, `[sides]`."""

        def once(variables: Any, image: Any, other: Any, heatmap: Any, picture: Any) -> jax.Array:
            return completeness_error(self.score(variables, other), image, heatmap, baseline=constant(picture))

        return jax.jit(over_sides(once))


def over_sides(function: Callable[..., Any], *, num_shared: int = 1) -> Callable[..., Any]:
    """`function` of some arguments that all images share and of some that each has its own of, image after image."""

    def mapped(*arguments: Any) -> Any:
        shared, own = arguments[:num_shared], arguments[num_shared:]
        return jax.lax.map(lambda one: function(*shared, *one), own)

    return mapped


def in_blocks(compiled: Any, variables: Any, *arrays: Any, block: int = BLOCK) -> np.ndarray:
    """A compiled function of `block` rows, called until all have been through; the last call is filled up."""
    count = len(arrays[0])
    rows = np.arange(-(-count // block) * block) % count
    parts = [
        np.asarray(compiled(variables, *(array[rows[start : start + block]] for array in arrays)))
        for start in range(0, len(rows), block)
    ]
    return np.concatenate(parts)[:count]


def explainers(bench: Bench) -> dict[str, tuple[Explain, str]]:
    """All methods with the meaning of their maps: named ones, the decomposition of a linear head, and the control."""

    def from_method(method: Method) -> Explain:
        def explain(variables: Any, image: jax.Array, other: jax.Array) -> jax.Array:
            return method.saliency(bench.score(variables, other, method.activation), image)

        return explain

    def decomposition(variables: Any, image: jax.Array, other: jax.Array) -> jax.Array:
        heatmap, _ = decompose_pair(bench.model.head, bench.network(), variables, image, other).heatmaps()
        return jax.image.resize(heatmap, image.shape[:2], "linear")

    def control(variables: Any, image: jax.Array, other: jax.Array) -> jax.Array:
        return faithfulness.noise_map(bench.key, bench.score(variables, other), image)

    methods = make_methods(
        size=bench.size, stage=bench.stage, references=bench.references, seed=bench.seed, **applicability(bench.model)
    )
    found = {name: (from_method(method), method.description) for name, method in methods.items()}
    if is_linear(bench.model.head, bench.model.backbone):
        found[DECOMPOSITION] = decomposition, "what each place of the last maps adds to the similarity, exactly"
    return found | {CONTROL: (control, "noise, for comparison")}


def measure(
    name: str, explain: Explain, bench: Bench, *, repeated: bool
) -> tuple[dict[str, np.ndarray], Any, np.ndarray]:
    """A method's measures, each `[2, pairs]` or `[2, subset]`; its mean curves; and its maps of the subset.

    `repeated` methods are asked again for noisy images and random networks.
    """
    compiled = jax.jit(jax.vmap(explain, (None, 0, 0)))
    ask = partial(in_blocks, compiled)
    images, others = bench.images[:, : bench.num_pairs], bench.images[::-1, : bench.num_pairs]
    flat_images, flat_others = flat(images), flat(others)
    maps = ask(bench.variables, flat_images, flat_others).reshape(2, bench.num_pairs, *images.shape[2:4])
    if not np.isfinite(maps).all():
        raise ValueError(f"{name} gave a map with values that are no numbers: is the network's output finite?")
    found, mean_curves = curve_measures(bench, flat_images, maps)
    found["sparseness"] = np.asarray(jax.jit(jax.vmap(faithfulness.sparseness))(flat(maps))).reshape(2, -1)
    if (errors := completeness(name, bench, flat_images, flat_others, flat(maps))) is not None:
        found["completeness_error"] = errors.reshape(2, -1)
    few, few_others = flat(images[:, : bench.num_subset]), flat(others[:, : bench.num_subset])
    few_maps = flat(maps[:, : bench.num_subset])
    found["unexplained_variance"] = np.asarray(
        bench.unexplained_variance(bench.variables, few, few_others, few_maps)
    ).reshape(2, -1)
    if repeated:
        found["max_sensitivity"] = sensitivity(ask, bench, few, few_others, few_maps).reshape(2, -1)
        along = cascade(ask, bench, few, few_others, few_maps)
        mean_curves["cascade"] = along.mean(axis=1).tolist()
        found |= {"cascade_mean": along.mean(axis=0).reshape(2, -1), "cascade_last": along[-1].reshape(2, -1)}
    return found, mean_curves, few_maps


def flat(arrays: Any) -> Any:
    """`[2, pairs, ...]` as `[2 * pairs, ...]`."""
    return arrays.reshape(-1, *arrays.shape[2:])


def curve_measures(bench: Bench, images: jax.Array, maps: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Areas `[2, pairs]` and mean curves of deletion and insertion."""
    matches = jnp.tile(jnp.arange(bench.num_pairs), 2)
    other = jnp.repeat(jnp.array([1, 0]), bench.num_pairs)
    found = bench.curve_areas(bench.variables, bench.candidates, images, flat(maps), other, matches)
    areas = {name: np.asarray(jax.vmap(curves.area)(values)).reshape(2, -1) for name, values in found.items()}
    for what in ("similarity", "reciprocal_rank"):
        areas[f"{what}_gain"] = areas[f"{what}_insertion"] - areas[f"{what}_deletion"]
    return areas, {name: np.mean(values, axis=0).tolist() for name, values in found.items()}


def completeness(name: str, bench: Bench, images: Any, others: Any, maps: Any) -> np.ndarray | None:
    """By how much maps miss what they claim to sum to, as a share of it; None for methods that claim no sum."""
    if name == DECOMPOSITION:
        # Its maps are enlarged for all else; the claim is that all pairs of places sum to the cosine.
        def once(variables: Any, image: jax.Array, other: jax.Array) -> jax.Array:
            total = decompose_pair(bench.model.head, bench.network(), variables, image, other).total()
            similarity = bench.score(variables, other)(image)
            return jnp.abs(total - similarity) / jnp.maximum(jnp.abs(similarity), 1e-12)

        return np.asarray(jax.jit(over_sides(once))(bench.variables, images, others))
    if not name.startswith("integrated-gradients"):
        return None
    baseline = bench.baselines[name.removeprefix("integrated-gradients").removeprefix("-") or "gray"]
    return np.asarray(bench.completeness(bench.variables, images, others, maps, jax.vmap(baseline)(images)))


def sensitivity(ask: Callable[..., np.ndarray], bench: Bench, images: Any, others: Any, maps: Any) -> np.ndarray:
    """Max-sensitivity of every image: the method is asked by its one compiled program."""
    keys = jax.random.split(bench.key, len(images))
    copies = jax.vmap(partial(faithfulness.noisy_copies, samples=bench.noise_samples))(keys, images)
    changed = np.stack([ask(bench.variables, copies[:, i], others) for i in range(bench.noise_samples)], axis=1)
    return np.asarray(jax.vmap(faithfulness.largest_change)(jnp.asarray(maps), jnp.asarray(changed)))


def cascade(ask: Callable[..., np.ndarray], bench: Bench, images: Any, others: Any, maps: Any) -> np.ndarray:
    """The agreement with the maps of ever more random networks, `[parts, images]`, from the head alone to all."""
    names = faithfulness.top_down(bench.variables)
    agree = jax.jit(jax.vmap(faithfulness.agreement))
    along = []
    for count in range(1, len(names) + 1):
        random = faithfulness.randomized(bench.key, bench.variables, names[:count])
        along.append(np.asarray(agree(maps, ask(random, images, others))))
    return np.stack(along)


def agreements(maps: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The agreement of every two methods, `[pairs]` each."""
    agree = jax.jit(jax.vmap(faithfulness.agreement))
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in maps}
    names = list(maps)
    for number, a in enumerate(names):
        for b in names[number + 1 :]:
            found[a][b] = found[b][a] = np.asarray(agree(maps[a], maps[b])).reshape(2, -1).mean(axis=0)
    return found


def add_agreements(rows: list[dict[str, Any]], maps: Mapping[str, np.ndarray]) -> None:
    """Each method's mean agreement with all others but the control, and that with each of them."""
    found = agreements(maps)
    for row in rows:
        others = {name: values for name, values in found.get(row["method"], {}).items() if name != CONTROL}
        if others:
            row["grades"]["agreement"] = summary(np.mean(list(others.values()), axis=0))
            row["agreement_with"] = {name: round(float(values.mean()), 4) for name, values in others.items()}


def summary(values_per_pair: np.ndarray) -> dict[str, Any]:
    """Mean, 95 % interval, and on how many pairs they stand."""
    return estimate(values_per_pair.astype(np.float64)) | {"pairs": len(values_per_pair)}


def open_bench(run: Path, arguments: argparse.Namespace) -> Bench:
    """The model and the test pairs of its study, in a seeded random order."""
    model, evaluate, trained = load_run(run)
    study = StudyFolder(run.resolve().parents[2])
    rng = np.random.default_rng(arguments.seed)
    ids = rng.permutation(study.ids)
    sides = [[evaluate.geometry(rng, study.image(one, side)) for one in ids] for side in ("left", "right")]
    num_pairs = min(arguments.pairs, len(ids))
    return Bench(
        model=model,
        variables=jax.device_put(trained.variables),
        images=jnp.asarray(np.array(sides), jnp.float32) / 255,
        num_pairs=num_pairs,
        num_subset=min(arguments.subset, num_pairs),
        steps=arguments.steps,
        noise_samples=arguments.noise_samples,
        squares=arguments.squares,
        seed=arguments.seed,
    )


def line(row: Mapping[str, Any]) -> str:
    cells = [f"{row['method']}"]
    for name in COLUMNS:
        one = row["grades"].get(name)
        interval = f" [{one['low']:.3f}, {one['high']:.3f}]" if one and name == "similarity_gain" else ""
        cells.append(f"{one['value']:.3f}{interval}" if one else "")
    return f"| {' | '.join(cells)} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, STUDY/models/NAME/seed-K")
    parser.add_argument("--pairs", type=int, default=100, help="how many test pairs")
    parser.add_argument("--subset", type=int, default=100, help="how many of them for the measures that are slow")
    parser.add_argument("--methods", default="", help="only these, separated by commas; all by default")
    parser.add_argument("--once", default="", help="methods too slow to be asked again by sensitivity and cascade")
    parser.add_argument("--steps", type=int, default=curves.STEPS, help="shares in which the pixels of a curve go")
    parser.add_argument("--noise-samples", type=int, default=5, help="noisy copies of an image, for the sensitivity")
    parser.add_argument("--squares", type=int, default=96, help="removed squares, for the unexplained variance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("saliency_grades.json"), help="the log: read, and added to")
    return parser.parse_args()


def settings_of(bench: Bench, run: Path) -> dict[str, Any]:
    """Settings that must be equal for measures in one table."""
    return {
        "run": "/".join(run.resolve().parts[-4:]),
        "model": serialize.fingerprint(bench.model),
        "target": "cosine",
        "size": bench.size,
        "layer": stage_name(bench.stage),
        "candidates": bench.images.shape[1],
        "pairs": bench.num_pairs,
        "subset": bench.num_subset,
        "steps": bench.steps,
        "noise_radius": faithfulness.RADIUS,
        "noise_samples": bench.noise_samples,
        "squares": bench.squares,
        "cascade": faithfulness.top_down(bench.variables),
        "seed": bench.seed,
    }


class Log:
    """The rows that were measured with these settings, on disk after each, and their maps in the cache folder.

    Raises:
      ValueError: the file holds measures of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        saved = json.loads(path.read_text()) if path.exists() else {}
        if saved and saved["settings"] != settings:
            differing = sorted(name for name in settings if saved["settings"].get(name) != settings[name])
            raise ValueError(f"{path} holds measures of other {', '.join(differing)}: give another --out, or delete it")
        self.rows: list[dict[str, Any]] = saved.get("rows", [])
        for row in self.rows:
            if "infidelity" in row["grades"]:
                # As 0.1.0 calls it.
                row["grades"]["unexplained_variance"] = row["grades"].pop("infidelity")
        self.maps_folder = cache_folder() / "saliency_grades" / serialize.fingerprint(settings)

    def has(self, name: str, *, repeated: bool) -> bool:
        is_measured = any(row["method"] == name and row["repeated"] == repeated for row in self.rows)
        return is_measured and self._maps_path(name).exists()

    def add(self, row: dict[str, Any], maps: np.ndarray) -> None:
        write_whole(self._maps_path(row["method"]), maps)
        self.rows = [*(one for one in self.rows if one["method"] != row["method"]), row]
        self.write()

    def maps(self) -> dict[str, np.ndarray]:
        paths = {row["method"]: self._maps_path(row["method"]) for row in self.rows}
        return {name: np.load(path) for name, path in paths.items() if path.exists()}

    def write(self) -> None:
        content = {"hardware": hardware(), "settings": self.settings, "rows": self.rows}
        write_whole(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _maps_path(self, name: str) -> Path:
        return self.maps_folder / f"{name}.npy"


def main() -> None:
    """Measures everything that the log does not hold, and prints the table."""
    arguments = parse()
    keep_compiled_programs()
    start_with_huge_pages()
    bench = open_bench(arguments.run, arguments)
    known = explainers(bench)
    chosen = arguments.methods.split(",") if arguments.methods else list(known)
    once = set(filter(None, arguments.once.split(",")))
    if unknown := {*chosen, *once} - set(known):
        raise SystemExit(f"there are no methods {sorted(unknown)}; there are {', '.join(known)}")
    log = Log(arguments.out, settings_of(bench, arguments.run))
    for name in chosen:
        repeated = name not in once
        if log.has(name, repeated=repeated):
            continue
        started = time.perf_counter()
        explain, description = known[name]
        found, mean_curves, maps = measure(name, explain, bench, repeated=repeated)
        seconds = round(time.perf_counter() - started, 1)
        row = {"method": name, "words": description, "repeated": repeated, "seconds": seconds}
        row["grades"] = {one: summary(values.mean(axis=0)) for one, values in found.items()}
        log.add(row | {"curves": mean_curves}, maps)
        print(f"{row['seconds']:6.1f} s {line(row)}", flush=True)
    add_agreements(log.rows, log.maps())
    log.write()
    print(f"| method | {' | '.join(COLUMNS.values())} |\n|" + " --- |" * (len(COLUMNS) + 1))
    for row in sorted(log.rows, key=lambda row: -row["grades"]["similarity_gain"]["value"]):
        print(line(row))


if __name__ == "__main__":
    main()

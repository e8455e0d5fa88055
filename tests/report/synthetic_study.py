"""Makes a small finished study folder from real emoji pairs, ranked by plain pixels at several resolutions."""

import csv
import io
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np

import tll_jax
from tll_jax.evaluation.metrics import significance
from tll_jax.files import file_name

EMOJI_ZIP = Path(tll_jax.__file__).parent / "data" / "emoji_pairs" / "emoji-pairs.zip"
FACES = ("Smileys & Emotion", "People & Body")
HOSTILE = '../<b>&"|$\\frac{\n\udce9'
"""Prefix of every test pair's id: markup, a path out of the folder, an undecodable byte."""
SYSTEMS = {
    "pixels": 3,
    "histogram": 2,
    "hog": 12,
    "barlow-frozen": 5,
    "classification-frozen": 4,
    "random-frozen": 3,
}
MODELS = {"barlow": 16, "classification": 10, "random": 6}


def read_pairs(*, num_pairs: int, num_excluded: int, path: Path = EMOJI_ZIP):
    """(test pairs, excluded pairs): lists of (id, left, right) with RGB images."""
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("pairs.csv"), "utf-8")))
        faces = [row["id"] for row in rows if row["category"] in FACES]
        others = [row["id"] for row in rows if row["category"] not in FACES]
        chosen = others[:: len(others) // num_pairs][:num_pairs]

        def load(id):
            sides = []
            for side in ("left", "right"):
                data = np.frombuffer(archive.read(f"{side}/{id}.webp"), np.uint8)
                sides.append(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
            return id, *sides

        return [load(id) for id in chosen], [load(id) for id in faces[:: len(faces) // num_excluded][:num_excluded]]


def scores(lefts, rights, size):
    def describe(images):
        flat = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA).ravel() for image in images])
        centred = flat - flat.mean(axis=1, keepdims=True)
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    return describe(lefts) @ describe(rights).T


def write_ranks(folder, ids, matrix):
    folder.mkdir(parents=True)
    arrays, tops = {}, {}
    for direction, values in (("left_to_right", matrix), ("right_to_left", matrix.T)):
        arrays[direction] = (values >= np.diag(values)[:, None]).sum(axis=1)
        tops[direction] = np.argsort(-values, axis=1, kind="stable")[:, :5]
    np.savez(folder / "ranks.npz", ids=np.array(ids), **arrays)
    np.savez(folder / "top.npz", ids=np.array(ids), **tops)
    return np.concatenate(list(arrays.values()))


def row(system, kind, ranks, *, paper_k):
    def estimate(values):
        value, half = values.mean(), 1.96 * values.std() / np.sqrt(len(values) / 2)
        return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}

    tops = {f"top{k}": estimate((ranks <= k).astype(float)) for k in (1, 5, 10, 25)}
    one_way = {"top1": 0.4, "top5": 0.6, "top10": 0.7, "top25": 0.8, "mrr": 0.5, "median_rank": 2.0}
    return {
        "system": system,
        "kind": kind,
        "num_seeds": 1,
        **tops,
        "top_paper": estimate((ranks <= paper_k).astype(float)) | {"k": paper_k},
        "mrr": estimate(1 / ranks),
        "median_rank": float(np.median(ranks)),
        "left_to_right": one_way,
        "right_to_left": one_way | {"top1": 0.42},
        "wilson": {
            "left_to_right": {"top1": {"hits": 4, "of": 10, "low": 0.17, "high": 0.69}},
            "right_to_left": {},
        },
    }


def build(
    folder: Path, *, num_pairs: int = 40, num_excluded: int = 6, hostile: bool = True, path: Path = EMOJI_ZIP
) -> Path:
    pairs, excluded = read_pairs(num_pairs=num_pairs, num_excluded=num_excluded, path=path)
    if hostile:
        pairs = [(f"{HOSTILE}{id}", *sides) for id, *sides in pairs]
    ids = [id for id, _, _ in pairs]
    lefts, rights = [left for _, left, _ in pairs], [right for _, _, right in pairs]
    paper_k = max(1, round(25 * num_pairs / 1200))
    for side, images in (("left", lefts), ("right", rights)):
        (folder / "images" / side).mkdir(parents=True)
        for id, image in zip(ids, images, strict=True):
            save(folder / "images" / side / f"{file_name(id)}.png", image)
    (folder / "images" / "excluded").mkdir()
    for id, left, right in excluded:
        save(folder / "images" / "excluded" / f"{id}-left.png", left)
        save(folder / "images" / "excluded" / f"{id}-right.png", right)

    exact = {f"top{k}": {"value": min(1, k / num_pairs), "low": None, "high": None} for k in (1, 5, 10, 25)}
    reciprocal = sum(1 / k for k in range(1, num_pairs + 1)) / num_pairs
    chance = {"system": "chance", "kind": "chance", "num_seeds": 1, **exact}
    chance |= {"top_paper": {"value": paper_k / num_pairs, "low": None, "high": None, "k": paper_k}}
    chance |= {
        "mrr": {"value": reciprocal, "low": reciprocal, "high": reciprocal},
        "median_rank": (num_pairs + 1) / 2,
    }
    one_way = {"top1": 1 / num_pairs, "top5": 5 / num_pairs, "mrr": reciprocal, "median_rank": (num_pairs + 1) / 2}
    both_ways = {}
    rows = [chance | {"left_to_right": one_way, "right_to_left": one_way, "wilson": None}]
    for system, size in SYSTEMS.items():
        kind = "frozen" if system.endswith("-frozen") else "baseline"
        ranks = write_ranks(folder / "systems" / system, ids, scores(lefts, rights, size))
        rows.append(row(system, kind, ranks, paper_k=paper_k))
        both_ways[system] = ranks.reshape(1, 2, -1)
    for model, size in MODELS.items():
        run = folder / "models" / model / "seed-0"
        ranks = write_ranks(run, ids, scores(lefts, rights, size))
        rows.append(row(model, "model", ranks, paper_k=paper_k))
        both_ways[model] = ranks.reshape(1, 2, -1)
        write_explanations(run / "explanations", pairs, ranks[: len(ids)])
        write_records(run, model)

    ahead = {"a": "barlow", "b": "hog", "metric": "mrr", "difference": 0.031, "low": 0.004, "high": 0.058}
    level = {
        "a": "barlow",
        "b": "classification",
        "metric": "mrr",
        "difference": -0.012,
        "low": -0.04,
        "high": 0.016,
    }
    wide = {"a": "barlow", "b": "classification", "metric": "top1", "difference": 0.05, "low": 0.01, "high": 0.09}
    counted = {
        "left_to_right": {"only_a": 9, "only_b": 3, "p_value": 0.146},
        "right_to_left": {"only_a": 8, "only_b": 5, "p_value": 0.581},
    }
    loose = {"a": "random", "b": "pixels", "metric": "top1", "difference": -0.05, "low": -0.08, "high": -0.02}
    comparisons = [
        ahead | {"p_value": 0.0121, "p_holm": 0.0242, "planned": True, "mcnemar": None},
        level | {"p_value": 0.41, "p_holm": 0.41, "planned": True, "mcnemar": None},
        wide | {"p_value": 0.03, "p_holm": 0.09, "planned": True, "mcnemar": counted},
        loose | {"p_value": 0.0002, "p_holm": None, "planned": False, "mcnemar": None},
    ]
    results = {
        "study": "emoji",
        "command": "python -m tll_jax.main --config=configs/emoji.py --workdir=runs/demo",
        "created": "2024-11-24T09:30:00+00:00",
        "hardware": {
            "platform": "cpu",
            "cpu": "Some CPU @ 2.00 GHz",
            "cores": 2,
            "devices": 1,
            "memory_gib": 23.5,
        },
        "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8"},
        "seconds": {"total": 723.4, "pretrain": 400.2, "finetune": 250.0, "evaluate": 12.0},
        "data": {
            "pairs": 1610,
            "skipped": [["broken<script>alert(1)</script>", "cannot be decoded"]],
            "train": 800,
            "validation": 100,
            "test": num_pairs,
            "rule": "no face category on either side",
            "duplicates": {"pairs": 5, "groups": 2},
            "excluded": {"face": 520, "duplicate of a training pair": 3},
            "pretraining_saw": {
                "barlow": "images of the training pairs and of the excluded pairs",
                "classification": "images of the training pairs and of the excluded pairs",
                "random": "nothing",
            },
        },
        "protocol": {"queries": num_pairs, "candidates": num_pairs, "paper_k": paper_k},
        "rows": rows,
        "faces_included": [rows[0], rows[2]],
        "comparisons": comparisons,
        "significance": significance(both_ways),
        "runs": {model: [f"models/{model}/seed-0"] for model in MODELS},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text("{}")
    split = {"train": [], "validation": [], "test": ids, "rule": "no face category on either side", "seed": 7}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def save(path, image):
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_explanations(folder, pairs, ranks):
    folder.mkdir()
    order = np.argsort(ranks, kind="stable")
    index, changes = [], []
    for kind, positions in (("best", order[:4]), ("worst", order[-2:])):
        for position in positions:
            id, left, right = pairs[position]
            change = cv2.GaussianBlur(np.abs(left.astype(float) - right).sum(axis=2), (0, 0), 1.5)
            np.savez(
                folder / f"{file_name(id)}.npz",
                left=left,
                right=right,
                heatmap_left=change,
                heatmap_right=change * 0.1,
                rank=ranks[position],
            )
            index.append({"id": id, "rank": int(ranks[position]), "kind": kind})
            changes.append(change)
    (folder / "index.json").write_text(json.dumps(index))
    by_place = np.arange(len(index) * 6.0).reshape(len(index), 2, 3)
    maps = {"decomposition": by_place, "integrated-gradients": np.stack(changes)}
    sides = {f"{name}/{side}": values for name, values in maps.items() for side in ("left", "right")}
    np.savez(folder.parent / "recommended.npz", ids=np.array([one["id"] for one in index]), **sides)


def write_records(run, model):
    finetune = []
    for step in range(20, 401, 20):
        finetune.append(
            {
                "step": step,
                "loss": 0.4 * np.exp(-step / 120) + 0.01 * list(MODELS).index(model) + 0.05,
                "images_per_second": 900.0,
            }
        )
        if step % 100 == 0:
            finetune.append(
                {"step": step, "validation/mrr": 0.7 - 0.3 * np.exp(-step / 150) - 0.03 * list(MODELS).index(model)}
            )
    finetune.append({"step": 400, "loss": None})
    # Barlow Twins and cross-entropy have losses on different scales.
    scale = 1.0 if model == "barlow" else 0.04
    pretrain = [{"step": step, "loss": scale * (100 * np.exp(-step / 300) + 20)} for step in range(20, 801, 20)]
    stages = {"finetune": finetune} | ({} if model == "random" else {"pretrain": pretrain})
    for stage, records in stages.items():
        (run / f"{stage}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))

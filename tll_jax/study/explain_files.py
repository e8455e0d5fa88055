"""Explanations of two image files, or of a query and its nearest candidates."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from tll_jax import ranking
from tll_jax.data.archive import printable
from tll_jax.data.emoji import names_of
from tll_jax.data.imaging import read_image
from tll_jax.data.pairs import SIDES
from tll_jax.devices import local_mesh
from tll_jax.errors import InvalidValue
from tll_jax.files import file_name
from tll_jax.model_files import is_model_file, model_path
from tll_jax.report.explanation import write_explanation, write_index
from tll_jax.saliency.methods import TARGETS
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.saliency.targets import Target, log_softmax_among, margin_over
from tll_jax.study.explain import Explainer, ExplainRequest, random_cosines, random_cosines_of
from tll_jax.study.folder import Embeddings, RunFolder, picture_path, read_picture
from tll_jax.study.load import holds_weights, open_explainer

MOST_NAMED = 10
"""Maximum number of names in a message."""
FOILED_TARGETS = ("margin", "log-softmax")
"""Targets that compare a pair with other candidates (foils)."""


def explain_files(
    folder: Path, left: Path, right: Path, foils: Sequence[Path], out: Path, request: ExplainRequest
) -> Path:
    """Explains two image files by the target that `request` names.

    Args:
      foils: further images, for the targets in `FOILED_TARGETS`.

    Returns:
      The path of the page.

    Raises:
      ValueError: a file is no image, or the target needs foils and there are none.
    """
    explainer = open_explainer(folder)
    left_image, right_image = read_image(left), read_image(right)
    others = explainer.embed([read_image(path) for path in foils]) if foils else None
    target = choose_target(request.target_name, explainer.embed([left_image])[0], others)
    is_run = not is_model_file(model_path(folder)) and not holds_weights(folder)
    among = random_cosines_of(RunFolder(folder)) if is_run else None
    request = dataclasses.replace(request, target=target, random_cosines=among)
    (found,) = explainer([left_image], [right_image], [(left.name, right.name)], request)
    return write_explanation(found, out, signed=request.signed)


def explain_query(folder: Path, query: str, out: Path, request: ExplainRequest, *, num_candidates: int) -> list[Path]:
    """Explains a query beside its nearest candidates among the right images of the run's test pairs.

    Args:
      query: an image file; or a test pair, by its id, its name or the start of its name: its left image is the query,
        and its match is explained too.
      request: names the target.

    Returns:
      The pages: that of all candidates, then one a candidate, each in its own folder, nearest first.

    Raises:
      ValueError: the query is neither, or the start of several names.
    """
    if is_model_file(model_path(folder)) or holds_weights(folder):
        raise InvalidValue(
            f"{folder} is no run and has no test pairs to be asked about: give --left FILE and --right FILE"
        )
    run = RunFolder(folder)
    explainer, study = open_explainer(folder), run.study
    ids, lefts, candidates = _embeddings_of_a_system(run, explainer) if run.is_of_a_system else run.embeddings()
    names = names_of(ids)
    match = _position(query, ids, names)
    if match is None:
        asking, name = read_image(Path(query)), Path(query).stem
        embedding = explainer.embed([asking])[0]
    else:
        asking, name = read_picture(picture_path(study, "left", ids[match])), names[ids[match]]
        embedding = lefts[match]
    chosen = ranking.embedding_top_k(embedding[None], candidates, num_candidates, mesh=local_mesh())[0].tolist()
    if match is not None and match not in chosen:
        chosen.append(match)
    # The foils of each candidate are the others, so that each has a target of its own.
    request = dataclasses.replace(request, random_cosines=random_cosines(lefts, candidates))
    groups = [[at] for at in chosen] if request.target_name in FOILED_TARGETS else [chosen]
    queries = np.repeat(embedding[None], len(chosen), axis=0)
    found_ranks = ranking.embedding_ranks(queries, candidates, np.array(chosen), mesh=local_mesh())
    ranks = dict(zip(chosen, found_ranks.tolist(), strict=True))
    pages: dict[Path, ExplainedPair] = {}
    for group in groups:
        others = np.delete(candidates, group, axis=0)
        request = dataclasses.replace(request, target=choose_target(request.target_name, embedding, others))
        found = explainer(
            [asking] * len(group),
            [read_picture(picture_path(study, "right", ids[at])) for at in group],
            [(name, f"{names[ids[at]]} (rank {ranks[at]})") for at in group],
            request,
        )
        for at, one in zip(group, found, strict=True):
            page = write_explanation(one, out / f"{ranks[at]:03d}-{file_name(ids[at])}", signed=request.signed)
            pages[page] = one
    return [write_index(name, pages, out, signed=request.signed), *pages]


def _position(query: str, ids: Sequence[str], names: Mapping[str, str]) -> int | None:
    """The position of the test pair that a query names; None if it is a file."""
    if query in ids:
        return list(ids).index(query)
    if _is_file(query):
        return None
    wanted = query.replace("_", " ").casefold()
    whole = [at for at, id in enumerate(ids) if names[id].casefold() == wanted]
    found = whole or [at for at, id in enumerate(ids) if wanted and names[id].casefold().startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        candidates = ", ".join(names[ids[at]] for at in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise InvalidValue(f"the query {query!r} is the start of several names: {printable(candidates)}{more}")
    raise InvalidValue(
        f"the query {query!r} is neither an image file nor one of the test pairs, such as {names[ids[0]]!r}"
    )


def _embeddings_of_a_system(run: RunFolder, explainer: Explainer) -> Embeddings:
    """Embeddings of the test pictures in the study's folder, which may be smaller than those that were ranked."""
    ids = run.ranks().ids
    sides = ([read_picture(picture_path(run.study, side, id)) for id in ids] for side in SIDES)
    return Embeddings(ids, *(explainer.embed(images) for images in sides))


def choose_target(name: str, query: np.ndarray, others: np.ndarray | None) -> Target:
    """The target of a name.

    Args:
      query: embedding `[dim]`.
      others: embeddings of further candidates, `[others, dim]`; the nearest is the foil of "margin".

    Raises:
      ValueError: no such target, or it needs other candidates.
    """
    if name in TARGETS:
        return TARGETS[name]
    if name not in FOILED_TARGETS:
        raise InvalidValue(f"there is no target {name!r}; there are {', '.join((*TARGETS, *FOILED_TARGETS))}")
    if others is None:
        raise InvalidValue(f"the target {name} needs something to compare with: give --foil FILE, or ask with --query")
    if name == "log-softmax":
        return log_softmax_among(jnp.asarray(others))
    (nearest,) = ranking.embedding_top_k(query[None], others, 1, mesh=local_mesh())[0]
    return margin_over(jnp.asarray(others[nearest]))


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        # Longer than a path may be, or with a NUL in it.
        return False

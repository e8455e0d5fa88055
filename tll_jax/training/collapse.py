"""Warning about collapsed embeddings, whose loss stays near the margin and looks merely slow."""

from collections.abc import Mapping

MIN_PARTICIPATION_RATIO = 2.0
MIN_EMBEDDING_STD = 1e-3


def collapse_warning(metrics: Mapping[str, float]) -> str | None:
    """Warning if the logged `participation_ratio` or `embedding_std` indicates a collapsed embedding, else None."""
    rank, std = metrics.get("participation_ratio"), metrics.get("embedding_std")
    if rank is not None and rank < MIN_PARTICIPATION_RATIO:
        found = f"participation ratio {rank:.2f}, below {MIN_PARTICIPATION_RATIO:g}"
    elif std is not None and std < MIN_EMBEDDING_STD:
        found = f"embedding standard deviation {std:.2g}, below {MIN_EMBEDDING_STD:g}"
    else:
        return None
    return (
        f"the embeddings collapse ({found}): lower the learning rate, or use semi-hard or random negatives instead of "
        "the hardest"
    )

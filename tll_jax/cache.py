"""Where what is expensive to find again is kept between runs."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$TLL_CACHE`, or `tll_jax` in the user's cache folder; for a user without a home in the folder for temporary
    files."""
    if chosen := os.environ.get("TLL_CACHE"):
        return Path(chosen)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "tll_jax"
    try:
        return Path.home() / ".cache" / "tll_jax"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"tll_jax-{os.getuid()}"

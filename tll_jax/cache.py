"""Where what is expensive to find again is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$TLL_CACHE`, or `tll_jax` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tll_jax"
    return Path(os.environ.get("TLL_CACHE", default))

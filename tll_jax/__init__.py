"""tll_jax finds images that look alike, and shows why."""

__version__ = "0.1.0"

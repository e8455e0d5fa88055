"""tll_jax finds images that look alike, and shows why."""

__version__ = "0.2.0.dev0"

"""A study: its settings, its folder, its stages, and its results."""

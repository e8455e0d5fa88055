"""A study: its settings, its folder, its stages, and its results."""

STAGES = ("pretrain", "finetune", "evaluate", "explain", "report")
"""The stages of a study, in the order in which they run."""

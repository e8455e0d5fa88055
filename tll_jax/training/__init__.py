"""Training: state, step, loop, checkpoints and metric records."""

"""Ahead-of-time compilation of a training step, for devices that need not be there."""

"""Convolutions that are fast on CPUs; other platforms use XLA's own."""

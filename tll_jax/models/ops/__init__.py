"""Convolutions that are fast on CPUs; other platforms have XLA's own."""

"""Backbones, heads and the network of both."""

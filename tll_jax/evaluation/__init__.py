"""Measuring systems on pairs: embeddings, probes, and the numbers that go into the table."""

"""Scoring systems on pairs: the descriptors to beat, embeddings, and the numbers that go into the table."""

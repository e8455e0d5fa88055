"""Evaluation of systems on pairs: embeddings, probes, and the metrics of the results table."""

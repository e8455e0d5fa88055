"""Retrieval systems that score queries against a gallery: descriptors, features, learned metrics and ensembles."""

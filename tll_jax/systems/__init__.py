"""What scores queries against a gallery: descriptors, features, metrics that are learned, and ensembles of them."""

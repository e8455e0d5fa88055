"""Images on disk to checkpointable batches: sources, faces, splits, host geometry and the grain pipeline."""

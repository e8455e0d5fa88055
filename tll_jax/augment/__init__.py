"""Photometric augmentation on the device, one image at a time and meant for `jax.vmap`."""

"""Photometric augmentation on the device, written for one image and batched by `jax.vmap`."""

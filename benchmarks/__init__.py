"""Benchmarks: ratios against raw JAX, flax.nnx and equinox, side by side in one process."""

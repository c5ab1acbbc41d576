"""The metrics, one a file; ``moduli_train.metrics`` is their public home."""

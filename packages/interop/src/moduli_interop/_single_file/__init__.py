"""The format of new checkpoints: one safetensors file, which proves itself. See ``layout``."""

"""The built-in format: one ``.npz`` file, readable by numpy alone. See ``layout``."""

"""The format that several processes write together: a folder that orbax fills. See ``layout``."""

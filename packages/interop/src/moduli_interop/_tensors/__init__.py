"""Tensors in foreign files: what they are called, their shapes and dtypes, and how to read one.

Everything that reads a file which moduli did not write stands here; this room knows no model.
Reading executes nothing that a file says and imports nothing that it names, and what a file says
of its sizes is checked before memory is taken.
"""

"""Names of flax.nnx that are not moduli's own, so that code written for it runs unchanged.

It holds the table of flax.nnx's submodules, the modules made of it, and old functions and classes.

- A name stands here only if moduli has another way to do what it does; it is written with that way.
- ``table.py`` says which names exist where; a test holds it against the installed flax.
- Nothing here is imported before one of its names is used.
"""

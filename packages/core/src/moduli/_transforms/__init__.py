"""JAX's transforms, lifted to functions that take modules. ``lift.py`` is the one mechanism."""

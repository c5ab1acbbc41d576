"""What everything else stands on; this room knows nothing of models.

It holds the structure epoch, nodes and their bookkeeping, where an object stands, keys of static
values, what differs between JAX versions, lines of the user's code, the transform that is running,
writes that raw JAX loses, reads through closures, and lazy maps of packages.

- Everything that two rooms need and that is about no Variable, module or graph lives here.
- ``node`` says what every object of a graph has; what modules and graphs do with it is not known.
- What differs between JAX versions stands in ``compat`` alone.
- Nothing here imports another room.
"""

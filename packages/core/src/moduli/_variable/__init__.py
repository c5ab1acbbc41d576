"""The box: a value and its metadata, the only mutable leaf of a graph.

It holds ``Variable``, its operators and kinds, their names, metadata, and the filters that select
by kind, tag and path.

- Everything that one Variable does lives here; where it stands in a model is not known.
- Writing a value never changes a structure; writing metadata moves the epoch.
"""

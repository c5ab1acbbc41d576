"""Random streams: ``Rngs`` and its streams, the search for them, and the functions over them.

- Everything that derives keys from seeds, splits, forks or reseeds lives here.
- Other rooms know streams as nodes with a key and a count.
"""

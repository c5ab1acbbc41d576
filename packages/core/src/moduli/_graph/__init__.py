"""Structure without values: how objects become a GraphDef, and how they are put together again.

It holds GraphDef, flatten, the structure cache, unflatten, State, split, merge and the walks.

- Everything that indexes the tables of a GraphDef lives here; other rooms ask by path or leaf.
- This room does not know JAX's transforms, nor what a Module is: it sees nodes and Variables.
"""

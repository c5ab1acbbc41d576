"""JAX's transforms for functions of modules, one file for each public transform.

- A file here says how values are labelled and which function of JAX gets them.
- How a call is taken apart and written back is the business of ``_call``.
"""

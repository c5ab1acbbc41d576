"""The one door between graphs of modules and JAX.

A transform takes a call apart, gives each value a label, hands JAX a pure function and does to the
caller's objects what the function did to their copies. All of that is here.

- Everything that knows both graphs and JAX's transforms lives here.
- A file of ``_transforms`` says only how values are labelled.
"""

"""The one door between graphs of modules and JAX.

A transform takes a call apart, gives each value a label, hands JAX a pure function and does to the
caller's objects what the function did to their copies. All of that is here, in four steps:

1. ``bind`` finds the modules and Variables among the arguments, and takes their cached flatten.
   ``signature`` is what programs keep of the call.
2. Inside of the trace a ``frame`` rebuilds the arguments as fresh objects around the tracers.
3. When the function has run, the frame writes down what it did: the effects.
4. ``writeback`` does to the caller's own objects what the function did to the fresh ones, on every
   call that runs the program, also with other objects of equal structure.

``call`` is these steps for all transforms: which values are traced, and how each is labelled, is
data. ``programs`` keeps pure functions between calls. ``moduli.lowlevel`` is the public door.

- Everything that knows both graphs and JAX's transforms lives here.
- A file of ``_transforms`` says only how values are labelled.
"""

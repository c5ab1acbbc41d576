"""Layouts over meshes: how each value of a model is to be divided, and how it is.

It holds the rules that lay out a model without touching it, the shardings of a node, models made
sharded in one program, and the tables and checks of what a layout is.

- A layout changes where numbers stand, never a number; nothing here writes to a model.
- Names of axes are a Variable's own matter (``_variable/laid_out.py``), keeping shardings through
  a call is the door's (``_call/jit_shardings.py``).
"""

"""What users subclass: attributes, registration with JAX, calls with hooks, Module, containers.

- Everything that happens when an attribute is set, or a module is made or called, lives here.
- This room does not know transforms: a module behaves alike inside and outside of them.
"""

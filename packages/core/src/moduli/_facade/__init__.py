"""Names and submodules that ``import moduli as nnx`` offers beyond core, and the command line.

It holds the names of extension packages and of flax.nnx, their resolution, and the doctor.

- Nothing here is imported before it is used, but the finder of submodules: ``import moduli`` scans
  no entry points.
- No other room imports this one.
"""

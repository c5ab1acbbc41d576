"""What a run writes into its folder besides checkpoints: log.csv, run.json, pictures, the lock.

What may live here:

- files of a folder, and the numbers that go into them. No file here knows the loop, the nodes'
  checkpoints or the data, so each can be used and tested with a path alone.
- ``values.py`` is the one place where a logged value is read from a device.
"""

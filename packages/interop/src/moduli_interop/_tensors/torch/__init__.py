"""Torch's files, without torch.

``unpickle`` runs the pickle inside of one with a fixed table of functions, all of them ours;
``objects`` has that table and what its functions make; ``archive`` and ``legacy`` know the two
layouts of the file around it. Nothing that a file names is imported, and nothing in it is called.
"""

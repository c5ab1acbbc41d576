"""The training report: statistics of tensors over time, their figures, and one HTML page.

``statistics`` (numbers of one tensor, on the device), ``measurements`` (of a model's tensors, by
path), ``training_report`` (over time), ``figures`` and ``page`` (to look at).
"""

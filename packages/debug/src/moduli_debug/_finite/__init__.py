"""How check_finite searches for the module that makes NaN.

``program`` traces a function with the ``marks`` of its modules' calls, ``run`` computes it one
operation at a time, ``search`` decides which fault counts, and ``report`` puts it into words.
"""

"""The summary of a model as a table: its calls, sizes and costs.

``calls`` traces the model, ``costs`` counts, ``sizes`` and ``rows`` gather, ``columns`` say what a
table shows of a row, ``table`` and ``render`` write it, ``result`` is what a caller gets.
"""

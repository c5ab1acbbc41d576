"""Models as programs: StableHLO artefacts that run without moduli and without the model's code.

- ``export``: :func:`export`, what it returns, and how it is loaded.
- ``specs``: what users write for the inputs.
- ``weights``: the file of weights beside a program.
"""

"""Carries values out of a model, and into it, through every transform.

- Everything that tools need to know about where a call stands in a model lives here.
- A recording changes nothing in the model; it does not know transforms.
"""

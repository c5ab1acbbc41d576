"""Models from and to other frameworks, one file for each.

What may live here: how a model of another framework becomes one of ours, and the other way.
A bridge converts objects that exist; how tensors in *files* are named is no matter of it.

- ``bridge``: what a plugin contributes (:class:`Bridge`, :class:`LayerRule`), and how a model is
  walked (:class:`Conversion`).
- ``frameworks``: finds the bridges, and imports a framework when it is used.
- ``arguments``: builds a layer from the settings of another one, without drawing its parameters.
- ``conventions``: modules that keep another framework's order of axes.
- ``flax_nnx``, ``linen``, ``equinox``, ``haiku``, ``torch``: one framework each; files whose names
  begin so, and the folder ``torch``, hold its parts.
- ``windows``: paddings of convolutions, in the terms of other frameworks.
- ``linen_wrappers``, ``torch_calls``: one framework's module called inside of the other.

A file of a framework imports that framework inside of its functions alone.
"""

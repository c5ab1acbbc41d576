"""Foreign weights into a model and out of it.

``name_map`` says what a module is called elsewhere, both ways, and ``templates`` the language in
which it does; ``targets`` lists the tensors that a model is made of elsewhere, as its layers
declare them; ``plan`` compares these with a source, ``load`` and ``save`` move the numbers. No
layout is guessed from a shape, and nothing is written before all of it is known to fit.
"""

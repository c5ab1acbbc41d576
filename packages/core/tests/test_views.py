"""view and with_attributes: copies in another mode that share their Variables."""

from __future__ import annotations

import jax
import pytest
from core_models import mlp

import moduli as nnx
from moduli import errors


class Own(nnx.Module):
    """Says itself what the modes ``quiet`` and ``level`` mean to it."""

    def __init__(self):
        self.scale, self.level, self.weight = 1.0, 0, nnx.Param(2.0)

    def set_view(self, quiet=None, level=None):
        if quiet is not None:
            self.scale = 0.0 if quiet else 1.0
        if level is not None:
            self.level = 10 * level


class Plain(nnx.Module):
    def __init__(self):
        self.quiet, self.level = False, 1


class Both(nnx.Module):
    def __init__(self):
        self.own, self.plain, self.again = Own(), Plain(), None
        self.again = self.own


def test_a_view_asks_set_view_where_there_is_one_and_sets_attributes_elsewhere():
    model = Both()
    other = nnx.view(model, quiet=True, level=3)
    assert (other.own.scale, other.own.level) == (0.0, 30)
    assert (other.plain.quiet, other.plain.level) == (True, 3)
    assert (model.own.scale, model.own.level, model.plain.quiet) == (1.0, 0, False)
    assert other.again is other.own and other.own.weight is model.own.weight
    attributes = nnx.with_attributes(model, level=3)
    assert (attributes.own.level, attributes.plain.level) == (3, 3)  # set_view is not asked


def test_a_view_of_some_modules_and_of_names_that_nobody_knows():
    model = Both()
    only = nnx.view(model, only=Plain, level=3)
    assert (only.own.level, only.plain.level) == (0, 3)
    for function in (nnx.view, nnx.with_attributes):
        with pytest.raises(errors.StructureError, match="has the attribute 'misspelt'"):
            function(model, misspelt=1)
        assert not hasattr(function(model, misspelt=1, raise_if_not_found=False), "misspelt")


def test_set_view_with_any_keywords_gets_all():
    class Any(nnx.Module):
        def __init__(self):
            self.seen = ()

        def set_view(self, **modes):
            self.seen = tuple(sorted(modes.items()))

    model = Any()
    assert nnx.view(model, a=1, b=2).seen == (("a", 1), ("b", 2))
    assert model.seen == ()


def test_a_class_without_registration_is_a_leaf_for_jax_and_a_node_for_moduli():
    class Opaque(nnx.Module, pytree=False):
        def __init__(self):
            self.inner, self.tied = mlp(), None
            self.tied = self.inner

    class Derived(Opaque):
        pass

    class Registered(Opaque, pytree=True):
        def __init__(self):
            self.scale = nnx.Param(1.0)

    for cls in (Opaque, Derived):
        model = cls()
        assert jax.tree.leaves(model) == [model]
        doubled = nnx.jit(lambda m: nnx.clone(m))(model)
        assert doubled.tied is doubled.inner and type(doubled) is cls
        assert nnx.graphdef(doubled) is nnx.graphdef(model)
    assert jax.tree.leaves(Registered()) == [1.0]


def test_as_pure_reads_nested_variables_and_keeps_the_rest():
    state = nnx.state(mlp(), nnx.Param)
    pure = nnx.as_pure({"state": state, "plain": 3, "in": nnx.Variable((nnx.Param(2.0),))})
    assert pure["plain"] == 3 and pure["in"] == (2.0,)
    assert pure["state"].layers[0].kernel is state.layers[0].kernel.value
    assert nnx.to_pure_dict(state) == nnx.to_pure_dict(nnx.State(pure["state"]))

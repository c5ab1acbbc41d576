"""Variable: reading, writing, arithmetic, metadata, hooks, copies."""

from __future__ import annotations

import copy
import operator
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors


def test_the_three_ways_of_reading_and_writing_agree():
    v = nnx.Param(jnp.array([1.0, 2.0, 3.0]))
    v.value = v.value + 1
    v[...] = v[...] * 2
    v.set_value(v.get_value() - 1)
    np.testing.assert_array_equal(v.value, [3, 5, 7])
    v[1] = 0.0
    v.set_value(9.0, index=slice(2, None))
    np.testing.assert_array_equal(v.get_value(index=slice(None)), [3, 0, 9])
    assert v[0] == 3


def test_writing_all_elements_broadcasts_and_keeps_shape_and_dtype():
    v = nnx.Param(jnp.zeros((2, 3), jnp.bfloat16))
    v[...] = 1
    assert v.shape == (2, 3) and v.dtype == jnp.bfloat16
    assert (np.asarray(v.value, np.float32) == 1).all()


@pytest.mark.parametrize("name", "add sub mul truediv floordiv mod pow lt le gt ge eq ne".split())
def test_arithmetic_is_that_of_the_arrays(name):
    function = getattr(operator, name)
    a, b = np.array([1.5, 2.0, 4.0], np.float32), np.array([2.0, 2.0, 0.5], np.float32)
    expected = function(a, b)
    for left, right in (
        (nnx.Param(jnp.asarray(a)), nnx.BatchStat(jnp.asarray(b))),
        (nnx.Param(jnp.asarray(a)), b),
        (jnp.asarray(a), nnx.Param(jnp.asarray(b))),
    ):
        result = function(left, right)
        assert isinstance(result, jax.Array)
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_unary_matmul_and_conversions():
    v = nnx.Param(jnp.array([[1.0, -2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(-v, -np.asarray(v.value))
    np.testing.assert_array_equal(abs(v), np.abs(np.asarray(v.value)))
    np.testing.assert_array_equal(v @ v, np.asarray(v.value) @ np.asarray(v.value))
    np.testing.assert_array_equal(jnp.sum(v, axis=0), [4, 2])
    np.testing.assert_array_equal(np.asarray(v), np.asarray(v.value))
    assert float(nnx.Param(jnp.array(2.5))) == 2.5 and int(nnx.Param(3)) == 3
    assert len(v) == 2 and bool(nnx.Param(jnp.array(1.0)))


def test_augmented_assignment_writes_the_box():
    v = nnx.Variable(jnp.array([1.0, 2.0]))
    same = v
    v += 1
    v *= 2
    assert v is same
    np.testing.assert_array_equal(same.value, [4, 6])


def test_attributes_of_the_value_and_of_the_metadata():
    v = nnx.Param(jnp.ones((2, 3)), tag="body", sharding_names=("x", None))
    assert v.shape == (2, 3) and v.ndim == 2 and float(v.sum()) == 6
    assert v.tag == "body" and v.sharding_names == ("x", None)
    with pytest.raises(AttributeError, match="no attribute or metadata 'shap'"):
        v.shap
    with pytest.raises(AttributeError, match=r"set_metadata\(colour=\.\.\.\)"):
        v.colour = "red"


def test_metadata_is_written_read_and_removed():
    v = nnx.Param(1.0, a=1)
    v.set_metadata(b=2)
    v.set_metadata("c", 3)
    assert v.get_metadata() == {"a": 1, "b": 2, "c": 3}
    assert v.get_metadata("b") == 2 and v.get_metadata("d", None) is None
    v.del_metadata("a")
    assert not v.has_metadata("a")
    v.set_metadata({"z": 0})
    assert v.get_metadata() == {"z": 0}
    with pytest.raises(errors.PathError, match="no metadata 'a'"):
        v.get_metadata("a")


def test_hooks_run_on_create_get_and_set():
    def scale(factor):
        return lambda variable, value: value * factor

    v = nnx.Variable(
        1.0,
        on_create_value=scale(2.0),
        on_set_value=[scale(3.0), scale(5.0)],
        on_get_value=scale(0.5),
    )
    assert v.raw_value == 2.0 and v.value == 1.0
    v.value = 1.0
    assert v.raw_value == 15.0 and v.value == 7.5
    v.set_raw_value(4.0)
    assert v.get_raw_value() == 4.0


def test_a_subclass_defines_hooks_as_methods():
    class Positive(nnx.Param):
        def on_get_value(self, value):
            return jnp.exp(value)

    v = Positive(jnp.array(0.0))
    assert float(v.value) == 1.0
    grad = nnx.grad(lambda v: v.value * 3)(v)
    assert float(grad.raw_value) == 3.0  # d/dv 3 exp(v) at 0


def test_a_variable_is_no_value():
    v = nnx.Param(1.0)
    with pytest.raises(errors.VariableError, match=r"copy\(\)"):
        nnx.Param(v)
    with pytest.raises(errors.VariableError, match=r"other\.value"):
        v.value = nnx.Param(2.0)
    assert v.value == 1.0


def test_copy_and_copy_from():
    v = nnx.Param(jnp.ones(2), tag="a")
    w = v.copy(jnp.zeros(2), tag="b")
    assert type(w) is nnx.Param and w.tag == "b" and v.tag == "a"
    v.copy_from(w)
    assert v.tag == "b" and float(v.sum()) == 0
    with pytest.raises(errors.VariableError, match="BatchStat"):
        v.copy_from(nnx.BatchStat(1.0))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_keep_values_kinds_and_metadata_of_keys_too(how):
    key = nnx.RngKey(jax.random.key(3), tag="dropout")
    other = how(key)
    assert type(other) is nnx.RngKey and other.tag == "dropout"
    expected = jax.random.normal(jax.random.key(3), (4,))
    np.testing.assert_array_equal(jax.random.normal(other.value, (4,)), expected)
    v = nnx.Variable(np.zeros(2))
    w = how(v)
    w.value[0] = 1
    assert v.value[0] == 0


def test_a_variable_is_a_pytree_with_its_kind_and_metadata():
    v = nnx.Param(jnp.ones(2), tag="a")
    doubled = jax.tree.map(lambda x: 2 * x, v)
    assert type(doubled) is nnx.Param and doubled.tag == "a"
    np.testing.assert_array_equal(jax.jit(lambda v: v + 1)(v), [2, 2])
    assert jax.tree.structure(v) != jax.tree.structure(nnx.Param(jnp.ones(2), tag="b"))
    assert jax.tree.structure(v) != jax.tree.structure(nnx.BatchStat(jnp.ones(2), tag="a"))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap, nnx.jit, nnx.grad])
def test_writing_a_captured_variable_inside_a_transform_is_an_error_with_its_path(transform):
    class Model(nnx.Module):
        def __init__(self):
            self.parts = [nnx.Dict(count=nnx.BatchStat(jnp.array(1.0)))]

    model = Model()

    def function(x):
        model.parts[0].count.value = x.sum()
        return x.sum()

    with pytest.raises(errors.TraceError, match=r"BatchStat at `parts/0/count` of Model"):
        transform(function)(jnp.ones(3))
    assert float(model.parts[0].count.value) == 1.0


def test_names_of_kinds():
    assert nnx.variable_type_from_name("params") is nnx.Param
    assert nnx.variable_name_from_type(nnx.Intermediate) == "intermediates"
    with pytest.raises(errors.PathError, match="did you mean 'batch_stats'"):
        nnx.variable_type_from_name("batch_stat")

    @nnx.register_variable_name("test_lora_params")
    class LoRA(nnx.Param):
        pass

    assert nnx.variable_type_from_name("test_lora_params") is LoRA
    with pytest.raises(errors.NameClashError, match="test_lora_params"):
        nnx.register_variable_name("test_lora_params", nnx.Param)

    class Unnamed(nnx.Variable):
        pass

    with pytest.raises(errors.PathError, match="register_variable_name"):
        nnx.variable_name_from_type(Unnamed)


def test_repr_shows_kind_dtype_shape_and_small_values():
    assert repr(nnx.Param(jnp.ones((64, 3), jnp.float32))) == "Param(float32[64, 3])"
    assert (
        repr(nnx.Param(jnp.array([1.0, 2.0], jnp.float32), tag="a"))
        == "Param(float32[2] [1., 2.], tag='a')"
    )


def test_a_value_with_metadata_gives_both():
    given = nnx.VariableMetadata(jnp.ones(3), {"tag": "a", "sharding_names": ("x",)})
    v = nnx.Param(given, tag="b", other=1)
    assert v.get_metadata() == {"tag": "a", "out_sharding": ("x",), "other": 1}  # as in flax
    assert v.shape == (3,) and isinstance(v.value, jax.Array)
    assert nnx.Param(nnx.VariableMetadata(2.0)).value == 2.0
    doubled = nnx.VariableMetadata(jnp.ones(2), {"on_create_value": lambda _, value: 2 * value})
    assert nnx.Param(doubled).value.tolist() == [2, 2]
    with pytest.raises(errors.VariableError, match=r"Param\(\.\.\.\) got a Variable as its value"):
        nnx.Param(nnx.VariableMetadata(nnx.Variable(1.0)))

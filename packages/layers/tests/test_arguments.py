"""Arguments of constructors: what flax takes is taken, anything else is an error that names it.

The layers and their arguments are found by reflection, so that a new layer is tested as it is
written: every argument of every layer is given every value of its kind that means nothing.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
import moduli_layers as layers
from moduli.errors import ModuliError

GIVEN: dict[str, Any] = {
    "Conv": {"in_features": 4, "out_features": 4, "kernel_size": (3,)},
    "ConvTranspose": {"in_features": 4, "out_features": 4, "kernel_size": (3,)},
    "Einsum": {"einsum_str": "ab,bc->ac", "kernel_shape": (4, 4), "bias_shape": (4,)},
    "Dropout": {"rate": 0.5},
    "StochasticDepth": {"rate": 0.5},
    "GroupNorm": {"num_features": 4, "num_groups": 2},
    "MLP": {"in_features": 4, "hidden_features": (4,), "out_features": 4},
    "MultiHeadAttention": {"num_heads": 2, "in_features": 4},
    "LoRALinear": {"in_features": 4, "out_features": 4, "lora_rank": 2},
    "RoPE": {"embedding_size": 4, "max_seq_len": 4},
}
MADE: dict[str, Any] = {
    "cell": lambda: layers.GRUCell(4, 4, rngs=moduli.Rngs(0)),
    "layer_instance": lambda: layers.Linear(4, 4, rngs=moduli.Rngs(0)),
    "forward_rnn": lambda: layers.RNN(layers.GRUCell(4, 4, rngs=moduli.Rngs(0))),
    "backward_rnn": lambda: layers.RNN(layers.GRUCell(4, 4, rngs=moduli.Rngs(0))),
    "block": lambda: lambda rngs: layers.Linear(4, 4, rngs=rngs),
    "rngs": lambda: moduli.Rngs(0),
}
BAD: dict[str, tuple[Any, ...]] = {
    "int": (4.0, "4", True, jnp.ones(2), [4], {}, len),
    "int | Sequence[int]": (4.5, "4", False, [4.0], [[4]], jnp.ones((1, 1), int), {4.5}),
    "Sequence[int]": (1, "1", [1.5], ["1"]),
    "bool": ("no", 2, [True], 0.5, jnp.ones(2)),
    "float": ("0.5", True, [0.5], len),
    "DTypeLike": ("float99", jnp.ones(2), 3, "S4", [("a", int)]),
    "initializers.Initializer": ("normal", 0.0, jnp.ones(4), layers.initializers.lecun_normal),
    "Mapping[str, Any]": ("a", 3, {3: 1}),
    "lax.PrecisionLike": ("nonsense", 3.5, jnp.ones(2)),
    "PromoteDtype": ("f", 3),
    "Callable[..., Any]": ("tanh", 3),
    "Callable[..., jax.Array]": ("dot", 3),
    "type[moduli.Variable[Any]]": ("Param", int),
    "moduli.Module": ("layer", None, int),
    "str": (3, ["a", []]),
    "str | None": (3.0, [[]]),
    "Padding": (1.5, [1.5], len, {}),
    "Mapping[int, int]": ([1], {0: 1.5}, [(0,)]),
    "Sequence[Sequence[int]]": (1, [1], [[0.5]]),
    "moduli.Rngs": (None, 0, "params"),
}
BAD["Axes"] = BAD["int | Sequence[int]"]
OPTIONAL = " | None"


def classes() -> list[type]:
    """Returns the public layers that are made by a constructor of ours."""
    found = [getattr(layers, name) for name in dir(layers)]
    return [
        found_class
        for found_class in found
        if isinstance(found_class, type)
        and issubclass(found_class, moduli.Module)
        and found_class.__name__ not in ("Sequential", "RNNCellBase")
    ]


def parameters_of(layer: type) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a layer's constructor."""
    return dict(list(inspect.signature(layer.__init__).parameters.items())[1:])


def arguments(layer: type) -> dict[str, Any]:
    """Returns arguments with which a layer can be made."""
    parameters = parameters_of(layer)
    given = dict(GIVEN.get(layer.__name__, {}))
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name in MADE and (required or name == "rngs"):
            given[name] = MADE[name]()
        elif required and named and name not in given:
            given[name] = 4
    return given


def wrong() -> list[Any]:
    """Returns every layer, argument and value that it must refuse."""
    cases = []
    for layer in classes():
        for name, parameter in parameters_of(layer).items():
            kind = parameter.annotation
            values = BAD.get(kind, BAD.get(str(kind).removesuffix(OPTIONAL), ()))
            if str(kind).endswith(OPTIONAL):
                values = tuple(value for value in values if value is not None)
            if name == "carry_init":  # first called by initialize_carry
                values = values[:-1]
            if values:
                cases.append(pytest.param(layer, name, values, id=f"{layer.__name__}-{name}"))
    return cases


def test_every_layer_checks_its_arguments() -> None:
    for layer in classes():
        assert hasattr(layer.__init__, "__wrapped__"), layer
        layer(**arguments(layer))
    assert len(classes()) > 20


@pytest.mark.parametrize(("layer", "name", "values"), wrong())
def test_values_that_mean_nothing_are_refused_by_layer_and_argument(
    layer: type, name: str, values: tuple[Any, ...]
) -> None:
    given = arguments(layer)
    for value in values:
        with pytest.raises(ModuliError) as caught:
            layer(**{**given, name: value})
        assert layer.__name__ in str(caught.value)
        assert name in str(caught.value)
        assert "write" in str(caught.value)


@pytest.mark.parametrize("make", [np.int64, jnp.asarray, np.asarray], ids=["np", "jnp", "array"])
@pytest.mark.parametrize("layer", classes(), ids=lambda layer: layer.__name__)
def test_sizes_of_numpy_and_jax_make_the_same_layer(layer: type, make: Any) -> None:
    """The structure is equal, so that a function compiled for one serves the other."""
    if layer in (layers.RNN, layers.Bidirectional, layers.Stack):
        pytest.skip("made of functions or other layers, which differ")
    plain = arguments(layer)
    given = arguments(layer)
    for name, value in plain.items():
        kind = str(parameters_of(layer)[name].annotation)
        if "int" not in kind:
            continue
        given[name] = [make(n) for n in value] if isinstance(value, tuple) else make(value)
    expected, got = moduli.graphdef(layer(**plain)), moduli.graphdef(layer(**given))
    assert got == expected
    assert hash(got) == hash(expected)


def test_lists_and_arrays_are_tuples_afterwards() -> None:
    rngs = moduli.Rngs(0)
    sizes: Any
    for sizes in ([3, 3], np.array([3, 3]), jnp.array([3, 3])):
        layer = layers.Conv(3, 4, sizes, strides=[2, 2], padding=[(1, 1), 1], rngs=rngs)
        assert layer.kernel_size == (3, 3)
        assert layer(jnp.ones((1, 8, 8, 3))).shape == (1, 4, 4, 4)
        assert type(layer.kernel_size[0]) is int
    three, last, four = np.array([3]), np.array([-1]), jnp.array(4)
    general = layers.LinearGeneral(three, [2, 2], axis=last, rngs=rngs)  # type: ignore[arg-type]
    assert (general.in_features, general.out_features, general.axis) == ((3,), (2, 2), (-1,))
    linear = layers.Linear(3, four, rngs=rngs)  # type: ignore[arg-type]
    assert repr(linear.out_features) == "4"


@pytest.mark.parametrize("dtype", ["float32", np.float32, float, np.dtype("float32"), None])
def test_dtypes_in_any_spelling(dtype: Any) -> None:
    layer = layers.Linear(3, 4, dtype=dtype, param_dtype=dtype, rngs=moduli.Rngs(0))
    wanted = jnp.result_type(float) if dtype in (float, None) else jnp.float32
    assert layer.kernel.dtype == layer(jnp.ones((2, 3))).dtype == wanted


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (layers.initializers.lecun_normal, "returned a Drawn.*initializers.lecun_normal()"),
        (jax.nn.initializers.he_normal, "returned a function.*initializers.he_normal()"),
        (layers.initializers.normal, "cannot be called.*initializers.normal()"),
        (layers.initializers.zeros_init, "cannot be called"),
        (lambda key, shape, dtype: jnp.ones((2, 2)), r"shape \(2, 2\) when asked for"),
        (lambda key, shape, dtype: 0.0, "returned a float"),
        ("normal", r"initializers\.normal\(\)"),
        (0.5, r"initializers\.constant"),
    ],
)
def test_initializers_that_are_none(init: Any, words: str) -> None:
    with pytest.raises(ModuliError, match=f"Linear got kernel_init=.*{words}"):
        layers.Linear(3, 4, kernel_init=init, rngs=moduli.Rngs(0))
    with pytest.raises(ModuliError, match=f"MultiHeadAttention got out_bias_init=.*{words}"):
        layers.MultiHeadAttention(2, 4, out_bias_init=init, rngs=moduli.Rngs(0))


def test_an_initializer_that_cannot_make_the_dtype() -> None:
    with pytest.raises(
        ModuliError, match=r"Linear got kernel_init=.*not int(32|64); write param_dtype"
    ):
        layers.Linear(3, 4, param_dtype=int, rngs=moduli.Rngs(0))


def test_a_traced_size_is_refused() -> None:
    with pytest.raises(ModuliError, match=r"Linear got out_features=a traced value.*Python int"):
        jax.jit(lambda n: layers.Linear(3, n, rngs=moduli.Rngs(0)).kernel[...])(4)


def test_lists_of_numbers_are_inputs(standard_promotion: None) -> None:
    layer = layers.Linear(3, 4, rngs=moduli.Rngs(0))
    expected = layer(jnp.array([[1.0, 2.0, 3.0]]))
    inputs: Any
    for inputs in ([[1, 2, 3]], ((1.0, 2.0, 3.0),), np.array([[1, 2, 3]]), np.ones((1, 3))):
        assert layer(inputs).shape == (1, 4)
        if np.sum(inputs) == 6:
            np.testing.assert_allclose(layer(inputs), expected, rtol=1e-6)


def test_the_signature_is_that_of_the_constructor() -> None:
    assert next(iter(parameters_of(layers.Linear))) == "in_features"


@pytest.mark.parametrize("layer", classes(), ids=lambda layer: layer.__name__)
def test_calls_without_what_is_needed_or_with_a_misspelt_name(layer: type) -> None:
    given = arguments(layer)
    rngs = given.pop("rngs", None)
    needed = "rngs" in parameters_of(layer) and (
        parameters_of(layer)["rngs"].default is inspect.Parameter.empty
    )
    for wrong in ({}, {"rng": rngs}, {"key": 0}):
        if needed:
            with pytest.raises(
                TypeError, match=rf"^{layer.__name__}\..*; write rngs=moduli.Rngs\(0\)"
            ):
                layer(**given, **wrong)
    if "kernel_init" in parameters_of(layer):
        with pytest.raises(
            TypeError, match=r"write kernel_init=\.\.\. in the place of kernelinit=..."
        ):
            layer(**given, rngs=rngs, kernelinit=None)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters_of(layer).values()):
        with pytest.raises(TypeError, match=r"'nonsense'$"):
            layer(**arguments(layer), nonsense=1)


def test_an_error_of_type_inside_of_a_constructor_is_as_it_is() -> None:
    def init(key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Any:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        layers.Linear(3, 4, kernel_init=init, rngs=moduli.Rngs(0))


def test_a_first_carry_that_an_initializer_cannot_make() -> None:
    init: Any = layers.initializers.lecun_normal
    cell = layers.GRUCell(3, 4, carry_init=init, rngs=moduli.Rngs(0))
    with pytest.raises(
        ModuliError, match=r"GRUCell got carry_init=.*initializers.lecun_normal\(\)"
    ):
        cell.initialize_carry((2, 3), moduli.Rngs(0))

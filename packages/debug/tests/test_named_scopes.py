"""``named_scopes``: what XLA's programs say, and which programs are compiled when."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from debug_models import INPUTS, Dense, Tower, loss
from jax.experimental.compilation_cache import compilation_cache

import moduli as nnx
from moduli import errors
from moduli_debug import capture, named_scopes


def names(jitted: Any, *args: Any) -> set[str]:
    """The names of the operations in a compiled program."""
    text = jitted.lower(*args).compile().as_text()
    return set(re.findall(r'op_name="([^"]*)"', text))


def scopes(jitted: Any, *args: Any) -> set[str]:
    """What a compiled program says between the function's name and the operation's."""
    return {name.partition("/")[2].rpartition("/")[0] for name in names(jitted, *args)}


def scopes_of_call(jitted: Any, model: Any, x: jax.Array) -> set[str]:
    """What the compiled program of a call says; what is lowered by itself knows no root."""
    outer = jax.jit(lambda x: jitted(model, x))
    return {name.partition("/")[2] for name in scopes(outer, x)}


@pytest.fixture(autouse=True)
def no_persistent_cache() -> Iterator[None]:
    """Programs without scopes, which have no names in their keys, would come from other tests."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is in use
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


class Deep(nnx.Module):
    """Blocks whose parts have names, called by a method other than ``__call__``."""

    def __init__(self) -> None:
        self.blocks = [nnx.Dict(attention=Dense(3, 3, seed)) for seed in range(2)]

    def encode(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = jnp.tanh(block["attention"](x))
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.encode(x)


def test_a_compiled_program_names_the_paths() -> None:
    step = nnx.jit(lambda model, x: model(x))
    with named_scopes():
        found = scopes(step, Deep(), INPUTS)
    assert {"Deep", "Deep/blocks/0/attention", "Deep/blocks/1/attention"} <= found
    assert not any("blocks/0" in name and "blocks/1" in name for name in found)


def test_lowered_text_has_them_too() -> None:
    with named_scopes():
        lowered = nnx.jit(lambda model, x: model(x)).lower(Deep(), INPUTS)
    assert "Deep/blocks/1/attention/dot_general" in lowered.as_text(debug_info=True)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: nnx.grad(f),
        lambda f: nnx.grad(nnx.remat(f)),
        lambda f: nnx.vmap(f, in_axes=(None, 0)),
        lambda f: lambda m, x: nnx.cond(x.sum() > 0, f, lambda m, x: 0 * f(m, x), m, x),
        lambda f: lambda m, x: nnx.scan(lambda c, m: (c + f(m, x), None), in_axes=(nnx.Carry, None),
                                        out_axes=(nnx.Carry, 0), length=2)(0.0, m),
        lambda f: nnx.jit(f),
    ],
    ids=["grad", "remat", "vmap", "cond", "scan", "jit"],
)  # fmt: skip
def test_paths_stay_in_one_piece_inside_of_transforms(transform: Any) -> None:
    with named_scopes():
        found = names(nnx.jit(transform(loss)), Deep(), INPUTS)
    for number in range(2):
        assert any(f"/blocks/{number}/attention/" in name for name in found)


def test_off_means_no_scope_and_the_same_jaxpr() -> None:
    model = Deep()

    def text() -> str:
        return str(nnx.make_jaxpr(lambda model, x: model(x))(model, INPUTS))

    before = text()
    with named_scopes():
        text()
    assert text() == before
    assert scopes(nnx.jit(lambda model, x: model(x)), model, INPUTS) <= {""}


def test_switching_on_takes_effect_at_once_and_off_finds_the_earlier_program() -> None:
    traces = []

    @nnx.jit
    def step(model: Deep, x: jax.Array) -> jax.Array:
        traces.append(None)
        return model(x)

    model = Deep()
    without = step(model, INPUTS)
    with named_scopes():
        assert (step(model, INPUTS) == without).all()
        assert "Deep/blocks/0/attention" in scopes(step, model, INPUTS)
        step(model, INPUTS)
    assert len(traces) == 2
    step(model, INPUTS)
    assert scopes(step, model, INPUTS) <= {""}
    with named_scopes():
        step(model, INPUTS)
    assert len(traces) == 2


def test_the_persistent_cache_keeps_programs_with_names_apart(tmp_path: Path) -> None:
    model, options = Deep(), {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }  # fmt: skip
    before = {name: getattr(jax.config, name) for name in options}
    option = jax.config.jax_compilation_cache_include_metadata_in_key
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        assert scopes(nnx.jit(lambda model, x: model(x)), model, INPUTS) <= {""}
        assert any(tmp_path.iterdir())
        with named_scopes(), named_scopes():
            found = scopes(nnx.jit(lambda model, x: model(x)), model, INPUTS)
        assert "Deep/blocks/0/attention" in found
        assert scopes(nnx.jit(lambda model, x: model(x)), model, INPUTS) <= {""}
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert jax.config.jax_compilation_cache_include_metadata_in_key == option


def test_a_model_given_is_where_paths_begin() -> None:
    model, step = Deep(), nnx.jit(lambda model, x: model.encode(x))
    with named_scopes():
        assert "Dense" in scopes_of_call(step, model, INPUTS)
    with named_scopes(model):
        found = scopes_of_call(step, model, INPUTS)
    assert {"Deep/blocks/0/attention", "Deep/blocks/1/attention"} <= found


def test_models_of_two_classes_do_not_share_names() -> None:
    class Other(Deep):
        pass

    part, step = Dense(3, 3, 1), nnx.jit(lambda part, x: part(x))
    first, second = Deep(), Other()
    first.blocks[0]["attention"] = second.blocks[1]["attention"] = part
    with named_scopes(first):
        assert "Deep/blocks/0/attention" in scopes_of_call(step, part, INPUTS)
    with named_scopes(second):
        assert "Other/blocks/1/attention" in scopes_of_call(step, part, INPUTS)


def test_a_module_that_stands_elsewhere_is_shown_by_its_whole_path() -> None:
    class Caller(nnx.Module):
        def __init__(self, other: Dense) -> None:
            self.hidden = nnx.static(lambda x: x)
            self.other = other

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.other(x)

    class Shared(nnx.Module):
        def __init__(self) -> None:
            self.base = Dense(3, 3, 1)
            self.caller = Caller(self.base)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.caller(x)

    with named_scopes():
        found = scopes(nnx.jit(lambda model, x: model(x)), Shared(), INPUTS)
    assert "Shared/caller/base" in found


def test_scopes_end_with_the_call_also_on_exceptions() -> None:
    class Fails(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            raise KeyError("on purpose")

    class Catches(nnx.Module):
        def __init__(self) -> None:
            self.fails, self.dense = Fails(), Dense(3, 3, 1)

        def __call__(self, x: jax.Array) -> jax.Array:
            try:
                return self.fails(x)
            except KeyError:
                return self.dense(x)

    step = nnx.jit(lambda model, x: jnp.exp(model(x)))
    with named_scopes():
        found = names(step, Catches(), INPUTS)
    assert any(name.endswith("/Catches/dense/dot_general") for name in found)
    assert any(name.endswith("(<lambda>)/exp") for name in found)
    assert not any("fails" in name for name in found)


def test_works_with_capture_and_leaves_the_model_alone() -> None:
    model = Tower()
    before = nnx.graphdef(model), [sorted(vars(m)) for _, m in nnx.iter_modules(model)]
    with named_scopes(model):
        y, seen = capture(nnx.jit(lambda model, x: model(x)), nnx.Intermediate)(model, INPUTS)
    assert (nnx.graphdef(model), [sorted(vars(m)) for _, m in nnx.iter_modules(model)]) == before
    assert jnp.allclose(y, model(INPUTS))
    assert jnp.allclose(seen.blocks[1].out.value[0], y)


def test_what_is_no_module_is_an_error() -> None:
    with pytest.raises(errors.VariableError, match="got a function"), named_scopes(loss):  # type: ignore[arg-type]
        pass

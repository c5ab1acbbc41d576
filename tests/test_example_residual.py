"""examples/residual.py at a tiny size: it learns, saves, and computes in the dtypes it says."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def residual():
    """The example as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import residual

        yield residual
        for name in ("residual", "digits", "digits_report"):
            sys.modules.pop(name, None)


TINY = ["--width", "8", "--depth", "1"]


def test_it_learns_and_its_checkpoint_is_that_of_the_looped_form(residual, tmp_path) -> None:
    results = residual.main([*TINY, "--epochs", "6", "--out", str(tmp_path)])
    assert results.losses[-1] < 0.5 * results.losses[0]
    assert results.before < 0.4
    assert results.after > 0.8

    model = residual.ResNet(width=8, depth=1, rngs=nnx.Rngs(7))
    for stage in model.stages:
        stage.scan = False
    nnx.load(tmp_path / "model.npz", model)
    _, test_data = residual.load_data()
    assert residual.accuracy(model, test_data) == pytest.approx(results.after, abs=0.01)
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == results.parameters


def test_bfloat16_is_in_every_layer_but_the_head(residual) -> None:
    model = residual.ResNet(width=4, depth=2, rngs=nnx.Rngs(0))
    residual.use_bfloat16(model)
    seen = {}

    class Watch:
        @nnx.hookimpl
        def moduli_after_call(self, module, output) -> None:
            if not isinstance(module, (nnx.Stack, residual.ResNet)):
                seen.setdefault(type(module).__name__, set()).add(output.dtype.name)

    with nnx.using(Watch()):
        logits = model(jnp.ones((2, 8, 8, 1)))
    assert seen == {
        "Conv": {"bfloat16"},
        "BatchNorm": {"bfloat16"},
        "ResidualBlock": {"bfloat16"},
        "Linear": {"float32"},
    }
    assert logits.dtype == jnp.float32
    stored = {p.dtype.name for p in jax.tree.leaves(nnx.state(model))}
    assert stored == {"float32"}


def test_bfloat16_learns(residual, tmp_path) -> None:
    results = residual.main([*TINY, "--epochs", "3", "--bfloat16", "--out", str(tmp_path)])
    assert results.losses[-1] < 0.9 * results.losses[0]
    assert np.isfinite(results.losses).all()


def test_a_fresh_block_is_the_identity(residual) -> None:
    block = residual.ResidualBlock(3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    np.testing.assert_array_equal(block(x), x)


def test_wrong_options_are_refused(residual, capsys) -> None:
    with pytest.raises(SystemExit):
        residual.parse_options(["--depth", "0"])
    assert "--depth must be at least 1" in capsys.readouterr().err

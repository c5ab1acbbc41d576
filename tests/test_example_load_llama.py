"""examples/load_llama.py at its small size: it loads, writes with a cache, trains an adapter."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def llama():
    """The example as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import load_llama

        yield load_llama
        sys.modules.pop("load_llama", None)


def test_the_example_runs(llama, tmp_path, capsys) -> None:
    losses = llama.main(["--out", str(tmp_path), "--steps", "12"])
    assert losses[-1] < losses[0] - 0.3
    assert "model.layers.{0..1}.self_attn.q_proj.weight" in capsys.readouterr().out
    names = set(nnx.read_tensors(tmp_path / "adapter" / "adapter_model.safetensors"))
    start = "base_model.model.model.layers.0.self_attn."
    assert {n for n in names if n.startswith(start)} == {
        f"{start}{part}_proj.lora_{which}.weight" for part in "qv" for which in "AB"
    }
    assert len(list((tmp_path / "random").glob("*.safetensors"))) > 1


def test_what_it_writes_is_what_it_would_choose_without_a_cache(llama, tmp_path) -> None:
    model = llama.Llama(llama.Config(num_hidden_layers=1), rngs=nnx.Rngs(0))
    tokens = jnp.array([[3, 1, 4], [1, 5, 9]])
    written = llama.generate(model, tokens, 3)
    for _ in range(3):
        chosen = jnp.argmax(model(tokens)[:, -1:], -1)
        tokens = jnp.concatenate([tokens, chosen], 1)
    np.testing.assert_array_equal(written, tokens[:, 3:])

"""What a user writes and that has no effect on a load or save is said; so is why one cannot be."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import moduli as nnx
from moduli_interop import WeightsMismatchError, load_weights, read_tensors, save_weights
from moduli_layers import Linear
from moduli_layers.counterparts import Tensor

NAMES = {"enc.{n}.fc": "blocks.{n}.up", "lm_head": "head"}


class Model(nnx.Module):
    """Two blocks and a head."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.blocks = [nnx.Dict(up=Linear(2, 3, rngs=rngs)) for _ in range(2)]
        self.head = Linear(3, 2, use_bias=False, rngs=rngs)


def theirs():
    shapes = {"lm_head.weight": (2, 3)}
    for n in range(2):
        shapes |= {f"enc.{n}.fc.weight": (3, 2), f"enc.{n}.fc.bias": (3,)}
    return {name: np.full(shape, 2, np.float32) for name, shape in shapes.items()}


def refused(source, match, error=WeightsMismatchError, model=None, **options):
    """Checks that a load is refused and leaves the model as it was."""
    model = Model() if model is None else model
    before = [v.get_raw_value() for v in nnx.to_flat_state(nnx.state(model)).values()]
    with pytest.raises(error, match=match) as caught:
        load_weights(source, model, **options)
    after = [v.get_raw_value() for v in nnx.to_flat_state(nnx.state(model)).values()]
    assert all(one is other for one, other in zip(before, after, strict=True))
    return str(caught.value)


@pytest.mark.parametrize("ignore", ["lm_haed.*", ["lm_haed.*", "extra.*"]])
def test_a_pattern_of_no_tensor_is_said(ignore):
    tensors = theirs() if isinstance(ignore, str) else {**theirs(), "extra.x": np.ones(1)}
    options = {"names": NAMES, "ignore": ignore}
    report = load_weights(tensors, Model(), **options)
    assert report.idle == ("ignore='lm_haed.*'; did you mean 'lm_head.weight'?",)
    assert "1 of ignore= and names= had no effect:\n  ignore='lm_haed.*';" in str(report)
    refused(tensors, "ignore: no tensor is called 'lm_haed", strict=False, **options)
    dry = load_weights(tensors, Model(), strict=False, dry_run=True, **options)
    assert dry.problems[0].startswith("ignore: no tensor is called 'lm_haed.*'")
    assert "ignore='lm_haed.*'" in refused({"x": np.ones(1)}, "nothing was loaded", **options)


def test_a_function_passes_over_what_may_be_missing():
    options = {"names": NAMES, "ignore": lambda name: name.startswith("lm_haed")}
    assert load_weights(theirs(), Model(), strict=False, **options).idle == ()


@pytest.mark.parametrize("ignore", ["optimizer.*", "optimizer.x", "module.extra", "extra"])
def test_a_pattern_is_of_names_with_and_before_the_prefix(ignore):
    tensors = {
        "module.weight": np.ones((3, 2), np.float32),
        "module.extra": np.ones(1),
        "optimizer.x": np.ones(1),
    }
    model = Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    options = {"prefix": "module.", "strict": False, "ignore": ignore}
    assert load_weights(tensors, model, **options).idle == ()


@pytest.mark.parametrize(
    ("only", "match"),
    [
        (["blocks", "haed"], "only='haed' selects no Variable of the model; did you mean 'head'"),
        (["blocks/0/upp"], "did you mean 'blocks/0/up'"),
        ("lm_head.weight", "it is the name of a tensor, .* write 'head/kernel'"),
        (nnx.BatchStat, "selects no Variable of the model"),
    ],
)
def test_each_path_of_only_has_to_be_there(only, match, tmp_path):
    refused(theirs(), match, nnx.errors.ModuliError, names=NAMES, only=only, strict=False)
    with pytest.raises(nnx.errors.ModuliError, match=match):
        save_weights(tmp_path / "m.safetensors", Model(), names=NAMES, only=only)
    load_weights(theirs(), Model(), names=NAMES, only=["blocks[0]", "head", "blocks.*.up.bias"])


@pytest.mark.parametrize("strict", [True, False])
def test_rules_for_parts_that_a_model_lacks_are_listed(strict, tmp_path):
    optional = Tensor("positions.embedding", optional=True)
    names = {**NAMES, "enc.{n}.pool": "blocks.{n}.pooler", "wpe.weight": optional}
    model = Model()
    report = load_weights(theirs(), model, names=names, strict=strict)
    assert report.idle == (
        "the rule 'enc.{n}.pool': 'blocks.{n}.pooler'",
        "the rule 'wpe.weight': 'positions.embedding'",
    )
    save_weights(tmp_path / "m.safetensors", model, names=names)  # and nothing is warned of
    assert set(read_tensors(tmp_path / "m.safetensors")) == set(theirs())
    names["wpe.weight"] = Tensor("positions.embedding")
    refused(theirs(), "optional=True is for", nnx.NameMapError, names=names, strict=strict)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lm_head": "haed"}, "rule 'lm_head': 'haed' names; did you mean 'head'"),
        ({"enc.{n}.fc": "blocks.{n}.upp"}, "did you mean 'blocks.0.up'"),
    ],
)
def test_a_wrong_rule_does_not_write_other_names_in_silence(wrong, told, tmp_path):
    with pytest.warns(UserWarning, match=re.escape(told)):
        save_weights(tmp_path / "m.safetensors", Model(), names={**NAMES, **wrong})


@pytest.mark.parametrize("given", [3, b"fc.weight", ["fc"]])
def test_a_function_of_names_gives_texts(given):
    match = "names gives .* return our path"
    refused(theirs(), match, nnx.errors.ModuliError, names=lambda name: given)


@pytest.mark.filterwarnings("ignore:.*(quantized|ComplexHalf):UserWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_no_array_says_what_it_is(strict, tmp_path):
    torch = pytest.importorskip("torch")
    plain = torch.ones(3, 2)
    others = {
        "meta": torch.empty(3, 2, device="meta"),
        "plain array": plain.to_sparse(),
        "dequantize": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "complex32": plain.to(torch.complex32),
    }
    for said, tensor in others.items():
        held = {"weight": tensor, "other": plain}
        torch.save(held, tmp_path / "m.pt")
        for source in (held, tmp_path / "m.pt"):
            model = Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
            match = f"unreadable: .*{said}"
            text = refused(source, match, model=model, strict=strict, ignore="other")
            assert "cast=True" not in text
            assert "shape" not in text
            load_weights(source, model, names={"other": "weight"}, ignore="weight", strict=strict)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_shapes_of_a_mesh_are_filled_on_its_devices(kind, tmp_path):
    def make():
        layout = {"out_sharding": ("x", "y")}
        return Linear(4, 2, kernel_metadata=layout, rngs=nnx.Rngs(0))

    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind, kind))
    source = {"weight": np.arange(8, dtype=np.float32).reshape(2, 4), "bias": np.ones(2)}
    with jax.set_mesh(mesh):
        model, other, third = (nnx.eval_shape(make) for _ in range(3))
        load_weights(source, model, cast=True)
        assert model.kernel.value.sharding == NamedSharding(mesh, PartitionSpec("x", "y"))
        np.testing.assert_array_equal(model.kernel.value, source["weight"].T)
    nnx.save(tmp_path / "checkpoint", Linear(4, 2, rngs=nnx.Rngs(1)))
    if kind is AxisType.Explicit:  # the shapes know of the mesh
        match = r"mesh of \(x=2, y=2\), of which it knows no devices, .*set_mesh"
        refused(source, match, nnx.errors.StructureError, model=other, cast=True)
        with pytest.raises(nnx.errors.StructureError, match=match):
            nnx.load(tmp_path / "checkpoint", third)
        with jax.set_mesh(mesh):
            nnx.load(tmp_path / "checkpoint", third)
        assert third.kernel.value.sharding == NamedSharding(mesh, PartitionSpec("x", "y"))
    else:
        load_weights(source, other, cast=True)
        assert isinstance(other.kernel.value, jnp.ndarray)


def test_a_prefix_that_two_models_of_a_file_have_is_named_for_both():
    state = {"weight": np.ones((3, 2), np.float32), "bias": np.ones(3, np.float32)}
    model = Linear(2, 3, rngs=nnx.Rngs(0))
    text = refused({"model": state, "ema": state}, "does not fit", model=model)
    assert "write prefix='ema.' or prefix='model.'" in text

"""tabulate: rows, sizes, what it shows, what it leaves alone, and its errors."""

from __future__ import annotations

import functools
import html.parser
import io
import pickle
import re
import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
import rich.console
from rich.text import Text
from summary_models import (
    Block,
    ResNet,
    Transformer,
    abstract,
    resnet_parameters,
    shape,
    transformer_parameters,
)

import moduli as nnx
import moduli_debug
from moduli import errors
from moduli_debug import Column, Row, Size, Summary

tabulate = functools.partial(moduli_debug.tabulate, compute_flops=True, compute_vjp_flops=True)
TOKENS = shape(2, 5, dtype=jnp.int32)


def rows_of(summary: Summary) -> dict[str, Row]:
    return {row.name: row for row in summary.rows}


def quick(model: Any, *inputs: Any, **options: Any) -> Summary:
    """Without FLOPs, which have their own tests."""
    return moduli_debug.tabulate(model, *inputs, **options)


def bound(model: Any) -> Any:
    """The model's objects and what each of its classes holds."""
    return [(path, id(value)) for path, value in nnx.iter_graph(model)]


# -- sizes -----------------------------------------------------------------------------------------


def test_sizes_of_a_resnet_are_those_of_the_closed_form() -> None:
    width, stages, classes = 4, 3, 10
    model = abstract(lambda rngs: ResNet(width, stages, classes, rngs))
    summary = quick(model, shape(2, 16, 16, 3))
    count = resnet_parameters(width, stages, classes)
    assert summary.sizes["Param"] == Size(count, 4 * count)
    norms = width + sum(4 * width * 2**stage for stage in range(stages))  # four in each stage
    assert summary.sizes["BatchStat"].count == 2 * norms
    rows = rows_of(summary)
    assert rows["stages/2"].sizes["Param"].count == 9 * (4 * 8 + 8 * 8) + 4 * 8 + 4 * 8
    assert rows["stages/2/conv1"].sizes == {"Param": Size(9 * 4 * 8, 36 * 4 * 8)}
    assert rows["stages/2"].outputs == shape(2, 8, 8, 8)
    assert rows["head"].args == (shape(2, 16),)


@pytest.mark.parametrize("scan", [False, True])
def test_sizes_of_a_transformer_are_those_of_the_closed_form(scan: bool) -> None:
    vocabulary, size, depth = 16, 8, 3
    model = abstract(lambda rngs: Transformer(vocabulary, size, depth, scan, rngs))
    summary = quick(model, TOKENS)
    count = transformer_parameters(vocabulary, size, depth)
    assert summary.sizes == {"Param": Size(count, 4 * count)}
    rows = rows_of(summary)
    if scan:  # one row, with the values of all blocks
        assert rows["blocks/block/attention"].sizes["Param"].count == depth * 4 * size**2
        assert rows["blocks/block/attention/query"].held[0].value.shape == (depth, size, size)
    else:
        assert rows["blocks/2/attention"].sizes["Param"].count == 4 * size**2
    assert rows[""].outputs == shape(2, 5, vocabulary)


def test_sizes_are_those_of_flax() -> None:
    from flax import nnx as flax_nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs))
    theirs = flax_nnx.tabulate(
        flax_nnx.Sequential(
            flax_nnx.Linear(3, 5, rngs=flax_nnx.Rngs(0)),
            flax_nnx.BatchNorm(5, rngs=flax_nnx.Rngs(0)),
        ),
        jnp.ones((2, 3), jnp.float32),
        console_kwargs={"force_terminal": False, "width": 200},
    )
    summary = quick(model, jnp.ones((2, 3), jnp.float32))
    for text in ("30 (120 B)", "10 (40 B)", "20 (80 B)", "float32[2,5]", "layers/0", "BatchNorm"):
        assert text in theirs and text in summary


def test_what_is_shared_counts_once_in_each_row_and_in_the_total() -> None:
    model = abstract(lambda rngs: Transformer(16, 8, 1, False, rngs))
    summary = quick(model, TOKENS)
    rows = rows_of(summary)
    assert rows["embed"].sizes["Param"].count == 16 * 8
    [tied] = rows[""].held
    assert (tied.name, tied.kind, tied.same_as) == ("tied", "Param", "embed/embedding")
    assert "tied: float32[16,8] (= embed/embedding)" in summary


def test_a_shared_module_is_one_row_that_says_where_else_it_stands() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = Block(8, 2, rngs)
            self.second = self.first

        def __call__(self, x: Any) -> Any:
            return self.second(self.first(x))

    summary = quick(abstract(Model), shape(2, 5, 8))
    rows = rows_of(summary)
    assert "second" not in rows and "second/attention" not in rows
    assert rows["first"].calls == rows["first/attention"].calls == 2
    assert rows["first"].other_paths == (("second",),)
    assert rows["first/attention"].other_paths == ()  # that goes without saying
    assert "(= second)" in summary
    assert rows[""].sizes == rows["first"].sizes
    assert [row.name for row in quick(abstract(Model), shape(2, 5, 8), filter="second").rows] == [
        "first"
    ]


def test_kinds_arrays_and_pytrees() -> None:
    class Mixed(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.scale = nnx.Param(jnp.ones((2, 3), jnp.bfloat16))
            self.table = jnp.ones(4, jnp.int8)
            self.pair = nnx.Cache(
                {"key": jnp.ones(2, jnp.float32), "value": jnp.ones((2, 2), jnp.float32)}
            )
            self.count = nnx.Variable(0)
            self.listed = [
                nnx.Param(jnp.ones(1, jnp.float32)),
                nnx.Dict(deep=nnx.Param(jnp.ones(1, jnp.float32))),
            ]
            self.rngs = rngs

        def __call__(self, x: Any) -> Any:
            return x * 2

    summary = quick(Mixed(nnx.Rngs(0)), shape(1))
    number = jnp.asarray(0).nbytes  # 4, with x64 8
    assert summary.sizes == {
        "Param": Size(8, 20),
        "Cache": Size(6, 24),
        "RngState": Size(2, 12),
        "Variable": Size(1, number),
        "array": Size(4, 4),
    }
    assert next(iter(summary.sizes)) == "Param"
    [row] = summary.rows
    names = {held.name for held in row.held if held.kind == "Param"}
    assert names == {"scale", "listed/0", "listed/1/deep"}
    assert "pair: {key: float32[2], value: float32[2,2]}" in summary
    assert f"Total Parameters: 8 (20 B); with all other state: 21 ({60 + number} B)" in summary


# -- rows ------------------------------------------------------------------------------------------


def test_rows_stand_in_the_order_of_calls_below_their_callers() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.last = nnx.Linear(2, 2, rngs=rngs)
            self.blocks = [nnx.Sequential(nnx.Linear(2, 2, rngs=rngs)) for _ in range(11)]
            self.unused = nnx.Linear(2, 3, rngs=rngs)
            self.empty = nnx.Sequential()

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return self.last(x)

    summary = quick(abstract(Model), shape(1, 2))
    names = ["", *(f"blocks/{n}{end}" for n in range(11) for end in ("", "/layers/0"))]
    assert [row.name for row in summary.rows] == [*names, "last", "unused"]
    unused = rows_of(summary)["unused"]
    assert (unused.calls, unused.args, unused.outputs) == (0, (), None)
    assert unused.sizes["Param"].count == 9


def test_inputs_and_outputs_of_any_structure() -> None:
    class Pair(NamedTuple):
        left: Any
        right: Any

    class Inner(nnx.Module):
        def __call__(self, pair: Any, *, scale: Any, mode: str = "a") -> Any:
            return Pair(pair[0] * scale, None), {"sum": pair[0].sum(), "names": ["x"]}

    class Outer(nnx.Module):
        def __init__(self) -> None:
            self.inner = Inner()

        def __call__(self, x: Any, flag: bool, rngs: nnx.Rngs) -> Any:
            assert flag is True  # it is passed on as it is
            noise = rngs.normal((2,), jnp.float32)
            return self.inner((x + noise, 3), scale=2.5, mode="b")

    summary = quick(Outer(), shape(2), flag=True, rngs=nnx.Rngs(0))
    inner = rows_of(summary)["inner"]
    assert inner.args == ((shape(2), 3),)
    assert inner.kwargs == {"scale": 2.5, "mode": "b"}
    assert inner.outputs == (Pair(shape(2), None), {"sum": shape(), "names": ["x"]})
    for text in ("(float32[2], 3)", "scale=2.5", "mode='b'", "flag=True", "rngs=Rngs"):
        assert text in summary
    assert "Pair(left=float32[2], right=None)" in summary
    assert "{names: ['x'], sum: float32[]}" in summary


def test_inputs_by_keyword_have_gradients_too() -> None:
    model = abstract(lambda rngs: nnx.Linear(8, 8, use_bias=False, rngs=rngs))
    by_position, by_keyword = tabulate(model, shape(4, 8)), tabulate(model, inputs=shape(4, 8))
    assert by_keyword.vjp_flops == by_position.vjp_flops == 3 * 2 * 4 * 64
    assert by_keyword.rows[0].kwargs == {"inputs": shape(4, 8)}


def test_a_method_of_another_name() -> None:
    class Coder(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.encoder, self.decoder = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))

        def encode(self, x: Any, twice: bool = False) -> Any:
            x = self.encoder(x)
            return nnx.jit(lambda m, x: m(x))(self.encoder, x) if twice else x

    summary = tabulate(abstract(Coder), shape(1, 4), method="encode", twice=True)
    rows = rows_of(summary)
    assert rows[""].outputs == shape(1, 4)
    assert (rows["encoder"].calls, rows["decoder"].calls) == (2, 0)
    assert rows[""].flops == rows["encoder"].flops == 2 * (2 * 16 + 4)


class Coder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, 4, use_bias=False, rngs=rngs)

    def size(self) -> int:
        return 4

    def encode(self, x: Any) -> Any:
        return self._twice(self.linear(x))

    def _twice(self, x: Any) -> Any:
        return self.again(self.linear(x))

    def again(self, x: Any) -> Any:
        return self.linear(x)


class Coded(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.coder, self.embed = Coder(rngs), nnx.Embed(5, 4, rngs=rngs)
        self.parts: dict[str, Any] = {}

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for _ in range(self.coder.size() // 2):
            x = self.helper(x)
        return self.embed.attend(x)

    def helper(self, x: Any) -> Any:
        return self.coder.encode(x)


@pytest.mark.parametrize("lift", [lambda f: f, nnx.jit, nnx.remat], ids=["plain", "jit", "remat"])
def test_methods_called_on_submodules_have_rows(lift: Any) -> None:
    class Lifted(Coded):
        def helper(self, x: Any) -> Any:
            return lift(lambda coder, x: coder.encode(x))(self.coder, x)

    summary = tabulate(abstract(Lifted), TOKENS)
    rows = rows_of(summary)
    assert list(rows) == [
        *("", "embed", "embed/attend", "helper"),
        *("coder/encode", "coder/linear", "coder/again"),
    ]
    product = 2 * 10 * 4 * 4
    encode, attend = rows["coder/encode"], rows["embed/attend"]
    assert (encode.path, encode.method, encode.type) == (("coder",), "encode", Coder)
    assert (encode.calls, encode.flops) == (2, 6 * product)
    assert (rows["coder/linear"].calls, rows["coder/linear"].flops) == (6, 6 * product)
    assert encode.args == (shape(2, 5, 4),) and encode.outputs == shape(2, 5, 4)
    assert attend.outputs == shape(2, 5, 5) and attend.flops == 2 * 10 * 4 * 5
    assert attend.sizes == rows["embed"].sizes == {"Param": Size(20, 80)}
    assert (rows["embed"].calls, attend.calls) == (1, 1)
    assert rows[""].flops >= encode.flops + attend.flops
    assert (rows["helper"].path, rows["helper"].method) == ((), "helper")
    assert rows["helper"].flops == encode.flops >= rows["coder/again"].flops
    assert list(rows_of(tabulate(abstract(Lifted), TOKENS, depth=1))) == ["", "embed", "helper"]
    most = 4.05 if lift is nnx.remat else 3.1  # its forward pass runs again, but for the last step
    assert encode.vjp_flops is not None and 3 <= encode.vjp_flops / encode.flops <= most


def test_the_names_and_columns_are_flaxs() -> None:
    theirs = pytest.importorskip("flax.nnx")

    def first_cells(text: str) -> list[str]:
        lines = [line.split("│")[1].strip() for line in plain(text) if "│" in line]
        return [line for line in lines if line and line != "total"]

    def plain(text: str) -> list[str]:
        return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()

    def headings(text: str) -> list[str]:
        line = next(line for line in plain(text) if "path" in line)
        return [word.strip() for word in line.strip("┃ ").split("┃")]

    def tables(nnx: Any) -> list[str]:
        class Block(nnx.Module):
            def __init__(self, rngs: Any) -> None:
                self.linear = nnx.Linear(4, 4, rngs=rngs)

            def forward(self, x: Any, options: Any) -> Any:
                return self.linear(x), {}

        class Model(nnx.Module):
            def __init__(self, rngs: Any) -> None:
                self.block, self.none = Block(rngs), {}

            def __call__(self, x: Any) -> Any:
                return self.block.forward(x, {"a": {}})[0]

        choices = [(False, False), (True, False), (True, True)]
        options = {"console_kwargs": {"width": 200, "no_color": True}}
        return [
            nnx.tabulate(
                Model(nnx.Rngs(0)),
                jnp.ones((1, 4), jnp.float32),
                compute_flops=forward,
                compute_vjp_flops=backward,
                **options,
            )
            for forward, backward in choices
        ]

    for ours, other in zip(tables(nnx), tables(theirs), strict=True):
        assert first_cells(ours) == first_cells(other) == ["block/forward", "block/linear"]
        assert headings(ours) == headings(other)


def test_methods_that_a_module_calls_of_itself_have_rows_as_in_flax() -> None:
    theirs = pytest.importorskip("flax.nnx")

    def cells(lib: Any) -> list[list[str]]:
        class Base(lib.Module):
            def encode(self, x: Any) -> Any:
                return self.into(x)

        class Coder(Base):
            def __init__(self, rngs: Any) -> None:
                self.into, self.out = lib.Linear(4, 3, rngs=rngs), lib.Linear(3, 4, rngs=rngs)

            def encode(self, x: Any) -> Any:
                return super().encode(x)

            def decode(self, z: Any, *, scale: Any) -> Any:
                return self.out(z) * scale

            def _halved(self, x: Any) -> Any:
                return x[:1]

            def __call__(self, x: Any) -> Any:
                return self.decode(self.encode(self._halved(x)), scale=x)

        text = lib.tabulate(
            Coder(lib.Rngs(0)),
            jnp.ones((2, 4), jnp.float32),
            console_kwargs={"width": 200, "no_color": True},
        )
        assert "flops" not in text  # unless they are asked for
        lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
        rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:5]] for line in lines]
        return [[row[0], row[1], row[3]] for row in rows if len(row) == 4 and row[1]]

    assert cells(nnx) == cells(theirs)
    assert [name for name, *_ in cells(nnx)] == ["path", "", "encode", "into", "decode", "out"]


def test_layers_are_no_collections_of_methods() -> None:
    model = abstract(lambda rngs: nnx.RNN(nnx.LSTMCell(4, 5, rngs=rngs), rngs=rngs))
    rows = quick(model, shape(2, 3, 4)).rows
    assert {row.method for row in rows} == {"__call__", "initialize_carry"}


def test_metrics_and_other_pytrees() -> None:
    class Both(nnx.Pytree):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linear = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.linear(x) + 1

    summary = tabulate(abstract(Both), shape(3, 4))
    assert [row.name for row in summary.rows] == ["", "linear"]
    assert summary.flops == summary.rows[1].flops + 3 * 2
    average = nnx.metrics.Average()
    [row] = quick(average, method="update", values=shape(3)).rows
    assert row.kwargs == {"values": shape(3)} and row.sizes["MetricState"].count == 2
    assert average.count.value == 0


def test_depth_filter_and_row_filter() -> None:
    model = abstract(lambda rngs: Transformer(16, 8, 2, False, rngs))

    def names(**options: Any) -> list[str]:
        summary = quick(model, TOKENS, **options)
        assert summary.sizes["Param"].count == transformer_parameters(16, 8, 2)  # of the model
        return [row.name for row in summary.rows]

    assert names(depth=0) == [""]
    assert names(depth=1) == ["", "embed", "norm"]
    assert names(depth=2) == ["", "embed", "blocks/0", "blocks/1", "norm"]
    assert names(filter="blocks/*/attention") == ["blocks/0/attention", "blocks/1/attention"]
    assert names(filter=nnx.All(nnx.Linear, "blocks/1/*")) == ["blocks/1/up", "blocks/1/down"]
    assert names(filter=(Block, "norm"), depth=1) == ["norm"]
    assert names(row_filter=lambda row: row.type is nnx.Embed) == ["embed"]


def test_modules_that_a_call_makes_count_for_their_maker() -> None:
    class Maker(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0))(x)

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.maker = Maker()

        def __call__(self, x: Any) -> Any:
            return self.maker(x)

    summary = tabulate(Model(), shape(1, 4), compute_vjp_flops=False)
    assert [row.name for row in summary.rows] == ["", "maker"]
    assert summary.flops == summary.rows[1].flops > 2 * 16


# -- nothing is left behind ------------------------------------------------------------------------


def test_the_model_is_as_before_and_nothing_is_run() -> None:
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
    )
    before = (
        nnx.graphdef(model),
        bound(model),
        [dict(vars(type(m))) for _, m in model.iter_modules()],
    )
    values = jax.tree.map(jnp.copy, nnx.state(model).to_pure_dict())
    summary = tabulate(model, jnp.ones((2, 3)))
    assert summary.flops > 0
    after = (
        nnx.graphdef(model),
        bound(model),
        [dict(vars(type(m))) for _, m in model.iter_modules()],
    )
    assert after[0] is before[0] and after[1:] == before[1:]
    new = nnx.state(model).to_pure_dict()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), values, new))


def test_a_model_that_is_not_allocated() -> None:
    model = abstract(lambda rngs: nnx.Linear(1_000_000, 1_000_000, rngs=rngs))
    summary = tabulate(model, shape(8, 1_000_000))
    assert summary.sizes["Param"] == Size(10**12 + 10**6, 4 * (10**12 + 10**6))
    assert summary.flops == pytest.approx(2 * 8 * 10**12 + 8 * 10**6)  # XLA counts in float32
    assert "16.0 T" in summary and "4.0 TB" in summary
    assert isinstance(model.kernel.value, jax.ShapeDtypeStruct)


def test_a_function_that_was_compiled_before_is_still_seen() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.blocks = [nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(2)]

        @nnx.jit
        def run(self, block: nnx.Module, x: Any) -> Any:
            return block(x)

        def __call__(self, x: Any) -> Any:
            for block in [*self.blocks, self.blocks[0]]:
                x = self.run(block, x)
            return x

    model, x = Model(nnx.Rngs(0)), jnp.ones((1, 4), jnp.float32)
    model(x)
    for _ in range(2):
        rows = rows_of(tabulate(model, x, compute_vjp_flops=False))
        assert [rows[f"blocks/{n}"].flops for n in range(2)] == [64, 32]
        assert rows[""].flops == 96


def test_after_an_error_nothing_is_left() -> None:
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(5, 6, rngs=nnx.Rngs(0)))
    before = nnx.graphdef(model), bound(model)
    with pytest.raises(errors.ModuliError):
        tabulate(model, jnp.ones((2, 3)))
    assert (nnx.graphdef(model), bound(model)) == before
    assert nnx.plugins.recordings() == ()


# -- what it looks like ----------------------------------------------------------------------------


def small() -> Summary:
    model = abstract(lambda rngs: nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu))
    return tabulate(model, shape(2, 3))


def test_it_is_a_str() -> None:
    summary = small()
    assert isinstance(summary, str) and repr(summary) == str(summary)
    lines = summary.splitlines()
    assert lines[0] == "Sequential Summary"
    heading = [cell.strip() for cell in lines[2].strip("┃").split("┃")]
    assert heading == ["path", "type", "inputs", "outputs", "flops", "vjp_flops", "Param"]
    assert "bias: float32[4]" in summary and "kernel: float32[3,4]" in summary
    assert "16 (64 B)" in summary
    assert "\x1b" not in summary  # pytest's output is no terminal
    assert lines[-1] == "Total Parameters: 16 (64 B)"


def test_options_of_rich() -> None:
    import rich.box

    model = abstract(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
    summary = quick(
        model,
        shape(2, 3),
        table_kwargs={"box": rich.box.ASCII, "title": "Mine"},
        column_kwargs={"justify": "center"},
        console_kwargs={"width": 60, "force_terminal": True},
    )
    plain = Text.from_ansi(summary).plain
    assert "Mine" in plain and "+" in plain and "┃" not in plain
    assert "\x1b[" in summary
    assert max(map(len, plain.splitlines())) <= 60


def test_rich_draws_it_for_its_own_console() -> None:
    file = io.StringIO()
    rich.console.Console(file=file, width=50).print(small())
    text = file.getvalue()
    assert "Sequential" in text and max(map(len, text.splitlines())) <= 50


class Cells(html.parser.HTMLParser):
    """Reads the rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def test_it_is_html_in_a_notebook() -> None:
    class Less(nnx.Module):
        def __call__(self, x: Any, text: str) -> Any:
            return x

    cells = Cells()
    cells.feed(small()._repr_html_())
    assert cells.rows[0] == ["path", "type", "inputs", "outputs", "flops", "vjp_flops", "Param"]
    assert cells.rows[2][:4] == ["layers/0", "Linear", "float32[2,3]", "float32[2,4]"]
    assert cells.rows[2][6] == "bias: float32[4]\nkernel: float32[3,4]\n16 (64 B)"
    assert cells.rows[-1] == [
        "total",
        "",
        "",
        "",
        "64",
        "180",
        "16 (64 B)",
    ]  # 56 and 156 by the Linear
    page = quick(Less(), shape(2), "<script>")._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_it_can_be_pickled() -> None:
    summary = small()
    again = pickle.loads(pickle.dumps(summary))
    assert again == summary and again.rows == summary.rows and again.flops == 64
    assert again._repr_html_() == summary._repr_html_()


# -- columns of plugins ----------------------------------------------------------------------------


class Norms:
    moduli_phase = -1

    @nnx.hookimpl
    def moduli_summary_columns(self, rows: Any) -> Any:
        assert rows[0].path == ()
        return [
            Column("squares", squares, total=lambda rows: len(rows), numeric=True),
            Column("mean", lambda row, module: row.size.count / 3),
        ]


def squares(row: Row, module: Any) -> Any:
    return int((module.kernel.value**2).sum()) if isinstance(module, nnx.Linear) else None


def test_plugins_add_columns() -> None:
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu)
    model.layers[0].kernel.value = jnp.full((3, 4), 10.0)
    with nnx.using(Norms()):
        summary = quick(model, shape(2, 3))
    assert summary.column("squares") == [None, 1200]
    assert summary.column("mean") == [16 / 3, 16 / 3]
    assert "1,200" in summary and "5.333" in summary
    heading = summary.splitlines()[2]
    assert heading.index("Param") < heading.index("squares") < heading.index("mean")
    cells = Cells()
    cells.feed(summary._repr_html_())
    assert cells.rows[-1][-2:] == ["2", ""]
    with pytest.raises(errors.PathError, match="has no column 'norms'; its columns are path, type"):
        summary.column("norms")


def columns(*returned: Any) -> Any:
    class Plugin:
        @nnx.hookimpl
        def moduli_summary_columns(self) -> Any:
            return returned

    return Plugin()


def test_columns_that_do_not_fit() -> None:
    model = abstract(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
    with nnx.using(columns(Column("flops", lambda row, module: 1))):
        with pytest.raises(errors.PluginError, match="'debug' and 'Plugin' both have a column nam"):
            tabulate(model, shape(2, 3))
    with nnx.using(columns("flops")):
        with pytest.raises(errors.PluginError, match="returned a str; return"):
            quick(model, shape(2, 3))
    with nnx.using(columns(Column("half", lambda row, module: 1 / 0))):
        with pytest.raises(ZeroDivisionError) as caught:
            quick(model, shape(2, 3))
    assert "raised by the column 'half' for ''" in caught.value.__notes__[0]


# -- errors ----------------------------------------------------------------------------------------


def test_inputs_of_a_wrong_shape_say_in_which_module() -> None:
    class Matrix(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.ones((4, 4)))

        def __call__(self, x: Any) -> Any:
            return x @ self.kernel.value

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.blocks = [nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Sequential(Matrix())]

        def __call__(self, x: Any) -> Any:
            return self.blocks[1](self.blocks[0](x))

    with pytest.raises(errors.ShapeError, match="blocks/0"):
        tabulate(Model(), shape(2, 7))
    with pytest.raises(TypeError) as caught:
        tabulate(Model(), shape(2, 3))
    text = "".join(traceback.format_exception(caught.value))
    assert (
        "tabulate: raised in 'blocks/1/layers/0' of Model, a Matrix, called with float32[2,5]"
        in text
    )


def test_inputs_that_do_not_fit_the_signature() -> None:
    model = abstract(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
    with pytest.raises(errors.StructureError) as caught:
        tabulate(model)
    assert str(caught.value).startswith("tabulate: Linear(")
    assert "missing a required argument: 'inputs'" in str(caught.value)
    assert "nnx.tabulate(model, jax.ShapeDtypeStruct(" in str(caught.value)
    with pytest.raises(errors.StructureError, match="unexpected keyword argument 'train'"):
        tabulate(model, shape(1, 3), train=True)


def test_what_is_no_model() -> None:
    with pytest.raises(errors.StructureError, match="needs a Module, got a function"):
        tabulate(lambda x: x, shape(1))
    with pytest.raises(errors.StructureError, match=r"Linear'>; for a model that is not made yet"):
        tabulate(nnx.Linear, shape(1))
    with pytest.raises(errors.StructureError, match="Block has no method 'encode'"):
        tabulate(abstract(lambda rngs: Block(8, 2, rngs)), shape(1), method="encode")
    with pytest.raises(errors.PathError, match=r"tabulate: the filter 'atention' selects no"):
        tabulate(abstract(lambda rngs: Block(8, 2, rngs)), shape(1, 2, 8), filter="atention")


# -- where there is little room --------------------------------------------------------------------


def test_a_narrow_terminal_gets_shorter_cells() -> None:
    model = abstract(lambda rngs: Transformer(16, 8, 2, False, rngs))

    def drawn(width: int) -> list[str]:
        summary = quick(model, TOKENS, console_kwargs={"width": width})
        lines = str(summary).splitlines()
        assert max(map(len, lines)) <= width
        return lines

    wide, narrow, dense = drawn(130), drawn(80), drawn(60)
    assert any("blocks/0/attention/query" in line for line in wide)
    assert any("kernel: float32[8,8]" in line for line in wide)
    rows = [line for line in narrow if line.startswith("│")]
    assert len(rows) == 1 + len(quick(model, TOKENS).rows)  # one line each, and the total
    assert sum(line.startswith("│   attention ") for line in narrow) == 2  # below its block
    assert any("f32[2,5,8]" in line for line in narrow)
    assert not any("│" in line for line in dense)  # no lines between columns
    assert sum("   attention " in line for line in dense) == 2  # and the path in full

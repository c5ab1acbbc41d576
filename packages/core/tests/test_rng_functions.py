"""split_rngs, fork_rngs, with_rngs, restore_rngs, reseed: flax's keys, and all or nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moduli as nnx
from moduli import errors

COPIES = dict(graph=True, graph_updates=False)  # how flax is told to leave its argument alone


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def snapshot(node):
    """Key and count of every stream, by path."""
    return {
        path: (data(stream.key.value), np.asarray(stream.count.value).tolist())
        for path, stream in streams(node)
    }


def streams(node):
    return [(p, s) for p, s in nnx.iter_graph(node) if isinstance(s, nnx.RngStream)]


def flax_snapshot(node):
    flax = pytest.importorskip("flax.nnx")
    return {
        path: (data(stream.key[...]), np.asarray(stream.count[...]).tolist())
        for path, stream in flax.iter_graph(node)
        if isinstance(stream, flax.RngStream)
    }


def model_of(lib):
    """The same model in moduli and in flax: nested, shared, in lists and dicts, in odd order."""

    class Drop(lib.Module):
        def __init__(self, rngs):
            self.rngs = rngs.dropout.fork()

    class Model(lib.Module):
        def __init__(self):
            rngs = lib.Rngs(0, params=1, dropout=2)
            rngs.params()
            self.zero = Drop(rngs)
            self.own = rngs
            self.layers = lib.List([Drop(rngs) for _ in range(11)])
            self.heads = lib.Dict({"b": Drop(rngs), "a": Drop(rngs)})
            self.again = self.layers[3]
            self.weight = lib.Param(jnp.ones(2))

    return Model()


def both(action):
    """Runs an action on both libraries' model; returns the two snapshots afterwards."""
    flax = pytest.importorskip("flax.nnx")
    ours, theirs = model_of(nnx), model_of(flax)
    action(nnx, ours)
    action(flax, theirs)
    return snapshot(ours), flax_snapshot(theirs)


FILTERS = {
    "all": lambda lib: ...,
    "tag": lambda lib: "dropout",
    "tags": lambda lib: ("dropout", "params"),
    "not": lambda lib: lib.Not("dropout"),
    "path": lambda lib: lib.PathContains("heads"),
    "kind": lambda lib: lib.RngState,
    "callable": lambda lib: lambda path, value: path[0] == "own" and value.tag != "params",
}


# -- the same as flax ----------------------------------------------------------------------------


@pytest.mark.parametrize("only", FILTERS)
@pytest.mark.parametrize("splits", [1, 3, (2, 3), ()])
def test_split_rngs_gives_the_keys_of_flax(splits, only):
    ours, theirs = both(lambda lib, m: lib.split_rngs(m, splits=splits, only=FILTERS[only](lib)))
    assert ours == theirs
    if splits:  # the filter chose some, so that the comparison says something
        assert ours != snapshot(model_of(nnx))


def test_squeeze_gives_the_keys_of_flax():
    ours, theirs = both(lambda lib, m: lib.split_rngs(m, splits=1, squeeze=True))
    assert ours == theirs
    assert {np.shape(count) for _, count in ours.values()} == {()}


@pytest.mark.parametrize(
    "split", [None, 2, (2, 3), {"dropout": 2}, {"dropout": None}, {"params": 2, "default": (1, 2)}]
)
def test_fork_rngs_gives_the_keys_of_flax(split):
    ours, theirs = both(lambda lib, m: lib.fork_rngs(m, split=split))
    assert ours == theirs != snapshot(model_of(nnx))


@pytest.mark.parametrize("change", ["split", "fork"])
def test_restored_streams_are_those_of_flax(change):
    def action(lib, model):
        for _ in range(2):
            if change == "split":
                backups = lib.split_rngs(model, splits=2, only="dropout")
            else:
                backups = lib.fork_rngs(model)
                model.own.params()
            lib.restore_rngs(backups)

    ours, theirs = both(action)
    assert ours == theirs != snapshot(model_of(nnx))


RULES = {
    "nothing": lambda lib: {},
    "split": lambda lib: dict(split=2),
    "split a shape": lambda lib: dict(split=(2, 3)),
    "split some": lambda lib: dict(split={"params": 4, ...: (2, 2)}),
    "fork": lambda lib: dict(fork=...),
    "fork a tag": lambda lib: dict(fork="dropout"),
    "fork tags": lambda lib: dict(fork=["dropout", "params"]),
    "fork none": lambda lib: dict(fork=False),
    "broadcast": lambda lib: dict(broadcast=3),
    "broadcast some": lambda lib: dict(broadcast={"dropout": (2, 2)}),
    "all three": lambda lib: dict(split={"params": 2}, broadcast={"default": 3}, fork=...),
    "split goes first": lambda lib: dict(split=2, broadcast=3, fork="dropout"),
    "only": lambda lib: dict(split=2, only=lib.PathContains("layers")),
    "only a tag": lambda lib: dict(fork=..., only="params"),
    "a type": lambda lib: dict(split={lib.RngStream: 2}),
}


@pytest.mark.parametrize("rules", RULES)
def test_with_rngs_gives_the_keys_of_flax_and_advances_the_same(rules):
    flax = pytest.importorskip("flax.nnx")
    if not hasattr(flax, "with_rngs"):
        pytest.skip("this flax (before 0.12.8, for JAX 0.9) has no with_rngs")
    ours, theirs = model_of(nnx), model_of(flax)
    new = nnx.with_rngs(ours, **RULES[rules](nnx))
    other = flax.with_rngs(theirs, **RULES[rules](flax), **COPIES)
    assert snapshot(new) == flax_snapshot(other)
    assert snapshot(ours) == flax_snapshot(theirs)


def test_an_unmatched_stream_of_the_copy_draws_as_in_flax():
    flax = pytest.importorskip("flax.nnx")
    if not hasattr(flax, "with_rngs"):
        pytest.skip("this flax (before 0.12.8, for JAX 0.9) has no with_rngs")
    counts = []
    for lib, more in ((nnx, {}), (flax, COPIES)):
        rngs = lib.Rngs(0, dropout=1)
        lib.with_rngs(rngs, split={"dropout": 2}, **more).default()
        counts.append([int(rngs[name].count.get_value()) for name in ("default", "dropout")])
    assert counts == [[1, 1], [1, 1]]


@pytest.mark.parametrize("seed", [5, "key", "raw", "stream"])
def test_reseed_gives_the_keys_of_flax(seed):
    def action(lib, model):
        seeds = {"key": jax.random.key(3), "raw": jax.random.PRNGKey(3)}
        given = lib.Rngs(7).default if seed == "stream" else seeds.get(seed, seed)
        lib.reseed(model, dropout=given, params=9)

    ours, theirs = both(action)
    assert ours == theirs != snapshot(model_of(nnx))


def test_reseed_with_a_policy_gives_the_keys_of_flax():
    calls = {}

    def action(lib, model):
        def policy(path, key, shape):
            calls.setdefault(lib, []).append((path, data(key), shape))
            return jnp.broadcast_to(key, shape)

        lib.split_rngs(model, splits=(2, 3), only="dropout")
        lib.reseed(model, dropout=5, params=6, policy="match_shape")
        lib.reseed(model, params=4, default=5, dropout=7, policy=policy)

    ours, theirs = both(action)
    assert ours == theirs
    first, second = calls.values()
    assert first == second and len(first) == 17


def test_decorators_give_the_keys_of_flax():
    flax = pytest.importorskip("flax.nnx")
    if not hasattr(flax, "with_rngs"):
        pytest.skip("this flax (before 0.12.8, for JAX 0.9) has no with_rngs")
    seen = []
    for lib, more, show in ((nnx, {}, snapshot), (flax, COPIES, flax_snapshot)):
        a, b = lib.Rngs(0, dropout=1), lib.Rngs(5)

        def inner(x, items, *, b, show=show):
            return [show(x), show(items[0]), show(b)]

        found = []
        for decorate in (
            lib.split_rngs(splits=2, only=("dropout", "default")),
            lib.fork_rngs(split={"default": 3}),
            lib.with_rngs(split={"dropout": 2}, fork=..., **more),
        ):
            found.append(decorate(inner)(1 if show is None else a, [b, 3], b=b))
            found.append([show(a), show(b)])
        seen.append(found)
    assert seen[0] == seen[1]


# -- properties ----------------------------------------------------------------------------------


def test_a_shared_stream_is_split_once_also_by_copies_of_its_node():
    rngs = nnx.Rngs(0)
    backups = nnx.split_rngs([rngs, {"again": rngs}, nnx.clone(rngs, variables=False)], splits=2)
    expected = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 2)
    assert len(backups) == 1 and data(rngs.default.key.value) == data(expected)


@settings(max_examples=25, deadline=None)
@given(
    draws=st.integers(0, 3),
    shape=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    inside=st.integers(0, 2),
)
def test_a_block_never_repeats_a_key_and_leaves_one_draw(draws, shape, inside):
    rngs = nnx.Rngs(3)
    used = [data(rngs()) for _ in range(draws)]
    with nnx.fork_rngs(rngs):
        used += [data(rngs()) for _ in range(inside)]
        with nnx.split_rngs(rngs, splits=shape):
            used += np.asarray(data(rngs.default.key.value)).reshape(-1, 2).tolist()
        used += [data(rngs())]
    used += [data(rngs())]
    assert len(set(map(tuple, used))) == len(used)
    assert int(rngs.default.count.value) == draws + 2


@pytest.mark.parametrize("use", ["context", "decorator"])
def test_an_exception_restores(use):
    model = model_of(nnx)
    nnx.restore_rngs(nnx.split_rngs(model, splits=2))
    expected = snapshot(model)
    model = model_of(nnx)

    @nnx.split_rngs(splits=2)
    def fail(model):
        assert model.own.params.key.shape == (2,)
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        if use == "decorator":
            fail(model)
        with nnx.split_rngs(model, splits=2):
            raise KeyError("stop")
    assert snapshot(model) == expected


def test_restoring_twice_is_restoring_once():
    rngs = nnx.Rngs(0)
    backups = nnx.split_rngs(rngs, splits=2)
    nnx.restore_rngs(backups)
    expected = snapshot(rngs)
    rngs()
    nnx.restore_rngs(list(backups))
    assert snapshot(rngs) == expected


def test_the_decorator_keeps_the_name_and_works_on_methods():
    class Model(nnx.Module):
        def __init__(self):
            self.rngs = nnx.Rngs(0)

        @nnx.split_rngs(splits=4)
        def shape(self):
            """Says the shape."""
            return self.rngs.default.key.shape

    assert (Model.shape.__name__, Model.shape.__doc__) == ("shape", "Says the shape.")
    assert Model().shape() == (4,)
    assert nnx.split_rngs(splits=2)(lambda x: x + 1)(1) == 2  # nothing to split


def test_with_rngs_keeps_the_structure_and_shares_the_parameters():
    model = model_of(nnx)
    new = nnx.with_rngs([model, 3], split={"dropout": 2})
    assert new[1] == 3
    copy = new[0]
    assert type(copy) is type(model) and copy is not model
    assert copy.again is copy.layers[3] and copy.weight is model.weight
    assert copy.zero.rngs.key is not model.zero.rngs.key
    assert copy.zero.rngs.tag == copy.zero.rngs.key.tag == copy.zero.rngs.count.tag == "dropout"
    assert model.zero.rngs.key.shape == () and copy.own.params.key is model.own.params.key


def test_with_rngs_keeps_cycles():
    class Model(nnx.Module):
        def __init__(self):
            self.me, self.rngs = self, nnx.Rngs(0)

    new = nnx.with_rngs(Model(), fork=...)
    assert new.me is new


def test_a_model_without_streams_has_nothing_to_split():
    model = nnx.Dict({"scale": nnx.Param(jnp.ones(2))})
    assert list(nnx.split_rngs(model, splits=2, only="dropout")) == []
    assert nnx.with_rngs(model, fork="dropout").scale is model.scale


# -- inside of JAX's transforms ------------------------------------------------------------------


def test_jit_gives_the_same_as_without():
    def run(model):
        with nnx.split_rngs(model, splits=2):
            inside = jax.random.key_data(model.own.params.key.value)
        nnx.fork_rngs(model, split={"default": 3})
        nnx.reseed(model, dropout=4)
        forked = nnx.with_rngs(model, fork="params")
        return inside, jax.random.key_data(forked.own.params())

    eager, jitted = model_of(nnx), model_of(nnx)
    compiled = nnx.jit(run)
    for _ in range(2):
        expected, got = run(eager), compiled(jitted)
        assert jax.tree.map(lambda x: x.tolist(), got) == jax.tree.map(
            lambda x: x.tolist(), expected
        )
        assert snapshot(jitted) == snapshot(eager)
        for model in (eager, jitted):  # an array of keys cannot be forked again
            nnx.reseed(model, default=0, policy=lambda path, key, shape: key)


def test_a_decorated_jit_leaves_the_callers_streams_restored():
    @nnx.split_rngs(splits=3)
    @nnx.jit
    def draw(rngs):
        return jax.vmap(jax.random.fold_in)(rngs.default.key.value, rngs.default.count.value)

    rngs = nnx.Rngs(0)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
    assert data(draw(rngs)) == data(jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys))
    assert snapshot(rngs) == {("default",): (data(jax.random.key(0)), 1)}


def test_under_raw_jax_only_what_was_made_inside_may_change():
    outside = nnx.Rngs(0)
    before = snapshot(outside)

    @jax.jit
    def inside(seed):
        rngs = nnx.Rngs(jax.random.key(seed))
        with nnx.split_rngs(rngs, splits=2):
            keys = rngs.default.key.value
        nnx.reseed(rngs, default=3)
        return jax.random.key_data(keys), jax.random.key_data(nnx.with_rngs(rngs, fork=...)())

    keys, drawn = inside(0)
    root = jax.random.key(0)
    assert keys.tolist() == data(jax.random.split(jax.random.fold_in(root, 0), 2))
    forked = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0), 0)
    assert drawn.tolist() == data(forked)

    for change in (
        lambda: nnx.split_rngs(outside, splits=2),
        lambda: nnx.fork_rngs(outside),
        lambda: nnx.with_rngs(outside, fork=...),
        lambda: nnx.reseed(outside, default=1),
    ):
        with pytest.raises(errors.TraceError):
            jax.jit(lambda: change() and None)()
        assert snapshot(outside) == before


# -- errors --------------------------------------------------------------------------------------


BAD = {
    "zero": (lambda m: nnx.split_rngs(m, splits=0), "splits has to be positive.*got 0"),
    "negative": (lambda m: nnx.split_rngs(m, splits=(2, -1)), r"positive.*got \(2, -1\)"),
    "float": (lambda m: nnx.split_rngs(m, splits=2.0), "int or a tuple.*got 2.0 of type float"),
    "bool": (lambda m: nnx.split_rngs(m, splits=True), "int or a tuple.*got True"),
    "text": (lambda m: nnx.fork_rngs(m, split="dropout"), "fork_rngs: split is an int"),
    "fork shape": (lambda m: nnx.fork_rngs(m, split={...: None, "a": 0}), "positive"),
    "squeeze": (
        lambda m: nnx.split_rngs(m, splits=2, squeeze=True),
        "needs splits=1; got splits=2",
    ),
    "squeeze a shape": (lambda m: nnx.split_rngs(m, splits=(1,), squeeze=True), "needs splits=1"),
    "only": (
        lambda m: nnx.split_rngs(m, splits=2, only="droput"),
        r"WithTag\('droput'\) selects no stream; there is the .* at `.*did you mean 'dropout'",
    ),
    "key alone": (lambda m: nnx.split_rngs(m, splits=2, only=nnx.RngKey), "selects no stream"),
    "fork filter": (lambda m: nnx.fork_rngs(m, split={"nope": 2}), "selects no stream"),
    "with filter": (lambda m: nnx.with_rngs(m, split={"nope": 2}), "with_rngs: .*no stream"),
    "with only": (lambda m: nnx.with_rngs(m, split=2, only="nope"), "with_rngs: .*no stream"),
    "with shape": (lambda m: nnx.with_rngs(m, broadcast=0), "with_rngs: broadcast has to be"),
    "twice": (
        lambda m: nnx.with_rngs(m, split={"dropout": 2}, fork="dropout"),
        "the stream 'dropout' at `again/rngs` is selected twice, for split by 'dropout' and fork",
    ),
    "array in place": (
        lambda m: nnx.fork_rngs(m, split={"params": 2, "dropout": None}),
        r"the stream 'dropout' at `zero/rngs` holds key<fry>\[2\].*restore",
    ),
    "array in a copy": (lambda m: nnx.with_rngs(m, fork=...), "`zero/rngs` holds key<fry>"),
    "scalars only": (
        lambda m: nnx.reseed(m, params=1, dropout=1),
        r"the stream 'dropout' at `zero/rngs` holds an array .* \(2,\).*policy='match_shape'",
    ),
    "seed": (lambda m: nnx.reseed(m, params=1, default="x"), "'default' got 'x'"),
    "seeds": (
        lambda m: nnx.reseed(m, params=jax.random.split(jax.random.key(0), 2)),
        r"'params' got an array of keys of shape \(2,\)",
    ),
    "policy": (lambda m: nnx.reseed(m, params=1, policy="match"), "got 'match'"),
    "policy's result": (
        lambda m: nnx.reseed(m, params=1, policy=lambda path, key, shape: 3),
        "the stream 'params' at `own/params` it returned 3 of type int",
    ),
    "backups": (lambda m: nnx.restore_rngs([m.own.params]), "with RngStream"),
    "no backups": (lambda m: nnx.restore_rngs(None), "got NoneType"),
}


def test_a_seed_for_a_stream_that_is_not_there_is_a_warning():
    """As libraries rely on that reseed a model with the names of all streams there may be."""
    model = model_of(nnx)
    with pytest.warns(errors.MissingStreamWarning, match="no stream 'droput'.*mean 'dropout'"):
        nnx.reseed(model, params=1, droput=2)
    other = model_of(nnx)
    nnx.reseed(other, params=1)
    jax.tree.map(np.testing.assert_array_equal, snapshot(model), snapshot(other))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_where_and_changes_nothing(case):
    model = model_of(nnx)
    nnx.split_rngs(model.zero, splits=2)  # the last one that the walk meets
    before = snapshot(model)
    action, match = BAD[case]
    with pytest.raises(errors.RngError, match=f"(?s){match}"):
        action(model)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "node", [3, None, "rngs", jnp.ones(2), [], nnx.Param(1.0), nnx.state(nnx.Rngs(0)), len]
)
def test_what_holds_no_graph_is_an_error(node):
    for change in (
        lambda: nnx.split_rngs(node, splits=2),
        lambda: nnx.fork_rngs(node),
        lambda: nnx.with_rngs(node, fork=...),
        lambda: nnx.reseed(node, default=0),
    ):
        with pytest.raises(errors.StructureError, match="holds no module and no Rngs"):
            change()


def test_a_decorator_without_parentheses_or_on_an_object_says_so():
    with pytest.raises(
        errors.StructureError, match=r"`@moduli.fork_rngs\(...\)`, with parentheses"
    ):
        nnx.fork_rngs(lambda rngs: None)
    for decorate in (nnx.split_rngs(splits=2), nnx.fork_rngs(), nnx.with_rngs(fork=...)):
        with pytest.raises(errors.StructureError, match="decorates a function; got a list"):
            decorate([nnx.Rngs(0)])


def test_an_error_in_a_decorated_call_names_the_argument():
    rngs = nnx.Rngs(0)
    nnx.split_rngs(rngs, splits=2)
    draw = nnx.split_rngs(splits=2)(lambda x, *, rngs: None)
    with pytest.raises(errors.RngError, match=r"`kwargs/rngs/default` holds"):
        draw(1, rngs=rngs)
    with pytest.raises(errors.RngError, match=r"`args/0/default` holds"):
        draw(rngs, rngs=nnx.Rngs(0))


def test_a_hook_that_forbids_a_write_undoes_the_ones_before():
    def forbid(variable, value):
        raise PermissionError("locked")

    rngs = nnx.Rngs(a=0, b=1)
    rngs.b.key.set_metadata(on_set_value=forbid)
    before = snapshot(rngs)
    with pytest.raises(PermissionError):
        nnx.split_rngs(rngs, splits=2)
    assert snapshot(rngs) == before


def test_restoring_is_all_or_nothing():
    outside = nnx.Rngs(0)
    backups = list(nnx.split_rngs(outside, splits=2))
    split = snapshot(outside)

    @jax.jit
    def inside():
        rngs = nnx.Rngs(1)
        mixed = [*nnx.split_rngs(rngs, splits=3), *backups]
        with pytest.raises(errors.TraceError):
            nnx.restore_rngs(mixed)
        assert rngs.default.key.shape == (3,)

    inside()
    assert snapshot(outside) == split


def test_a_list_changed_behind_the_models_back_is_an_error():
    model = nnx.Dict()
    plain = [nnx.Rngs(0)]
    model["rngs"] = plain
    plain.append(nnx.Rngs(1))
    with pytest.raises(errors.StructureError, match="through another reference"):
        nnx.split_rngs(model, splits=2)

"""``check_layer``: each check passes on a good layer and fails on one that is broken in its way."""

from __future__ import annotations

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli.testing import LayerCase, check_layer, parametrize_with_checks

X = jnp.array([0.5, -1.0, 2.0])
SEEN: list = []


class Good(nnx.Module):
    """A parameter, a statistic, a stream, a mode, text, and a Variable in two places."""

    def __init__(self, rngs: nnx.Rngs):
        self.w = nnx.Param(rngs.params.uniform((3,)))
        self.same = [self.w]
        self.mean = nnx.BatchStat(jnp.zeros(()))
        self.note = nnx.static("text")
        self.rngs = rngs.fork()
        self.deterministic = False

    def __call__(self, x):
        if self.deterministic:
            return x * self.w.value + self.mean.value
        self.mean.value = 0.9 * self.mean.value + 0.1 * x.mean()
        return x * self.same[0].value + self.rngs.noise.normal(x.shape)


class Plain(nnx.Module):
    """What the broken ones break."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return x * self.w.value


SHARED = nnx.Param(jnp.ones(3))


class SharesAVariable(Plain):
    def __init__(self):
        self.w = SHARED


class LooksAtValues(Plain):
    def __init__(self):
        super().__init__()
        self.large = bool(np.asarray(self.w.value).sum() > 1)


class ReturnsNumpy(Plain):
    def __call__(self, x):
        if isinstance(x, jax.core.Tracer):
            return x * self.w.value
        return np.asarray(x) * np.asarray(self.w.value)


class BranchesOnValues(Plain):
    def __call__(self, x):
        return x * self.w.value if float(x.sum()) > 0 else x


class MixesTheBatch(Plain):
    def __call__(self, x):
        assert x.ndim == 1 and not hasattr(x, "batch_dim")
        scale = MixesTheBatch.scale = getattr(MixesTheBatch, "scale", 0) + 1
        return x * self.w.value * scale


class NaNGradient(Plain):
    def __call__(self, x):
        return jnp.where(x > 0, jnp.sqrt(x), 0.0) * self.w.value


class StopsInGrad(Plain):
    def __call__(self, x):
        return x * np.asarray(self.w.value)


class GrowsAtTheFirstCall(Plain):
    def __call__(self, x):
        if not hasattr(self, "cache"):
            self.cache = nnx.Cache(jnp.zeros(3))
        return x * self.w.value


class ChangesShape(Plain):
    def __init__(self):
        super().__init__()
        self.kept = nnx.Cache(jnp.zeros(1))

    def __call__(self, x):
        self.kept.value = jnp.concatenate([self.kept.value, x[:1]])
        return x * self.w.value


class PeeksInRemat(Plain):
    def __call__(self, x):
        SEEN.append(x)
        return x * self.w.value * (1.0 if len(SEEN) % 2 else 2.0)


class CopiesBadly(Plain):
    def __deepcopy__(self, memo):
        return self


class HoldsALock(Plain):
    def __init__(self):
        super().__init__()
        self.f = nnx.static(lambda x: x)

    def __call__(self, x):
        return self.f(x) * self.w.value


class ForgetsInEval(Plain):
    def __init__(self):
        super().__init__()
        self.deterministic = False

    def eval(self, **attributes):
        super().eval(**attributes)
        self.evaluated = True


class CountsInAnAttribute(Plain):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x * self.w.value


class LambdaOfItsOwn(Plain):
    def __init__(self):
        super().__init__()
        self.f = lambda x: x

    def __call__(self, x):
        return self.f(x) * self.w.value


class KeepsTracers(Plain):
    def __call__(self, x):
        SEEN.append(x)
        return x * self.w.value


class KeepsATracerInItsClass(Plain):
    def __call__(self, x):
        KeepsATracerInItsClass.last = x
        return x * self.w.value


class RacesThroughItsClass(Plain):
    def __call__(self, x):
        RacesThroughItsClass.last = x
        if not isinstance(x, jax.core.Tracer):
            time.sleep(0.002)
        return RacesThroughItsClass.last * self.w.value


class NoPytree(Plain, pytree=False):
    pass


class HoldsAnObject(Plain):
    def __init__(self):
        super().__init__()
        self.token = nnx.Variable(object())


class Slots(Plain):
    """Loses a Variable when it is unpickled."""

    def __getstate__(self):
        state = dict(vars(self))
        state["w"] = nnx.Param(jnp.zeros(3))
        return state


BROKEN = [
    ("builds_alike", SharesAVariable),
    ("builds_without_arrays", LooksAtValues),
    ("returns_arrays", ReturnsNumpy),
    ("jits", BranchesOnValues),
    ("vmaps", BranchesOnValues),
    ("vmaps", MixesTheBatch),
    ("grads", NaNGradient),
    ("grads", StopsInGrad),
    ("scans", GrowsAtTheFirstCall),
    ("scans", ChangesShape),
    ("remats", StopsInGrad),
    ("remats", PeeksInRemat),
    ("is_a_pytree", NoPytree),
    ("splits_and_merges", MixesTheBatch),
    ("copies", CopiesBadly),
    ("pickles", HoldsALock),
    ("pickles", Slots),
    ("saves_and_loads", HoldsAnObject),
    ("switches_modes", ForgetsInEval),
    ("traces_once", CountsInAnAttribute),
    ("traces_once", LambdaOfItsOwn),
    ("leaves_nothing", KeepsTracers),
    ("leaves_nothing", KeepsATracerInItsClass),
    ("runs_in_threads", RacesThroughItsClass),
]


@parametrize_with_checks(
    [LayerCase(Good, X), LayerCase(Plain, X), LayerCase(Plain(), X, name="an object")]
)
def test_a_good_layer_passes(case, check):
    check(case)


@pytest.mark.parametrize(("name", "layer"), BROKEN, ids=[f"{c.__name__}-{n}" for n, c in BROKEN])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_check_fails_on_what_it_is_for(name, layer):
    case = LayerCase(layer, X)
    (check,) = (check for check in case.checks() if check.__name__ == name)
    with pytest.raises(Exception) as caught:  # what it raises, a user reads
        check(case)
    assert not isinstance(caught.value, pytest.skip.Exception)
    assert str(caught.value)
    del SEEN[:]
    for cls in (MixesTheBatch, KeepsATracerInItsClass, RacesThroughItsClass):
        for attribute in {"scale", "last"} & set(vars(cls)):
            delattr(cls, attribute)


def test_every_check_has_a_broken_layer():
    names = {check.__name__ for check in LayerCase(Plain, X).checks()}
    assert names == {name for name, _ in BROKEN}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_that_fails_is_listed():
    with pytest.raises(AssertionError) as caught:
        check_layer(CountsInAnAttribute, X)
    text = str(caught.value)
    assert text.startswith("CountsInAnAttribute fails")
    assert "- traces_once: a second call" in text and "- grads" not in text
    check_layer(Plain, X, skip={"pickles": "because"})
    with pytest.raises(ValueError, match="skips 'pickle', which is none of"):
        check_layer(Plain, X, skip={"pickle": "because"})


def test_cases_have_names_of_their_own():
    with pytest.raises(ValueError, match="two cases are named 'Plain'"):
        parametrize_with_checks([LayerCase(Plain, X), LayerCase(Plain, X + 1)])


def test_the_ids_and_skips(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import jax.numpy as jnp, moduli as nnx\n"
        "from moduli.testing import LayerCase, parametrize_with_checks\n"
        "class Plain(nnx.Module):\n"
        "    def __call__(self, x): return 2 * x\n"
        "@parametrize_with_checks([LayerCase(Plain, jnp.ones(2), skip={'vmaps': 'no'})])\n"
        "def test_it(case, check): check(case)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-rs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "test_it.py::test_it[Plain-jits] PASSED" in done.stdout, done.stdout
    assert "[Plain-vmaps] SKIPPED (no)" in done.stdout
    assert done.returncode == 0


def test_nothing_of_it_comes_with_moduli():
    code = "import sys, moduli; print([m for m in sys.modules if m.startswith('moduli.testing')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""A model's digest changes with all that its forward can be seen to depend on, and with nothing
else; where that cannot be told there is none."""

from __future__ import annotations

import collections
import copyreg
import enum
import functools
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsewright.fingerprint import fingerprint

SLOPE = 0.1
TABLE = {"relu": torch.relu, "tanh": torch.tanh}


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


class Settings:
    def __init__(self, width=8, kind=Kind.ONE):
        self.width, self.kind = width, kind


def half(x):
    return x * 0.5


class Net(nn.Module):
    def __init__(self, width=4, scale=2.0, act=torch.relu, settings=None, more=()):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.scale, self.act, self.settings = scale, act, settings
        self.more = list(more)

    def forward(self, x):
        return self.act(F.leaky_relu(half(self.fc(x)), SLOPE)) * self.scale


def test_equal_models_are_equal_whatever_their_weights():
    one, other = Net(), Net()
    assert fingerprint(one) == fingerprint(other) is not None
    with torch.no_grad():
        other.fc.weight.zero_()
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Net(width=5),
        lambda: Net(scale=2.5),
        lambda: Net(scale=2),
        lambda: Net(act=torch.tanh),
        lambda: Net(act=half),
        lambda: Net(act=lambda x: x + 1),
        lambda: Net(act=functools.partial(F.elu, alpha=0.5)),
        lambda: Net(act=functools.partial(F.elu, alpha=0.25)),
        lambda: Net(act=TABLE.get),
        lambda: Net(settings=Settings()),
        lambda: Net(settings=Settings(9)),
        lambda: Net(settings=Settings(kind=Kind.TWO)),
        lambda: Net(settings=types.SimpleNamespace(a=1)),
        lambda: Net(settings=torch.float16),
        lambda: Net(settings=collections.OrderedDict(a=1)),
        lambda: Net(settings=collections.defaultdict(lambda: 3)),
        lambda: Net(settings=collections.defaultdict(lambda: 4)),
        lambda: Net(settings={1, 2}),
        lambda: Net(settings={"1", "2"}),
        lambda: Net(more=[1, 2]),
        lambda: Net(more=[2, 1]),
        lambda: Net(more=[[1], 2]),
        lambda: Net().train(False),
        lambda: Net().requires_grad_(False),
        lambda: Net().double(),
        lambda: nn.Sequential(Net()),
    ],
)
def test_what_a_model_holds_counts(other):
    made = [fingerprint(build()) for build in (Net, other, other)]
    assert None not in made
    assert made[1] == made[2] != made[0]


def test_all_of_these_differ():
    models = [Net(), Net(more=[1, 2]), Net(more=[(1, 2)]), Net(more=[1.0, 2]), Net(more=["1", 2])]
    models += [Net(settings=s) for s in ({1: 2}, {2: 1}, [1, 2], (1, 2), {1, 2}, "12", b"12", 12)]
    assert len({fingerprint(model) for model in models}) == len(models)


def test_which_tensors_are_one_counts():
    apart, tied = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    tied[1].weight = tied[0].weight
    same = nn.Linear(3, 3)
    found = {fingerprint(model) for model in (apart, tied, nn.Sequential(same, same))}
    assert len(found) == 3
    assert None not in found


def test_what_code_reaches_counts(monkeypatch):
    module = sys.modules[__name__]
    seen = {fingerprint(Net())}
    for name, value in (
        ("SLOPE", 0.2),
        ("half", lambda x: x * 0.25),
        ("F", types.SimpleNamespace(leaky_relu=F.relu)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            found = fingerprint(Net())
            assert found not in seen, name
            seen.add(found)
    with monkeypatch.context() as patch:
        patch.setattr(Net, "forward", lambda self, x: x)
        assert fingerprint(Net()) not in seen
    one = Net()
    one.forward = lambda x: x
    assert fingerprint(one) not in seen
    assert fingerprint(Net()) in seen


def test_inner_functions_closures_and_decorators_count():
    def model(factor, default=1, wrapped=False):
        def inner(x, by=default):
            def deeper(y):
                return y * factor

            return deeper(x) * by

        return Net(act=torch.no_grad()(inner) if wrapped else inner)

    cases = [model(2), model(3), model(2, 2), model(2, wrapped=True), model(3, wrapped=True)]
    found = [fingerprint(case) for case in cases]
    assert None not in found
    assert len(set(found)) == len(found)
    assert fingerprint(model(2)) == found[0]
    assert fingerprint(model(2, wrapped=True)) == found[3]


class Base(nn.Module):
    factor = 2

    @property
    def twice(self):
        return 2 * self.factor

    @staticmethod
    def other(x):
        return x

    def forward(self, x):
        return self.other(x) * self.twice


def test_bases_properties_and_static_methods_count(monkeypatch):
    class Child(Base):
        pass

    first = fingerprint(Child())
    assert first is not None
    for name, value in (
        ("factor", 3),
        ("twice", property(lambda self: self.factor)),
        ("other", staticmethod(lambda x: -x)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Base, name, value)
            assert fingerprint(Child()) not in (first, None), name
    assert fingerprint(Child()) == first


class Evaluates(nn.Module):
    def forward(self, x):
        return eval("x + 1")


class Imports(nn.Module):
    def forward(self, x):
        import of_no_file

        return of_no_file.shift(x)


class Blocked(nn.Module):
    def forward(self, x):
        try:
            import of_no_file
        except ImportError:
            return x
        return of_no_file.shift(x)


class Around(nn.Module):
    """Hands a module around."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        return self.way(x)


class Weight(nn.Parameter):
    pass


class Attributes(dict):
    """Raises for every attribute that it does not hold."""

    __getattr__ = dict.__getitem__


class Raises:
    def __getattribute__(self, name):
        raise ValueError(name)


class Slots:
    __slots__ = ("width",)


OTHERS = types.ModuleType("others")
OTHERS.act = torch.relu
OTHERS.inner = types.ModuleType("others.inner")
OTHERS.inner.act = torch.relu
TABLES = {"others": OTHERS}


def weighted(weight):
    model = nn.Linear(2, 2)
    model.weight = weight(torch.ones(2, 2))
    return model


def held(name, value):
    model = nn.ReLU()
    model.__dict__[name] = value
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: Net(settings=object()),
        lambda: Net(settings=torch.ones(2)),
        lambda: Net(settings=iter([1])),
        lambda: Net(settings={Kind.ONE}),
        lambda: Net(settings=Slots()),
        lambda: Net(more=[nn.Linear(2, 2)]),
        lambda: Net(act=functools.cache(half)),
        Evaluates,
        Imports,
        Blocked,
        lambda: weighted(Weight),
        lambda: held("things", Raises()),
        lambda: held("my_hooks", np.ones(3)),
        lambda: held(3, 4),
        lambda: held("module", OTHERS),
        lambda: held("many", list(range(60_000))),
        lambda: held("text", "x" * 60_000_000),
        lambda: Around(lambda x: TABLES["others"].act(x)),
        lambda: Around(lambda x, ops=OTHERS: ops.act(x)),
        lambda: Around(lambda x: getattr(OTHERS, "act")(x)),  # noqa: B009
        lambda: Around(lambda x: OTHERS.missing(x)),
        lambda: Around(lambda x: OTHERS.__dict__["act"](x)),
        lambda: Around(lambda x: sys.modules["others"].act(x)),
        lambda: Around((lambda ops: lambda x: ops.act(x))(OTHERS)),
    ],
)
def test_what_cannot_be_told_has_no_digest(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "of_no_file", None)  # how imports are blocked
    assert fingerprint(model()) is None


def test_objects_that_answer_to_few_names_are_data():
    one, other = (Net(settings=Attributes(width=width)) for width in (8, 9))
    assert None is not fingerprint(one) != fingerprint(other)


def test_what_is_taken_out_of_modules_counts(monkeypatch):
    first = Around(lambda x: OTHERS.act(x))
    second = Around(lambda x: OTHERS.inner.act(x))
    before = [fingerprint(first), fingerprint(second)]
    assert None not in before
    monkeypatch.setattr(OTHERS, "act", torch.tanh)
    assert fingerprint(first) not in (None, before[0])
    assert fingerprint(second) == before[1]
    monkeypatch.setattr(OTHERS.inner, "act", torch.tanh)
    assert fingerprint(second) not in (None, before[1])


@pytest.mark.parametrize(
    ("space", "name", "value"),
    [
        (torch.Tensor, "my_act", torch.relu),
        (F, "gelu", half),
        (F, "relu", F.relu6),
        (F, "LIMIT", 3.0),
        (torch, "limit", functools.partial(torch.clamp, max=2)),
        (nn.SiLU, "forward", nn.ReLU6.forward),
        (nn.Module, "limit", 4),
    ],
)
def test_what_is_put_into_torch_makes_all_unknown(space, name, value, monkeypatch):
    first = fingerprint(Net())
    with monkeypatch.context() as patch:
        patch.setattr(space, name, value, raising=False)
        assert fingerprint(Net()) is None
    assert fingerprint(Net()) == first


def test_torch_leaves_its_own_names_alone():
    """Its tracer and its compiler wrap some of them, and Python notes what it has copied."""
    first = fingerprint(Net())
    for kind in (Net, torch.Tensor, nn.Parameter, nn.Linear):
        copyreg._slotnames(kind)
    model, x = Net().eval(), torch.ones(2, 4)
    torch.export.export(model, (x,))
    torch.compile(model, backend="eager")(x)
    assert fingerprint(Net()) == first is not None


def test_bound_methods_of_c_count():
    found = {
        fingerprint(Around(way))
        for way in ((1.0).__mul__, (2.0).__mul__, (1, 2).__getitem__, (2, 1).__getitem__)
    }
    assert len(found) == 4


SCRIPT = """
import torch
from torch import nn
from sparsewright.fingerprint import fingerprint

class Net(nn.Module):
    words = {"a", "b", "c"}
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout())
        self.attention = nn.MultiheadAttention(4, 2)
    def forward(self, x):
        x = self.body(x) if "a" in {"a", "b"} else x
        return self.attention(x, x, x)[0]

model = Net()
print(fingerprint(model))
"""


def test_another_process_finds_the_same(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = set()
    for seed in "12":
        made = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(made.stdout.strip())
    assert len(found) == 1
    assert len(found.pop()) == 64

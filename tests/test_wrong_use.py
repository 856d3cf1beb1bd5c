"""What users get wrong: every wrong argument is told by its name, before any work, and leaves the
model as it was; what works in silence and should not warns."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import sparsewright as sw
from sparsewright.cli import main
from sparsewright.lab.compare.runs import Asked, jobs_of
from sparsewright.lab.part_pages import page_named
from sparsewright.lab.tables import TABLES
from sparsewright.methods import METHODS

X, Y = torch.randn(8, 32), torch.randint(4, (8,))
BATCHES = [(X, Y)]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32), nn.Linear(32, 4))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


LAYER = mlp()[0]
WRONG_OF_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": "0.9"}, r"sparsity must be a number in \[0, 1\); got '0.9', a str"),
    ({"sparsity": torch.tensor(0.9)}, "sparsity must be a number.*a .* Tensor of shape"),
    ({"sparsity": [0.5, 0.9]}, "sparsity must be a number.*of type list"),
    ({"sparsity": True}, "sparsity must be a number.*got True"),
    ({"sparsity": 90}, r"sparsity must be in \[0, 1\); got 90 \(for 90 % write 0.9\)"),
    ({"pattern": None}, "pattern must be a name or an object that is one; got None"),
    ({"pattern": sw.NM}, r"pattern must be.*got the class NM: write NM\(...\)"),
    ({"pattern": (2, 4)}, "pattern must be.*of type tuple"),
    ({"allocate": None}, "allocate must be.*got None"),
    ({"allocate": sw.ERK}, r"allocate must be.*class ERK: write ERK\(...\)"),
    ({"allocate": {"0": 0.5}}, "allocate must be.*of type dict"),
    ({"skip": LAYER}, "skip must be names.*of type Linear"),
    ({"skip": [LAYER]}, "skip must be names.*of type Linear"),
    ({"skip": 4}, "skip must be names.*got 4"),
    ({"skip": None}, "skip must be names.*got None"),
    ({"skip": [str]}, "skip must be names.*the class str"),
    ({"skip": ["2.weight"]}, "no weight to skip is called '2.weight'; did you mean '2'"),
    ({"overrides": ["2"]}, "overrides must be .*of type list"),
    ({"overrides": {"2": 0.5}}, "overrides must be .*for '2' got 0.5"),
    ({"overrides": {2: {}}}, "overrides must be .*a key that is 2"),
    ({"overrides": {"2": {"sparsity": "0.5"}}}, "overrides: '2': sparsity must be a number"),
    ({"overrides": {"2": {"sparsity": 2}}}, r"overrides: '2': sparsity must be in \[0, 1\)"),
    ({"overrides": {"2": {"pattern": None}}}, "pattern must be.*got None"),
    ({"overrides": lambda name, shape: 0.5}, "overrides must be .*for '0' got 0.5"),
    ({"on_misfit": None}, "on_misfit must be 'error', 'skip' or the pattern"),
    ({"on_misfit": "ignore"}, "on_misfit must be 'error', 'skip' or the pattern"),
    ({"seed": "a"}, "seed must be a whole number; got 'a', a str"),
    ({"seed": None}, "seed must be a whole number; got None"),
    ({"seed": 2**70}, "seed must have 64 bits at most"),
]
WRONG_OF_ATTACH: list[tuple[dict[str, Any], str]] = [
    ({"method": None}, "method must be a name or an object that is one; got None"),
    ({"method": sw.RigL}, r"method must be.*the class RigL: write RigL\(...\)"),
    ({"method": sw.SNIP()}, "method must be.*of type SNIP, which has no bind"),
    ({"method": "RigL"}, "no method is called 'RigL'; did you mean 'rigl'"),
    ({"method": sw.RigL(drop=None)}, "score must be.*got None"),  # type: ignore[arg-type]
    ({"method": sw.RigL(drop="magnitud")}, "no score is called 'magnitud'; did you mean"),
    ({"method": sw.SET(initial=sw.SNIP)}, r"score must be.*the class SNIP"),
    ({"steps": 0.5}, "steps .* must be a whole number; got 0.5"),
    ({"steps": "10"}, "steps .* must be a whole number; got '10'"),
    ({"steps": BATCHES}, "steps .* must be a whole number; got a value of type list"),
    ({"steps": 0}, "steps .* must be 1 or more; got 0"),
    ({"steps": -5}, "steps .* must be 1 or more; got -5"),
    ({"init": "kaiming"}, "init must be None, 'fan_in' or a function"),
    ({"init": True}, "init must be None, 'fan_in' or a function of a layer; got True"),
    ({"process_group": "nccl"}, "process_group must be.*'nccl'"),
    ({"process_group": True}, "process_group must be.*True"),
    ({"masks": [torch.ones(1)]}, "masks must be {layer: bool tensor}; got a value of type list"),
    ({"masks": torch.ones(1)}, "masks must be {layer: bool tensor}.*a .* Tensor of shape"),
    ({"masks": "a.safetensors"}, r"masks must be.*: sw.load_masks\(path\)"),
]
WRONG_OF_PRUNE: list[tuple[dict[str, Any], str]] = [
    ({"score": None}, "score must be a name or an object that is one; got None"),
    ({"score": sw.SNIP, "data": BATCHES}, r"score must be.*class SNIP: write SNIP\(...\)"),
    ({"score": lambda w: w.abs()}, "score must be.*has no needs_gradient"),
    ({"score": sw.RigL()}, "score must be.*of type RigL, which has no call"),
    ({"solver": 3, "data": BATCHES}, "solver must be.*got 3"),
    ({"solver": sw.OBC, "data": BATCHES}, "solver must be.*the class OBC"),
    ({"score": "snip", "data": 3}, "data must be batches.*got 3"),
    ({"score": "snip", "data": lambda: BATCHES}, "data must be batches.*of type function"),
    ({"score": "snip", "data": mlp()}, "data must be batches.*of type Sequential"),
    ({"score": "wanda", "data": X.numpy()}, "data must be batches.*of type ndarray"),
    ({"score": "wanda", "data": [X, Y]}, r"got one batch, a list: give \[batch\]"),
    ({"score": "wanda", "data": [X.numpy()]}, "inputs of a batch must be a tensor.*ndarray"),
    ({"score": "wanda", "data": [1, 2]}, "inputs of a batch must be a tensor; got 1"),
    ({"solver": "obc", "data": 7}, "data must be batches.*got 7"),
    ({"score": "wanda", "data": [torch.randn(8, 3)]}, r"a layer of 32 inputs.*\(8, 3\)"),
    ({"score": "snip", "data": BATCHES, "loss": "mse"}, "loss must be a function .*'mse'"),
    (
        {"score": "snip", "data": BATCHES, "loss": nn.CrossEntropyLoss()},
        r"loss must be a function \(model, batch\) -> scalar; got CrossEntropyLoss",
    ),
    (
        {"score": "snip", "data": BATCHES, "loss": nn.CrossEntropyLoss},
        "loss must be a function.*the class CrossEntropyLoss",
    ),
    (
        {"score": "snip", "data": BATCHES, "loss": lambda model: model(X).sum()},
        "loss must be a function .*does not take 2 arguments",
    ),
    (
        {"score": "snip", "loss": lambda model, batch: model(X).sum()},
        r"loss must be a function \(model\) -> .*does not take 1 arguments",
    ),
    *(
        (
            {"score": score, "data": BATCHES, "loss": lambda model, batch: 1.0},
            "a loss must be a scalar tensor with a gradient.*got float",
        )
        for score in ("snip", "taylor", "gradient", "weight_gradient")
    ),
    (
        {"allocate": "sensitivity", "data": BATCHES, "loss": lambda model, batch: 1.0},
        "a loss must be a scalar tensor; got 1.0",
    ),
    ({"score": "snip", "data": BATCHES, "rounds": 2.0}, "rounds must be a whole number; got 2.0"),
    ({"score": "snip", "data": BATCHES, "rounds": "2"}, "rounds must be a whole number"),
    ({"score": "snip", "data": BATCHES, "rounds": True}, "rounds must be a whole number"),
]


def refused(error: str, call: Any) -> str:
    """The call raises an error of this library's, whose text is found by `error`."""
    with pytest.raises(sw.SparsewrightError, match=f"(?s){error}") as caught:
        call()
    return str(caught.value)


def named(case: Any) -> str | None:
    return ",".join(case) if isinstance(case, dict) else None


@pytest.mark.parametrize(("wrong", "error"), WRONG_OF_BOTH + WRONG_OF_ATTACH, ids=named)
def test_attach_tells_a_wrong_argument(wrong: dict[str, Any], error: str) -> None:
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    options = {"method": "rigl", "sparsity": 0.5, "steps": 10, **wrong}
    refused(error, lambda: sw.attach(model, sgd(model), **options))
    assert all(map(torch.equal, before, model.parameters()))
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize(("wrong", "error"), WRONG_OF_BOTH + WRONG_OF_PRUNE, ids=named)
def test_prune_tells_a_wrong_argument(wrong: dict[str, Any], error: str) -> None:
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    refused(error, lambda: sw.prune(model, **{"sparsity": 0.5, **wrong}))
    assert all(map(torch.equal, before, model.parameters()))


def test_numbers_of_numpy_are_numbers() -> None:
    for kind in (np.float32, np.float64):
        assert sw.prune(mlp(), kind(0.5), allocate="uniform_all").sparsity == 0.5
    model = mlp()
    sw.attach(model, sgd(model), method="rigl", sparsity=0.5, steps=np.int64(10), seed=np.int64(1))


NO_MODELS: list[tuple[Any, str]] = [
    (None, "got None"),
    (nn.Linear, "got the class Linear: make one"),
    (mlp().state_dict(), "of type OrderedDict: load a state_dict"),
    ([LAYER], "of type list: put the modules into one"),
    (sgd(mlp()), "of type SGD: the model comes first"),
]


@pytest.mark.parametrize(("model", "error"), NO_MODELS)
def test_what_is_no_model(model: Any, error: str) -> None:
    for call in (
        lambda: sw.attach(model, sgd(mlp()), method="static", sparsity=0.5),
        lambda: sw.prune(model, 0.5),
        lambda: sw.solve(model, 0.5, data=[X]),
        lambda: sw.pack(model),
        lambda: sw.unpack(model),
        lambda: sw.deploy(model, X),
        lambda: sw.masks_of(model),
        lambda: sw.find_weights(model),
        lambda: sw.Tickets(model, rounds=1),
    ):
        refused(f"model must be a torch.nn.Module; .*{error}", call)


def test_what_is_no_optimizer() -> None:
    model = mlp()
    one = sgd(model)
    plan = torch.optim.lr_scheduler.StepLR(one, 1)
    wrong: list[tuple[Any, str]] = [
        (None, "must be a torch.optim.Optimizer.*got None"),
        (torch.optim.SGD, "got the class SGD"),
        (list(model.parameters()), "a .* Parameter of shape"),
        (model.parameters(), "of type generator"),
        ({"all": one}, "of type dict"),
        (plan, "of type StepLR: give its .optimizer"),
        (model, "of type Sequential: the model comes first"),
        ([], "an empty list"),
        ([one, one], "given twice"),
    ]
    for given, error in wrong:
        refused(error, lambda: sw.attach(model, given, method="static", sparsity=0.5))  # noqa: B023
    refused("no parameter group", lambda: sw.attach(mlp(), one, method="static", sparsity=0.5))
    sw.attach(model, [one], method="static", sparsity=0.5)  # nothing was left behind


def test_an_init_that_returns_what_fits_no_layer() -> None:
    for values in (3, torch.zeros(3)):
        model = mlp()
        init = lambda layer: values  # noqa: B023, E731
        refused(
            "layer '0': init must return a tensor",
            lambda: sw.attach(model, sgd(model), method="static", sparsity=0.5, init=init),  # noqa: B023
        )
        assert not any(p._backward_hooks for p in model.parameters())


def test_wrong_options_of_parts() -> None:
    for call, error in (
        (lambda: sw.RigL(every="1"), "method RigL: every .* whole number; got '1'"),
        (lambda: sw.RigL(every=0.5), "method RigL: every .* whole number; got 0.5"),
        (lambda: sw.RigL(end=0.75), "method RigL: end .* whole number; got 0.75"),
        (lambda: sw.SET(every=None), "every"),
        (lambda: sw.RigL(fraction="a"), r"method RigL: fraction must be a number in \[0, 1\]"),
        (lambda: sw.Gradual(initial_sparsity=None), "initial_sparsity must be a number"),
        (lambda: sw.NM("2", 4), "N and M must be a whole number; got '2'"),
        (lambda: sw.NM(2.0, 4), "N and M must be a whole number; got 2.0"),
        (lambda: sw.Block(4.0, 4), "R and C must be a whole number; got 4.0"),
        (lambda: sw.Sensitivity(levels=0.5), "levels must be several; got 0.5"),
        (lambda: sw.Sensitivity(levels=("a",)), "a level must be a number"),
        (lambda: sw.PCAStart(X), "data must be {layer:.*a .* Tensor of shape"),
        (lambda: sw.PCAStart({"0": 3}), "data of layer '0' must be a tensor; got 3"),
    ):
        refused(error, call)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"rounds": 2.0}, "Tickets: rounds must be a whole number"),
        ({"rounds": "2"}, "Tickets: rounds must be a whole number"),
        ({"rounds": True}, "Tickets: rounds must be a whole number"),
        ({"fraction": "0.2"}, "Tickets: fraction must be a number"),
        ({"output": None}, "Tickets: output must be a number"),
        ({"fractions": [0.1]}, "Tickets: fractions must be {glob: fraction}"),
        ({"fractions": {"0": "a"}}, "Tickets: 0 must be a number"),
        ({"rewind": True}, "Tickets: rewind must be 'init', 'lr' or a step; got True"),
        ({"rewind": 1.5}, "Tickets: rewind must be"),
        ({"scope": None}, "no value of Tickets' scope is called None"),
        ({"score": None}, "score must be"),
        ({"score": "snip"}, r"Tickets: score SNIP\(.* measures the model on data"),
        ({"pattern": None}, "pattern must be"),
        ({"seed": "a"}, "seed must be a whole number"),
    ],
    ids=named,
)
def test_tickets_tell_a_wrong_argument(wrong: dict[str, Any], error: str) -> None:
    refused(error, lambda: sw.Tickets(mlp(), **{"rounds": 2, **wrong}))


def test_a_ticket_tells_a_wrong_argument() -> None:
    tickets = sw.Tickets(mlp(), rounds=1)
    ticket = next(iter(tickets))
    optimizer = sgd(tickets.model)
    refused("pattern: the tickets' own", lambda: ticket.attach(optimizer, pattern="2:4"))
    refused("sparsity: the tickets' own", lambda: ticket.attach(optimizer, sparsity=0.5))
    refused("the class RigL", lambda: ticket.attach(optimizer, method=sw.RigL))
    refused("Optimizer.*got None", lambda: ticket.attach(None))
    refused("it lacks .*'masks'", lambda: tickets.load_state_dict({}))
    refused("the state of Tickets", lambda: tickets.load_state_dict(None))
    ticket.attach(optimizer)


def test_pack_and_deploy_tell_a_wrong_argument() -> None:
    model = mlp()
    for call, error in (
        (lambda: sw.pack(model, masks=[1]), "masks must be"),
        (lambda: sw.pack(model, masks="x"), r"masks must be.*sw.load_masks"),
        (lambda: sw.pack(model, skip=LAYER), "skip must be"),
        (lambda: sw.save_masks(model, "x"), "masks must be .*of type Sequential"),
        (lambda: sw.deploy(model, None), "example 0 must be a tensor; got NoneType"),
        (lambda: sw.deploy(model, {"x": X}), "example 0 must be a tensor; got dict"),
        (lambda: sw.deploy(model, X[:0]), r"example 0 must not be empty; got shape \(0, 32\)"),
        (lambda: sw.deploy(model, X[:, :3]), r"does not run on the example \(.*\(8, 3\)\)"),
        (lambda: sw.deploy(model, X.long()), "does not run on the example .*int64"),
        (lambda: sw.deploy(model, (X, Y)), "does not run on the example"),
        (lambda: sw.deploy(model, X, seconds="1"), "seconds must be a number"),
        (lambda: sw.deploy(model, X, seconds=-1), "seconds must be a number of 0 or more"),
        (lambda: sw.deploy(model, X, seconds=float("nan")), "seconds must be a number"),
        (lambda: sw.deploy(model, X, kernels=3), "kernels must be a list of names; got 3"),
        (lambda: sw.deploy(model, X, kernels=[3]), "no kernel is called 3"),
        (lambda: sw.deploy(model, X, kernels=[]), "kernels must name at least one; got none"),
        (lambda: sw.deploy(model, X, kernels=iter(())), "kernels must name at least one"),
        (lambda: sw.deploy(model, X, values=torch.bfloat16), "no type of values is called"),
    ):
        refused(error, call)


# what went on in silence


def test_an_update_that_never_comes_is_told() -> None:
    for method, steps, comes in (
        (sw.SET(every=100), 50, False),
        (sw.SET(every=10), 50, True),
        (sw.RigL(every=100, start=60), 50, False),
        (sw.RigL(every=100), 50, True),  # at step 0
        ("static", 50, True),
        ("gradual", 50, True),  # at its end
        ("top_kast", 50, True),
    ):
        model = mlp()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sparse = sw.attach(model, sgd(model), method=method, sparsity=0.5, steps=steps)
        idle = f"method {type(sparse.method).__name__}: no update is due within the 50 steps"
        assert [str(w.message)[: len(idle)] for w in told] == ([] if comes else [idle])
        assert comes or (told[0].category is sw.SparsityWarning and told[0].filename == __file__)


def test_no_method_is_wrongly_told_to_be_idle() -> None:
    """In a run of a thousand steps every method's defaults have an update, or need none."""
    for name in METHODS.names():
        model = mlp()
        sw.attach(model, sgd(model), method=name, sparsity=0.5, steps=1000)  # warnings are errors


def test_frozen_layers_that_lose_weights_are_told() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    with pytest.warns(sw.SparsityWarning, match=r"frozen layers lose weights.*'0'.*skip=\['0'\]"):
        sw.attach(model, optimizer, method="static", sparsity=0.5).detach()
    sw.attach(model, optimizer, method="static", masks=sw.masks_of(model)).detach()
    sw.attach(model, optimizer, method="static", sparsity=0.5, skip=["0"])


# models of other kinds


def test_weights_without_a_shape_or_values() -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4))
    for call in (
        lambda: sw.attach(lazy, sgd(lazy), method="static", sparsity=0.5),
        lambda: sw.prune(lazy, 0.5),
        lambda: sw.pack(lazy),
        lambda: sw.deploy(lazy, X),
        lambda: sw.masks_of(lazy),
    ):
        refused("weight '0' of a LazyLinear has no shape yet: run the model on one input", call)
    lazy(X)
    sw.prune(lazy, 0.5)
    with torch.device("meta"):
        empty = mlp()
    refused("weight '0' is on the device meta", lambda: sw.prune(empty, 0.5))
    refused(
        "weight '0' is on the device meta",
        lambda: sw.attach(empty, sgd(empty), method="static", sparsity=0.5),
    )


def test_weights_that_a_layer_computes_are_told() -> None:
    normed = parametrizations.weight_norm(nn.Linear(32, 8))
    refused(
        r"(?s)whose weights are parametrizations.weight.original0.*remove_parametrizations",
        lambda: sw.prune(normed, 0.5),
    )
    summary = sw.prune(nn.Sequential(normed, nn.Linear(8, 8)), 0.5, allocate="erk")
    assert {one.reason for one in summary.left_dense} == {"its layer computes its weight from it"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_train(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    optimizer = sgd(model)
    sparse = sw.attach(model, optimizer, method=sw.RigL(every=2), sparsity=0.75, steps=6)
    for _ in range(6):
        optimizer.zero_grad()
        model(X.to(dtype)).float().square().mean().backward()
        optimizer.step()
    absent = [layer.absent for layer in sparse.layers]
    assert not any(y.weight[a].any() for y, a in zip(sparse.layers, absent, strict=True))
    assert sparse.changes


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_train(wrap: Any) -> None:
    model = mlp()
    whole = wrap(model)
    optimizer = sgd(whole)
    sparse = sw.attach(whole, optimizer, method=sw.RigL(every=2), sparsity=0.75, steps=4)
    for _ in range(4):
        step(whole, optimizer)
    assert sparse.changes
    assert (model[0].weight == 0).any()
    assert sparse.report().sparsity == pytest.approx(0.75, abs=1e-3)


def test_detaching_twice_does_nothing() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparse = sw.attach(model, optimizer, method="static", sparsity=0.75)
    sparse.detach()
    sparse.detach()
    present = int((model[2].weight != 0).sum())
    step(model, optimizer)
    assert int((model[2].weight != 0).sum()) > present
    sw.attach(model, optimizer, method="static", sparsity=0.75)


@pytest.mark.parametrize("pack", [lambda model: model, sw.pack], ids=["masked", "packed"])
def test_what_is_attached_is_not_pruned(pack: Any) -> None:
    model = pack(mlp())
    sparse = sw.attach(model, sgd(model), method="static", sparsity=0.5)
    held = "is held by a Sparsifier.*detach"
    refused(held, lambda: sw.prune(model, 0.9))
    refused(held, lambda: sw.prune(model, 0.9, solver="wanda", data=[X]))
    refused(
        "attached already",
        lambda: sw.attach(model, sgd(model), method="set", sparsity=0.9, steps=300),
    )
    sparse.detach()
    sw.prune(model, 0.9, allocate="uniform_all")


@pytest.mark.parametrize("method", ["rigl", "sr_ste", "l0"])
def test_copies_hold_nothing_and_a_sparsifier_is_not_copied(method: str) -> None:
    model = mlp()
    optimizer = sgd(model)
    sparse = sw.attach(model, optimizer, method=method, sparsity=0.75, steps=10)
    for call in (
        lambda: copy.deepcopy(sparse),
        lambda: copy.deepcopy((model, optimizer, sparse)),
        lambda: pickle.dumps(sparse),
        lambda: torch.save(sparse, io.BytesIO()),
    ):
        refused(r"a Sparsifier cannot be copied or pickled: save its state_dict\(\)", call)
    torch.save(model, io.BytesIO())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = [p.detach().clone() for p in model.parameters()]
        twin.train()(X).sum().backward()
        sgd(twin).step()
        assert all(map(torch.equal, before, model.parameters())), "the copy moved the original"


def test_an_exploration_of_something_else() -> None:
    refused("Exploration looks at what attach returned", lambda: sw.Exploration(mlp()))
    model = mlp()
    sparse = sw.attach(model, sgd(model), method="static", sparsity=0.75)
    refused("a sparse state must be what state_dict", lambda: sparse.load_state_dict(None))


# on the command line


@pytest.mark.parametrize(
    "name", ["rigl", "magnitude", "obc", "erk", "owl", "2:4", "2:8", "block:4x4"]
)
def test_every_kind_of_part_is_explained(name: str, capsys: Any) -> None:
    assert main(["methods", name]) == 0
    assert capsys.readouterr().out.startswith("# ")


def test_a_name_that_no_part_has_lists_those_that_are() -> None:
    for name, meant in (("erkk", "erk"), ("ERK", "erk"), ("2-4", "2:4"), ("RigL", "rigl")):
        with pytest.raises(sw.UnknownNameError, match=f"did you mean '{meant}'"):
            page_named(name, TABLES)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (["--epochs", "0"], "epochs must be 1 or more; got 0"),
        (["--seeds", "-1"], "seed must be in"),
        (["--jobs", "-2"], "jobs must be 0 (one on each core) or more; got -2"),
        (["--methods", ","], "--methods must name recipes; got ','"),
        (["--methods", "rigll"], "did you mean 'rigl'"),
        (["--sparsity", "90"], "must be between 0 and 1; got 90"),
    ],
)
def test_compare_tells_a_wrong_flag_before_any_run(
    wrong: list[str], error: str, tmp_path: Any, capsys: Any
) -> None:
    asked = ["--suite", "digits-mlp", "--methods", "dense", "--out", str(tmp_path / "runs")]
    assert main(["compare", *asked, *wrong]) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_is_named_twice_is_compared_once() -> None:
    asked = Asked("digits-mlp", ("dense", "rigl"), (0.9, 0.9), (0, 0), 1)
    assert [str(job) for job in jobs_of(asked)] == [
        "dense, sparsity 0, seed 0",
        "rigl, sparsity 0.9, seed 0",
    ]


def test_a_comparison_that_is_stopped_says_how_it_goes_on(
    tmp_path: Any, capsys: Any, monkeypatch: Any
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsewright.lab.compare.command.make_runs", stopped)
    asked = ["compare", "--suite", "digits-mlp", "--methods", "dense", "--out", str(tmp_path)]
    assert main(asked) == 130
    assert "stopped; the same command goes on where it stopped" in capsys.readouterr().err
    monkeypatch.setattr("sparsewright.lab.demo.demo", stopped)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert "sparsewright: stopped" in capsys.readouterr().err


def test_files_of_runs_that_are_none(tmp_path: Any, capsys: Any) -> None:
    asked = ["compare", "--from", str(tmp_path), "--page"]
    assert main([*asked, str(tmp_path / "page.pdf")]) == 2
    assert "--page must be FILE.md or FILE.html" in capsys.readouterr().err
    page = str(tmp_path / "page.md")
    assert main([*asked, page]) == 2
    assert "no runs in" in capsys.readouterr().err
    job = b'{"suite": "digits-mlp", "recipe": "set", "sparsity": 0.9, "seed": 0, "epochs": 1}'
    for line in (b'{"broken', b"[]", b"{}", bytes(range(128, 160)), job):
        (tmp_path / "runs.jsonl").write_bytes(line + b"\n")
        assert main([*asked, page]) == 2
        assert "line 1: must be the JSON of a run" in capsys.readouterr().err

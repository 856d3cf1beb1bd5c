"""The Sparsifier in a user's loop: every way of stepping, copying, resuming and leaving."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import assert_masked, loss_of, muon_and_sgd, small_model, through_a_file, train_step

import sparsewright as sw


def rigl(**options):
    return sw.RigL(**({"every": 2, "end": 100, "fraction": 0.5} | options))


def attached(model=None, optimizer=None, method=None, **options):
    model = small_model() if model is None else model
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    sparse = sw.attach(model, optimizer, method=method or rigl(), **({"sparsity": 0.75} | options))
    return model, optimizer, sparse


# equal to a plain reference


def test_static_equals_a_masked_parametrization():
    """Static + AdamW is AdamW on a model whose weights are w * mask, to the bit."""

    class Masked(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.mask = mask

        def forward(self, weight):
            return weight * self.mask

    model, optimizer, sparse = attached(method="static")
    twin = small_model()
    for layer in sparse.layers:
        module = twin.get_submodule(layer.name)
        with torch.no_grad():
            module.weight.mul_(layer.mask)
        parametrize.register_parametrization(module, "weight", Masked(layer.mask.float()))
    twin_optimizer = torch.optim.AdamW(twin.parameters(), 1e-2)
    for step in range(10):
        train_step(model, [optimizer], step)
        train_step(twin, [twin_optimizer], step)
    for layer in sparse.layers:
        assert torch.equal(layer.weight, twin.get_submodule(layer.name).weight)


def test_rigl_grows_where_the_dense_gradient_is_largest():
    """The update sees the gradients of absent weights, worked out here by autograd alone."""
    model, optimizer, sparse = attached(method=rigl(every=1, fraction=0.3, exclude_dropped=True))
    layer = sparse.layers[0]
    before = layer.table.clone()
    weight, loss = model[0].weight, loss_of(model, 0)
    (dense,) = torch.autograd.grad(loss, weight)
    moved = int(0.3 * int(before.sum()))
    train_step(model, [optimizer], 0)
    grown = (layer.table & ~before).reshape(weight.shape)
    assert int(grown.sum()) == moved
    ranked = dense.abs().masked_fill(before.reshape(weight.shape), -1).flatten()
    assert set(ranked.topk(moved).indices.tolist()) == set(grown.flatten().nonzero()[:, 0].tolist())


def test_rigl_takes_no_step_at_an_update_by_default():
    model, optimizer, _ = attached(method=rigl(every=2, fraction=0.0))
    before = [p.detach().clone() for p in model.parameters()]
    train_step(model, [optimizer], 0)  # step 0 is an update
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state, "not even momentum moved"
    assert all(p.grad is not None for p in model.parameters()), "gradients are given back"
    train_step(model, [optimizer], 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_rigl_can_step_at_an_update():
    model, optimizer, _ = attached(method=rigl(step_on_update=True))
    bias = model[0].bias.detach().clone()
    train_step(model, [optimizer], 0)
    assert not torch.equal(bias, model[0].bias)


# what the optimizer remembers of weights that come and go


@pytest.mark.parametrize(
    ("make", "slot", "start"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "momentum_buffer", 0.0),
        (lambda p: torch.optim.AdamW(p, 0.1), "exp_avg", 0.0),
        (lambda p: torch.optim.AdamW(p, 0.1), "exp_avg_sq", 0.0),
        (lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.5), "sum", 0.5),
        (lambda p: torch.optim.Rprop(p, 0.125), "step_size", 0.125),
    ],
)
def test_state_of_grown_weights_starts_as_the_optimizer_would(make, slot, start):
    """Most of all of weights that were present before: they left something behind."""
    model = small_model()
    optimizer = make(model.parameters())
    _, _, sparse = attached(model, optimizer, rigl(every=3, start=3, exclude_dropped=True))
    layer = sparse.layers[0]
    ever, returned = layer.table.clone(), 0
    for step in range(16):
        before = layer.table.clone()
        train_step(model, [optimizer], step)
        grown = layer.table & ~before
        if grown.any():
            state = optimizer.state[layer.weight][slot].reshape(grown.shape)
            assert (state[grown] == start).all()
            assert (state[layer.table & before] != start).any()
            assert (layer.weight.reshape(grown.shape)[grown] == 0).all()
            returned += int((grown & ever).sum())
        ever |= layer.table
    assert returned > 0


def test_momentum_never_learns_of_absent_weights():
    """Not at an update that takes its step too, nor of what a user does to gradients."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    _, _, sparse = attached(model, optimizer, rigl(every=2, step_on_update=True))
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for layer in sparse.layers:
            layer.weight.grad += 0.01  # gradient noise, say
        optimizer.step()
        for layer in sparse.layers:
            assert not optimizer.state[layer.weight]["momentum_buffer"][layer.absent].any()


# the ways of stepping


def test_gradient_accumulation_is_one_large_batch():
    """Masks and weights after two half batches are those of their mean."""
    model, optimizer, sparse = attached(method=rigl(every=1, step_on_update=True))
    twin, twin_optimizer, twin_sparse = attached(method=rigl(every=1, step_on_update=True))
    for step in range(4):
        optimizer.zero_grad()
        for half in (0, 1):
            (loss_of(model, 2 * step + half) / 2).backward()
        optimizer.step()
        twin_optimizer.zero_grad()
        loss = (loss_of(twin, 2 * step) + loss_of(twin, 2 * step + 1)) / 2
        loss.backward()
        twin_optimizer.step()
        assert_masked(sparse)
    for layer, other in zip(sparse.layers, twin_sparse.layers, strict=True):
        assert torch.equal(layer.table, other.table)
        # the two sum the same numbers in another order: a few float32 roundings
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-4, atol=1e-5)


def test_clipping_sees_present_weights_only():
    model, _, sparse = attached(method="static")
    loss_of(model, 0).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    present = [p.grad for p in model.parameters() if p.dim() == 1]
    present += [layer.weight.grad[layer.mask] for layer in sparse.layers]
    assert norm == pytest.approx(torch.cat([g.flatten() for g in present]).norm().item(), rel=1e-6)
    for layer in sparse.layers:
        assert not layer.weight.grad[layer.absent].any()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_skips_does_not_count(fused):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=fused)
    _, _, sparse = attached(model, optimizer, rigl(every=2, start=0, end=50))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    tables = [layer.table.clone() for layer in sparse.layers]
    scaler.scale(loss_of(model, 0) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    assert sparse.step == 0
    assert all(torch.equal(a, la.table) for a, la in zip(tables, sparse.layers, strict=True))
    for step in range(1, 6):
        scaler.scale(loss_of(model, step)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert_masked(sparse)
    assert sparse.step == 5
    assert sparse.changes[0].step == 0


def test_autocast():
    model, optimizer, sparse = attached()
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        assert_masked(sparse)
    assert sum(change.grown for change in sparse.changes) > 0


def test_a_closure_given_by_name_or_place():
    for by_name in (False, True):
        model, optimizer, sparse = attached(optimizer=None, method=rigl(every=1))

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(model, 0)
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert loss.item() > 0
        assert sum(change.grown for change in sparse.changes) > 0
        assert_masked(sparse)


def test_several_parameter_groups_and_schedulers():
    model = small_model()
    groups = [
        {"params": [model[0].weight], "lr": 0.1},
        {"params": [model[2].weight, model[0].bias, model[2].bias], "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, 1e-2)
    _, _, sparse = attached(model, optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for step in range(6):
        train_step(model, [optimizer], step)
        scheduler.step()
        assert_masked(sparse)
    assert sparse.step == 6


def test_two_optimizers_withhold_the_same_step():
    model = small_model()
    optimizers = muon_and_sgd(model)
    sparse = sw.attach(model, optimizers, method=rigl(every=2, start=0), sparsity=0.5)
    bias = model[0].bias.detach().clone()
    train_step(model, optimizers, 0)
    assert torch.equal(bias, model[0].bias)
    train_step(model, optimizers, 1)
    assert not torch.equal(bias, model[0].bias)
    assert sparse.step == 2


def test_a_layer_without_a_gradient_stays_as_it_is():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, _, sparse = attached(model, optimizer, rigl(every=1))
    table = sparse.layers[1].table.clone()
    model[0](torch.randn(4, 32)).sum().backward()  # the second layer takes no part
    optimizer.step()
    assert torch.equal(sparse.layers[1].table, table)
    assert_masked(sparse)


def test_sparse_gradients_of_an_embedding():
    torch.manual_seed(0)
    model = nn.Embedding(20, 16, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters(), 0.1)
    sparse = sw.attach(model, optimizer, method="static", pattern="2:4")
    before = model.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 5, 5])).square().sum().backward()
        optimizer.step()
        assert_masked(sparse)
    assert not torch.equal(before, model.weight)


# tied weights, attention, convolution


def test_tied_weights_are_handled_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(24, 32)
            self.head = nn.Linear(32, 24, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    sparse = sw.attach(model, optimizer, method=rigl(), sparsity=0.5, allocate="uniform_all")
    assert [layer.name for layer in sparse.layers] == ["embed"]
    assert sparse.layers[0].aliases == ("head",)
    assert sparse.report().total == 24 * 32
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.arange(24)).square().mean().backward()
        optimizer.step()
        assert_masked(sparse)
    assert sum(change.grown for change in sparse.changes) > 0


def test_attention_and_convolution_train_sparse():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(8, 16, 3, padding=1)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x):
            x = self.conv(x).transpose(1, 2)
            return self.attention(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    sparse = sw.attach(model, optimizer, method=rigl(), pattern="2:4")
    assert [la.name for la in sparse.layers] == [
        "conv",
        "attention.in_proj_weight",
        "attention.out_proj",
    ]
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(2, 8, 10)).square().mean().backward()
        optimizer.step()
        assert_masked(sparse)
    # 2:4 along the input channels of every kernel position
    assert (model.conv.weight != 0).reshape(16, 2, 4, 3).sum(dim=2).le(2).all()


# copies


def test_deepcopy_is_a_plain_model():
    model, optimizer, sparse = attached()
    train_step(model, [optimizer], 0)
    twin = copy.deepcopy(model)
    x = torch.randn(3, 32)
    assert torch.equal(model(x), twin(x))
    loss_of(twin, 1).backward()
    absent = sparse.layers[0].absent
    assert twin[0].weight.grad[absent].any(), "the copy's gradients are its own, unmasked"


def test_a_moving_average_can_be_masked():
    model, optimizer, sparse = attached(method=rigl(every=1, step_on_update=True))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    leaked = False
    for step in range(5):
        train_step(model, [optimizer], step)
        average.update_parameters(model)
        leaked |= any(
            bool(average.module.get_submodule(la.name).weight[la.absent].any())
            for la in sparse.layers
        )
        sparse.apply_masks(average)
        for layer in sparse.layers:
            assert not average.module.get_submodule(layer.name).weight[layer.absent].any()
    assert leaked, "without apply_masks the average would hold dropped weights"
    with pytest.raises(sw.StateError, match="the copy has no weight '0' of shape"):
        sparse.apply_masks(nn.Sequential(nn.Linear(3, 3)))


def test_compiled_model_follows_the_same_masks():
    model, optimizer, sparse = attached(method=rigl(every=2))
    plain, plain_optimizer, plain_sparse = attached(method=rigl(every=2))
    compiled = torch.compile(model, backend="aot_eager")
    for step in range(5):
        train_step(compiled, [optimizer], step)
        train_step(plain, [plain_optimizer], step)
        assert_masked(sparse)
    for layer, other in zip(sparse.layers, plain_sparse.layers, strict=True):
        assert torch.equal(layer.table, other.table)


def test_attaching_to_a_compiled_model():
    model = torch.compile(small_model(), backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    sparse = sw.attach(model, optimizer, method=rigl(every=1), sparsity=0.5)
    for step in range(3):
        train_step(model, [optimizer], step)
        assert_masked(sparse)


# leaving and resuming


def test_detach_leaves_a_plain_model():
    model, optimizer, sparse = attached(method="static")
    train_step(model, [optimizer], 0)
    masks = [layer.mask for layer in sparse.layers]
    sparse.detach()
    for parameter in model.parameters():
        assert not parameter._backward_hooks
    assert all(not la.weight[~mask].any() for la, mask in zip(sparse.layers, masks, strict=True))
    train_step(model, [optimizer], 1)
    assert model[0].weight[~masks[0]].any(), "without hooks absent weights train again"
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    _, _, sparse = attached()
    state = through_a_file(sparse.state_dict())
    _, _, other = attached(pattern="2:4", sparsity=None)
    before = [layer.table.clone() for layer in other.layers]
    with pytest.raises(sw.StateError, match="layer '0': the sparse state has pattern unstructured"):
        other.load_state_dict(state)
    without = {key: value for key, value in state.items() if key != "steps"}
    with pytest.raises(sw.StateError, match=r"it lacks \['steps'\]"):
        sparse.load_state_dict(without)
    _, _, other_method = attached(method="set")
    with pytest.raises(sw.StateError, match="state is of method RigL; this is SET"):
        other_method.load_state_dict(state)
    _, _, denser = attached(sparsity=0.5)
    with pytest.raises(sw.StateError, match="layer '0': the sparse state has keep 5"):
        denser.load_state_dict(state)
    with pytest.raises(sw.StateError, match="must be of version 1; got 7"):
        sparse.load_state_dict(state | {"version": 7})
    small = nn.Sequential(nn.Linear(32, 64))
    _, _, third = attached(small, torch.optim.SGD(small.parameters(), 0.1))
    with pytest.raises(sw.StateError, match=r"of another model: it lacks nothing .* \['2'\]"):
        third.load_state_dict(state)
    assert all(torch.equal(a, la.table) for a, la in zip(before, other.layers, strict=True))


def test_attaching_twice_is_refused_until_detached():
    model, optimizer, sparse = attached(method="static")
    with pytest.raises(sw.StateError, match=r"weight '0' is attached already: call detach\(\)"):
        sw.attach(model, optimizer, method="static", sparsity=0.5)
    sparse.detach()
    again = sw.attach(model, optimizer, method="static", sparsity=0.5)
    train_step(model, [optimizer], 0)
    assert again.report().sparsity == 0.5
    assert_masked(again)


def test_an_optimizer_of_another_model_is_refused():
    optimizer = torch.optim.SGD(small_model().parameters(), 0.1)
    with pytest.raises(sw.StateError, match="weight '0' of Sequential is in no parameter group"):
        sw.attach(small_model(), optimizer, method="static", sparsity=0.5)


@pytest.mark.filterwarnings("ignore:frozen layers lose weights")
def test_frozen_weights_are_masked_and_stay():
    model = small_model()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    _, _, sparse = attached(model, optimizer)
    before = model[0].weight.clone()
    for step in range(3):
        train_step(model, [optimizer], step)
    assert torch.equal(before, model[0].weight)
    assert_masked(sparse)


# initial values and warnings


def test_fan_in_values_keep_the_signals_size():
    """Mean square of a ReLU net's activations: steady with init, else shrinking."""
    torch.manual_seed(0)
    sizes = {}
    for init in (None, "fan_in"):
        layers = [nn.Linear(256, 256, bias=False) for _ in range(6)]
        for layer in layers:  # He for dense layers
            nn.init.normal_(layer.weight, std=(2 / 256) ** 0.5)
        model = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        sw.attach(
            model, optimizer, method="static", sparsity=0.9, allocate="uniform_all", init=init
        )
        x = torch.randn(200, 256)
        sizes[init] = (model(x).square().mean() / x.relu().square().mean()).item()
    # Without: 0.1^6 = 1e-6 of it. With: 1 up to the spread of 256 random neurons over 6 layers.
    assert sizes[None] < 1e-4
    assert 0.3 < sizes["fan_in"] < 3


def test_init_may_be_a_function_and_nothing_else():
    model, _, sparse = attached(method="static", init=lambda la: torch.full(la.shape, 2.0))
    assert (model[0].weight[sparse.layers[0].mask] == 2).all()
    assert_masked(sparse)
    other = small_model()
    with pytest.raises(sw.ConfigError, match="init must be None, 'fan_in' or a function"):
        attached(other, init="kaiming")
    attached(other)  # the failed attachment left no hook behind


def test_a_layer_below_the_percolation_threshold_warns():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(sw.SparsityWarning, match=r"layer '0' is below its percolation threshold: 0"):
        sw.attach(model, optimizer, method="static", sparsity=0.99, skip="2", allocate="erk")


def test_no_path_warns():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def split(layer):  # the first layer feeds its upper half only, the second reads the lower
        mask = torch.zeros(8, 8, dtype=torch.bool)
        if layer.name == "0":
            mask[:4] = True
        else:
            mask[:, 4:] = True
        return mask.reshape(1, 64)

    class Split(sw.Static):
        def begin(self, layer):
            return split(layer)

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(sw.SparsityWarning, match="layer '2': no path leads from the input"):
        sw.attach(model, optimizer, method=Split(), sparsity=0.5, allocate="uniform_all")


def test_an_ordinary_layer_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached()


def test_summary_is_a_table_of_exact_counts(capsys):
    _, _, sparse = attached(skip=["2"])
    sparse.summary()
    printed = capsys.readouterr().out
    assert "512 of 2,048 weights" in printed
    assert "skipped by request" in printed
    report = sparse.report()
    assert (report.present, report.total, report.sparsity) == (512, 2048, 0.75)
    assert report.sparsity_of_all == 1536 / 4096
    assert report.to_dict()["rows"][0]["present"] == 512

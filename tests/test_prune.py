"""One-shot pruning and the choice of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training import loss_of, small_model

import sparsewright as sw


def present(model):
    return [int((p != 0).sum()) for p in model.parameters() if p.dim() > 1]


def test_keeps_the_largest_to_the_unit():
    model = small_model()
    before = model[0].weight.detach().clone()
    report = sw.prune(model, 0.9, allocate="uniform_all")
    assert report.present == sum(present(model)) == 4096 - 3686  # floor(0.9 * 4096) zeros
    kept = model[0].weight != 0
    assert before[kept].abs().min() >= before[~kept].abs().max()
    assert torch.equal(model[0].weight[kept], before[kept])


def test_uniform_leaves_the_first_layer_dense():
    report = sw.prune(small_model(), 0.5)
    assert [row.name for row in report.rows] == ["2"]
    assert [(left.name, left.reason) for left in report.left_dense] == [
        ("0", "left dense by the allocation")
    ]
    assert report.sparsity == 0.5
    assert report.sparsity_of_all == 0.25


def test_two_of_four_along_the_inputs():
    model = small_model()
    sw.prune(model, pattern="2:4", allocate="uniform_all")
    for weight in (model[0].weight, model[2].weight):
        assert ((weight != 0).reshape(-1, 4).sum(dim=1) == 2).all()


def test_the_design_example_prunes_what_is_not_the_head():
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32))
    model.head = nn.Linear(32, 3)
    report = sw.prune(
        model, sparsity=0.5, pattern="2:4", score="magnitude", allocate="uniform", skip=["head"]
    )
    assert [row.name for row in report.rows] == ["body.2"]
    assert report.rows[0].present == 512


@pytest.mark.parametrize("skip", ["2", ["2"], ["[2-9]"], nn.Linear])
def test_skip_by_name_glob_or_type(skip):
    model = small_model()
    if skip is nn.Linear:
        model.append(nn.Conv1d(32, 32, 1))
    report = sw.prune(model, 0.5, allocate="uniform_all", skip=skip)
    assert "2" not in [row.name for row in report.rows]


def test_a_name_to_skip_that_is_not_there_is_an_error():
    with pytest.raises(sw.UnknownNameError, match=r"no weight to skip is called 'haed'.*There are"):
        sw.prune(small_model(), 0.5, skip=["haed"])


def test_overrides_stand_outside_the_budget():
    model = small_model()
    report = sw.prune(
        model, 0.75, allocate="uniform_all", overrides={"0": {"sparsity": 0.5, "pattern": "2:4"}}
    )
    assert [(r.pattern, r.sparsity) for r in report.rows] == [("2:4", 0.5), ("unstructured", 0.75)]
    with pytest.raises(sw.UnknownNameError, match="no per-layer override is called 'sparsty'"):
        sw.prune(model, 0.5, overrides={"0": {"sparsty": 0.5}})
    with pytest.raises(sw.UnknownNameError, match=r"no weight to override is called 'conv\*'"):
        sw.prune(model, 0.5, overrides={"conv*": {"sparsity": 0.5}})


def test_misfits_are_named_skipped_or_given_another_pattern():
    def model():
        return nn.Sequential(nn.Linear(100, 32), nn.Linear(32, 64))

    with pytest.raises(
        sw.MisfitError,
        match=r"layer '0': pattern 3:32 needs in_features divisible by 32; got 100\. Leave it out",
    ):
        sw.prune(model(), pattern="3:32", allocate="uniform_all")
    report = sw.prune(model(), pattern="3:32", allocate="uniform_all", on_misfit="skip")
    assert [row.name for row in report.rows] == ["1"]
    assert report.left_dense[0].reason == (
        "pattern 3:32 needs in_features divisible by 32; got 100"
    )
    report = sw.prune(model(), 0.9, "3:32", allocate="uniform_all", on_misfit="unstructured")
    assert [row.pattern for row in report.rows] == ["unstructured", "3:32"]
    assert report.present == 5248 - 4723  # floor(0.9 * 5248) zeros: met to the unit
    with pytest.raises(sw.MisfitError, match="and on_misfit='3:7' needs in_features"):
        sw.prune(model(), pattern="3:32", on_misfit="3:7")


def test_a_sparsity_that_the_pattern_cannot_hold_names_the_nearest():
    with pytest.raises(sw.BudgetError, match=r"0\.9 .*3:32.*0\.90625"):
        sw.prune(small_model(), 0.9, "3:32", allocate="uniform_all")


def test_gradient_scores_come_from_a_loss_and_leave_no_trace():
    model = small_model()
    model[0].bias.grad = torch.ones(64)
    (dense,) = torch.autograd.grad(loss_of(model, 0), model[0].weight)
    weight = model[0].weight.detach().clone()
    sw.prune(
        model,
        0.5,
        score="weight_gradient",
        allocate="uniform_all",
        loss=lambda m: loss_of(m, 0),
    )
    saliency = (weight * dense).abs()
    kept = model[0].weight != 0
    assert saliency[kept].min() >= saliency[~kept].max()
    assert model[0].weight.grad is None
    assert torch.equal(model[0].bias.grad, torch.ones(64))


def test_a_score_without_its_gradient_says_so_and_changes_nothing():
    model = small_model()
    with pytest.raises(sw.StateError, match="layer '0'"):
        sw.prune(model, 0.5, score="gradient", allocate="uniform_all")
    assert present(model) == [2048, 2048]
    model[0].bias.grad = torch.ones(64)
    with pytest.raises(sw.UnknownNameError):
        sw.prune(model, 0.5, score="gradient", loss=lambda m: loss_of(m, 0), skip=["none"])
    assert torch.equal(model[0].bias.grad, torch.ones(64)), "gradients come back after an error"
    with pytest.raises(sw.ConfigError, match="measure nothing on data; leave loss out"):
        sw.prune(model, 0.5, loss=lambda m: loss_of(m, 0))


def test_global_keeps_the_largest_of_the_whole_model():
    model = small_model()
    with torch.no_grad():
        model[2].weight.mul_(1.2)
    all_before = torch.cat([p.detach().flatten() for p in model.parameters() if p.dim() == 2])
    sw.prune(model, 0.75, allocate="global")
    kept = torch.cat([p.detach().flatten() for p in model.parameters() if p.dim() == 2]) != 0
    assert int(kept.sum()) == 1024
    assert all_before[kept].abs().min() >= all_before[~kept].abs().max()


def test_a_model_without_weights_to_prune():
    with pytest.raises(sw.ConfigError, match="no weight that can be made sparse"):
        sw.prune(nn.Sequential(nn.ReLU()), 0.5)


def test_going_on_from_a_pruned_network():
    model = small_model()
    sw.prune(model, 0.8, allocate="uniform_all")
    kept = model[0].weight != 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sw.attach(
        model,
        optimizer,
        method=sw.Static(initial="magnitude"),
        sparsity=0.8,
        allocate="global",
    )
    assert torch.equal(model[0].weight != 0, kept)


def test_a_sparsity_that_is_missing_is_asked_for():
    with pytest.raises(sw.BudgetError, match=r"^pattern unstructured fixes no sparsity of its own"):
        sw.prune(small_model())
    with pytest.raises(
        sw.BudgetError,
        match=r"layer '0': pattern 3:31 needs in_features divisible by 31; got 32; the pattern "
        r"unstructured that it takes instead fixes no sparsity of its own: give one",
    ):
        sw.prune(small_model(), pattern="3:31", on_misfit="unstructured")


def test_biases_and_norms_are_never_pruned():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8)
    )
    for p in model.parameters():
        nn.init.normal_(p, std=1e-3 if p.dim() == 1 else 1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = sw.prune(model, 0.9, allocate="global")
    assert report.total == 4 * 8 * 3 + 16 * 8
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (p.dim() == 1), name

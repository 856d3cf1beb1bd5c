"""What papers and public code fix of structured sparsity: SR-STE, 2:4 once and train again, blocks,
filters, scales of norms, ADMM, hard thresholding; and the traps in which implementations part."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_penalty_methods import attached, linear, step_along
from torch import nn
from torch.nn import functional as F
from training import assert_masked

import sparsewright as sw
from sparsewright.methods.admm import ADMM
from sparsewright.methods.iht import IHT
from sparsewright.methods.slimming import Slimming
from sparsewright.methods.sr_ste import SRSTE

# SR-STE


def forward_of(model, x):
    """The model's function of its weights as they are, written out."""
    conv, dense = model[0], model[3]
    hidden = F.conv2d(x, conv.weight, conv.bias, padding=1).relu().flatten(1)
    return F.linear(hidden, dense.weight, dense.bias)


def conv_net():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 4, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 6))


def test_sr_ste_of_a_convolution_is_its_formula_along_input_channels():
    """g + lambda * (1 - mask) * w of all weights, mask the best two of four input channels at every
    place of the kernel; and the bias of a Linear is there."""
    model, rate, penalty = conv_net(), 0.1, 0.3
    optimizer = torch.optim.SGD(model.parameters(), rate)
    sparse = sw.attach(model, optimizer, method=SRSTE(penalty), pattern="2:4")
    latent = [layer.memory["latent"].clone() for layer in sparse.layers]
    x = torch.randn(4, 8, 5, 5)
    for _ in range(4):
        masks = []
        for weight in latent:
            groups = weight.movedim(1, -1).reshape(-1, 4)  # input channels last: NHWC
            best = torch.zeros_like(groups, dtype=torch.bool)
            best.scatter_(1, groups.abs().argsort(dim=1, descending=True)[:, :2], True)
            shape = weight.movedim(1, -1).shape
            masks.append(best.view(shape).movedim(-1, 1))
        for layer, weight, mask in zip(sparse.layers, latent, masks, strict=True):
            assert torch.equal(layer.weight, weight * mask)
        assert torch.equal(model(x), forward_of(model, x))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        slopes = [layer.weight.grad.clone() for layer in sparse.layers]
        assert all((slope[~mask] != 0).any() for slope, mask in zip(slopes, masks, strict=True))
        optimizer.step()
        for i, (slope, mask) in enumerate(zip(slopes, masks, strict=True)):
            latent[i] = latent[i] - rate * (slope + penalty * ~mask * latent[i])
            # one sum in another order
            torch.testing.assert_close(sparse.layers[i].memory["latent"], latent[i])
            latent[i] = sparse.layers[i].memory["latent"].clone()


def test_groups_must_divide_the_inputs():
    model = nn.Sequential(nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(sw.MisfitError, match="divisible by 4; got 6"):
        sw.attach(model, optimizer, method=SRSTE(), pattern="2:4")


# 2:4 once, and the training again


SIX = [p for p in itertools.product((0.0, 1.0), repeat=4) if sum(p) == 2]


def test_two_of_four_is_the_best_of_the_six_patterns():
    """Of each group the pattern of the largest kept |w|, as m4n2_1d searches it."""
    model = nn.Sequential(nn.Linear(32, 16, bias=False))
    weight = model[0].weight.detach().clone()
    sw.prune(model, pattern="2:4", allocate="uniform_all")
    assert len(SIX) == 6
    groups = weight.abs().view(-1, 4)
    best = torch.tensor(SIX)[(groups @ torch.tensor(SIX).T).argmax(dim=1)]
    assert torch.equal(model[0].weight, weight * best.view(16, 32))


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_pruned_once_and_trained_again_under_one_mask(kind):
    """Gradients are masked before the step and weights after it: no momentum brings one back."""
    model = conv_net()
    options = {"momentum": 0.9, "weight_decay": 0.1} if kind == "SGD" else {"weight_decay": 0.1}
    optimizer = getattr(torch.optim, kind)(model.parameters(), 0.05, **options)
    x = torch.randn(4, 8, 5, 5)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - x.flatten(1)[:, :6]).square().mean().backward()
            optimizer.step()

    train(5)  # dense: the optimizer has momentum of all weights
    dense = [model[i].weight.detach().clone() for i in (0, 3)]
    method = sw.Static(initial="magnitude")
    sparse = sw.attach(model, optimizer, method=method, pattern="2:4")
    masks = [layer.mask for layer in sparse.layers]
    for layer, weight in zip(sparse.layers, dense, strict=True):
        assert torch.equal(layer.weight, weight * layer.mask)
        assert (layer.table.sum(dim=1) == 2).all()
        kept = (layer.pattern.fold(weight.abs()) * layer.table).sum(dim=1)
        tries = layer.pattern.fold(weight.abs()) @ torch.tensor(SIX).T
        torch.testing.assert_close(kept, tries.max(dim=1).values)
    train(5)
    assert_masked(sparse)
    for layer, mask, weight in zip(sparse.layers, masks, dense, strict=True):
        assert torch.equal(layer.mask, mask)
        assert not layer.weight.grad[~mask].any()
        assert (layer.weight[mask] != weight[mask]).any()


# blocks and filters


@pytest.mark.parametrize("score", ["magnitude", "l2"])
def test_blocks_are_ranked_by_their_norms(score):
    """16 blocks of 4 x 4: by the mean of |w|, or by the length; the two differ on them."""
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        for i in range(4):  # on the diagonal one large weight each: long, and of a small mean
            model[0].weight[4 * i, 4 * i] = 1.0 + i
        for i in range(1, 4):
            model[0].weight[:4, 4 * i : 4 * i + 4] = 0.3 + 0.01 * i
    blocks = model[0].weight.detach().view(4, 4, 4, 4).transpose(1, 2)
    by_mean = blocks.abs().mean(dim=(2, 3)).flatten()
    by_length = blocks.square().sum(dim=(2, 3)).sqrt().flatten()
    worth = by_mean if score == "magnitude" else by_length
    assert set(by_mean.topk(4).indices.tolist()) != set(by_length.topk(4).indices.tolist())
    sw.prune(model, 1 - 4 / 16, "block:4x4", score=score, allocate="uniform_all")
    there = model[0].weight.detach().view(4, 4, 4, 4).transpose(1, 2).abs().sum(dim=(2, 3))
    assert set(there.flatten().nonzero()[:, 0].tolist()) == set(worth.topk(4).indices.tolist())


def test_filters_go_by_their_l1_norm_and_the_next_layer_reads_zeros():
    """Filter i and its feature map are gone; slice i of the next layer is left, and of no use."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 8))
    rows = model[0].weight.detach().abs().sum(dim=1)
    sw.prune(model, 0.5, "channel", allocate="uniform_all", skip=["2"])
    gone = (model[0].weight == 0).all(dim=1)
    assert set(gone.nonzero()[:, 0].tolist()) == set(rows.argsort()[:6].tolist())
    x = torch.randn(5, 16)
    before = model(x)
    with torch.no_grad():
        model[2].weight[:, gone] = torch.randn(8, 6)
    assert torch.equal(model(x), before)
    fast = sw.deploy(model.eval(), x, seconds=0)
    # sums of at most 16 terms in another order
    assert torch.allclose(fast(x), before, atol=1e-5)


# slimming


def test_slimming_pulls_by_the_published_strength_and_zero_scales_rest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -0.5, 0.0, 1.0]))
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    kinds = {"sparsity": 0.5, "pattern": "channel", "steps": 8, "skip": ["3"]}
    sw.attach(model, optimizer, method=Slimming(), **kinds)
    model(torch.randn(8, 8)).sum().mul(0.0).backward()
    before = model[1].weight.detach().clone()
    optimizer.step()
    change = model[1].weight.detach() - before
    # 1e-4 off numbers near 1, in float32
    assert change.tolist() == pytest.approx([-1e-4, 1e-4, 0.0, -1e-4], abs=1e-7)


# admm and iht


def test_admm_is_the_published_iteration():
    """W by gradient on f + rho / 2 * |W - Z + U|^2, Z the projection of W + U, U += W - Z: written
    out beside it for several rounds of several steps, and the cut is the projection of W."""
    torch.manual_seed(2)
    start, target = torch.randn(3, 8), torch.randn(3, 8)
    rho, rate, every, end = 0.3, 0.2, 4, 20
    model = linear(start.tolist())
    optimizer, sparse = attached(model, ADMM(rho, every, end=end), lr=rate, steps=40)

    def project(values):
        kept = values.flatten().abs().argsort(descending=True)[:12]
        out = torch.zeros(24)
        out[kept] = values.flatten()[kept]
        return out.view(3, 8)

    w, u = start.clone(), torch.zeros(3, 8)
    z = project(w)
    for step in range(end):
        optimizer.zero_grad()
        (0.5 * (model[0].weight - target).square().sum()).backward()
        optimizer.step()
        w = w - rate * ((w - target) + rho * (w - z + u))
        if (step + 1) % every == 0:
            z = project(w + u)
            u = u + w - z
        # float32 sums in another order
        torch.testing.assert_close(model[0].weight.detach(), w, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sparse.layers[0].memory["target"], z, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sparse.layers[0].memory["dual"], u, rtol=1e-5, atol=1e-6)
    assert u.abs().max() > 0.1
    optimizer.param_groups[0]["lr"] = 0.0
    step_along(model, optimizer, 0.0)
    torch.testing.assert_close(model[0].weight.detach(), project(w), rtol=1e-5, atol=1e-6)


def test_iht_projects_each_group_of_a_pattern():
    """H_k of 2:4 is the best two of every four, after a step along the whole gradient."""
    torch.manual_seed(3)
    start = torch.randn(2, 8)
    model = linear(start.tolist())
    optimizer, sparse = attached(model, IHT(), lr=0.5, pattern="2:4", sparsity=None)
    x = start
    for number in range(6):
        slope = torch.randn(2, 8, generator=torch.Generator().manual_seed(number))
        step_along(model, optimizer, slope)
        x = x - 0.5 * slope
        order = x.view(-1, 4).abs().argsort(dim=1, descending=True)
        x = x.view(-1, 4).scatter(1, order[:, 2:], 0.0).view(2, 8)
        torch.testing.assert_close(model[0].weight.detach(), x)
    assert (sparse.layers[0].table.sum(dim=1) == 2).all()

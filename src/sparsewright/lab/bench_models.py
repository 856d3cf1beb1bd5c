"""The models of `sparsewright bench model`, written as shortly as they can be, with random weights.

Their shapes are those of the papers; nothing is downloaded and nothing is trained. BatchNorm gets
its statistics from one pass over noise, so that activations stay in range through all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..prune import prune
from ..registry import Table

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BenchModel:
    """A model of the bench.

    build: (batch) -> model. example: shape of one input, without the batch. batches: measured by
    default. unit: what one example is, for rates. dense: (module) -> whether its weight stays.
    """

    about: str
    build: Callable[[int], nn.Module]
    example: Shape
    batches: Sequence[int]
    unit: str
    dense: Callable[[nn.Module], bool] = lambda module: False

    def make(self, batch: int, sparsity: float, pattern: str) -> tuple[nn.Module, Tensor]:
        """The sparse model in eval mode, and an example."""
        torch.manual_seed(0)
        model = self.build(batch)
        stay = [name for name, m in model.named_modules() if self.dense(m)]
        prune(model, sparsity, pattern, score="random", allocate="uniform_all", skip=stay)
        example = torch.randn(batch, *self.example)
        settle(model, example[:2].repeat(2, *[1] * len(self.example)))
        return model.eval().requires_grad_(False), example


MODELS: Table[BenchModel] = Table("model of the bench")


@torch.no_grad()
def settle(model: nn.Module, example: Tensor) -> None:
    """Scale weights so that every layer's output matters, and give BatchNorm layers the statistics
    of this input, scales around 1 and shifts around 0.

    Without the former a sparse layer's output would drown in its bias, or in what goes around it,
    and no check would notice a wrong one (the scale is that of He et al., 2015).
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            present = module.weight[module.weight != 0]
            inputs = present.numel() / module.weight.shape[0]
            module.weight.mul_((2 / inputs) ** 0.5 / present.square().mean().sqrt())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.weight is not None
        norm.momentum = None  # the mean over all passes: of this one
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.2, 0.2)
    if norms:
        model.train()(example + 0.1 * torch.randn_like(example))


def mlp(batch: int) -> nn.Module:
    sizes = (784, 1024, 1024, 10)
    layers: list[nn.Module] = []
    for width, out in pairwise(sizes):
        layers += [nn.Linear(width, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv(width: int, out: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its BatchNorm."""
    filters = nn.Conv2d(width, out, size, stride, size // 2, groups=groups, bias=False)
    return [filters, nn.BatchNorm2d(out)]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a way around them; the stride is the 3x3's (torchvision's variant)."""

    def __init__(self, width: int, middle: int, stride: int):
        super().__init__()
        out = 4 * middle
        self.body = nn.Sequential(
            *conv(width, middle, 1),
            nn.ReLU(),
            *conv(middle, middle, 3, stride),
            nn.ReLU(),
            *conv(middle, out, 1),
        )
        around = stride > 1 or width != out
        self.around = nn.Sequential(*conv(width, out, 1, stride)) if around else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.around(x))


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]


def resnet50(batch: int) -> nn.Module:
    """He et al., "Deep residual learning for image recognition", 2016."""
    layers = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for middle, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(Bottleneck(width, middle, stride if number == 0 else 1))
            width = 4 * middle
    return nn.Sequential(*layers, *head(width))


def mobilenet(batch: int) -> nn.Module:
    """Howard et al., "MobileNets", 2017, at width 1."""
    layers = [*conv(3, 32, 3, 2), nn.ReLU()]
    width = 32
    outs = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    for out, stride in zip(outs, strides, strict=True):
        layers += [*conv(width, width, 3, stride, groups=width), nn.ReLU()]
        layers += [*conv(width, out, 1), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, *head(width))


class Feed(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class VitBlock(nn.Module):
    """One block of ViT-B/16 (Dosovitskiy et al., "An image is worth 16x16 words", 2021)."""

    def __init__(self, width: int = 768, heads: int = 12):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = Feed(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norms[0](x)).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.feed(self.norms[1](x))


class GptBlock(nn.Module):
    """One block of GPT-2's smallest size, writing one token after `past` others.

    The keys and values of the past are given; those of the new token join them in the sums, so no
    cache is copied.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, batch: int, width: int = 768, heads: int = 12, past: int = 256):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = Feed(width)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.randn(batch, heads, past, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        parts = self.qkv(self.norms[0](x)).reshape(batch, 3, self.heads, 1, -1)
        q, k, v = parts.unbind(1)  # each (batch, heads, 1, width / heads)
        q = q * q.shape[-1] ** -0.5
        old, own = q @ self.keys.transpose(-1, -2), (q * k).sum(-1, keepdim=True)
        shares = torch.cat([old, own], dim=-1).softmax(dim=-1)
        mixed = shares[..., :-1] @ self.values + shares[..., -1:] * v
        x = x + self.project(mixed.reshape(batch, 1, width))
        return x + self.feed(self.norms[1](x))


def _first(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels == 3


def _first_or_depthwise(module: nn.Module) -> bool:
    return _first(module) or (isinstance(module, nn.Conv2d) and module.groups > 1)


IMAGE = (3, 224, 224)
for _name, _model in {
    "mlp": BenchModel("784-1024-1024-10", mlp, (784,), (1, 64), "rows"),
    "resnet50": BenchModel("first layer dense", resnet50, IMAGE, (1, 16), "images", _first),
    "mobilenet": BenchModel(
        "V1; first and depthwise layers dense",
        mobilenet,
        IMAGE,
        (1, 16),
        "images",
        _first_or_depthwise,
    ),
    "vit_b block": BenchModel(
        "197 tokens", lambda batch: VitBlock(), (197, 768), (1, 16), "images"
    ),
    "gpt block": BenchModel("decoding after 256 tokens", GptBlock, (1, 768), (1, 16), "tokens"),
}.items():
    MODELS.register(_name)(_model)

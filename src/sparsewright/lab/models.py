"""Small models that take the shape of their data: an MLP, a CNN, ResNet-20 in its CIFAR form."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..registry import Table

ImageShape = tuple[int, int, int]
Builder = Callable[[ImageShape, int, tuple[int, ...]], nn.Module]

MODELS: Table[Builder] = Table("model")


def build(name: str, shape: ImageShape, classes: int, widths: str = "") -> nn.Module:
    """A model by name for images (channels, height, width) and a number of classes.

    widths: the model's layer widths as "784-300-10"; "" takes the model's own.

    >>> [p.shape[0] for p in build("mlp", (1, 8, 8), 10, "64-32-10").parameters() if p.dim() == 2]
    [32, 10]
    """
    return MODELS[name](shape, classes, parse_widths(widths))


def parse_widths(text: str) -> tuple[int, ...]:
    """ "784-300-10" -> (784, 300, 10); ConfigError unless all are 1 or more.

    >>> parse_widths("784-300-10")
    (784, 300, 10)
    """
    parts = text.split("-") if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"widths must be whole numbers above 0 joined by '-'; got {text!r}")
    return tuple(map(int, parts))


@MODELS.register("mlp")
def mlp(shape: ImageShape, classes: int, widths: tuple[int, ...] = ()) -> nn.Sequential:
    """Multilayer perceptron with ReLU; widths from the inputs to the classes (784-1024-1024-10)."""
    inputs = math.prod(shape)
    widths = widths or (inputs, 1024, 1024, classes)
    if len(widths) < 2 or widths[0] != inputs or widths[-1] != classes:
        raise ConfigError(
            f"model mlp: widths must begin with the {inputs} inputs and end with the {classes} "
            f"classes of the data; got {'-'.join(map(str, widths))}"
        )
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for i in range(1, len(widths) - 1):
        layers += [(f"fc{i}", nn.Linear(widths[i - 1], widths[i])), (f"relu{i}", nn.ReLU())]
    layers.append(("head", nn.Linear(widths[-2], classes)))
    return nn.Sequential(OrderedDict(layers))


@MODELS.register("cnn")
def cnn(shape: ImageShape, classes: int, widths: tuple[int, ...] = ()) -> nn.Sequential:
    """Small net of 3x3 convolutions with BatchNorm, each halving the image; widths are channels."""
    channels, *side = shape
    layers: list[tuple[str, nn.Module]] = []
    for i, width in enumerate(widths or (32, 64, 128), start=1):
        layers += [
            (f"conv{i}", nn.Conv2d(channels, width, 3, padding=1, bias=False)),
            (f"norm{i}", nn.BatchNorm2d(width)),
            (f"relu{i}", nn.ReLU()),
        ]
        channels = width
        if min(side) >= 4:
            layers.append((f"pool{i}", nn.MaxPool2d(2)))
            side = [s // 2 for s in side]
    layers += [
        ("mean", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(channels, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


@MODELS.register("resnet20")
def resnet20(shape: ImageShape, classes: int, widths: tuple[int, ...] = ()) -> nn.Module:
    """ResNet-20 for small images, shortcuts without parameters (He et al. 2016, option A)."""
    widths = widths or (16, 32, 64)
    if len(widths) != 3 or not widths[0] <= widths[1] <= widths[2]:
        raise ConfigError(
            f"model resnet20: widths must be 3 numbers of channels, none below the one before; "
            f"got {'-'.join(map(str, widths))}"
        )
    return ResNet(shape[0], classes, widths, blocks=3)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that halves the image and pads channels with 0."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            x = F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(x + y)


class ResNet(nn.Module):
    """3 stages of `blocks` blocks; images (n, channels, h, w) -> (n, classes)."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], blocks: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(inputs, width, stride=2 if stage and not block else 1))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.head(x.mean(dim=(2, 3)))

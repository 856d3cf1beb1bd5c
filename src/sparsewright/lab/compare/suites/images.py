"""Images to be told apart by their classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ...config import TrainConfig
from ...data import Images, Pair, batches, load
from ...models import build
from ...train import evaluate
from . import HELD_OUT, Suite, register


@dataclass(frozen=True)
class ImageProblem:
    """Images to be told apart by their classes; measured by accuracy on the test images."""

    suite: Suite
    images: Images = field(repr=False)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.images.train[1]) / self.suite.config.batch)

    @property
    def example(self) -> Tensor:
        return self.images.test[0][:1]

    def model(self, scale: float = 1.0) -> nn.Module:
        widths = self.suite.scaled(scale)
        return build(self.suite.config.model, self.images.shape, self.images.classes, widths)

    def batches(self, seed: int, epoch: int) -> Iterator[Pair]:
        config = self.suite.config
        mirror = self.images.mirror
        return batches(
            self.images.train, config.batch, seed, epoch, augment=config.augment, mirror=mirror
        )

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        return evaluate(model, self.images.test)

    def held_out(self) -> ImageProblem:
        x, y = self.images.train
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        test, train = order[: len(y) // HELD_OUT], order[len(y) // HELD_OUT :]
        parts = replace(self.images, train=(x[train], y[train]), test=(x[test], y[test]))
        return replace(self, images=parts)


def image_problem(suite: Suite) -> ImageProblem:
    return ImageProblem(suite, load(suite.config.data))


register(
    "digits-mlp",
    Suite(
        "a 64-64-32-10 MLP on scikit-learn's digits: seconds, to try the comparison out",
        TrainConfig(data="digits", model="mlp", batch=32, epochs=10),
        "64-{}-{}-10",
        (64, 32),
        image_problem,
    ),
)
register(
    "fashion-mlp",
    Suite(
        "LeNet-300-100 (LeCun et al. 1998), an MLP, on Fashion-MNIST",
        TrainConfig(data="fashion-mnist", model="mlp", epochs=5),
        "784-{}-{}-10",
        (300, 100),
        image_problem,
    ),
)
register(
    "fashion-cnn",
    Suite(
        "three 3x3 convolutions of 16, 32 and 64 channels on Fashion-MNIST",
        TrainConfig(data="fashion-mnist", model="cnn", epochs=3),
        "{}-{}-{}",
        (16, 32, 64),
        image_problem,
    ),
)
register(
    "cifar-resnet20",
    Suite(
        "ResNet-20 (He et al. 2016) on CIFAR-10, with shifted and mirrored images",
        TrainConfig(data="cifar-10", model="resnet20", epochs=10, augment=True),
        "{}-{}-{}",
        (16, 32, 64),
        image_problem,
    ),
)

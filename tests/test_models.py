"""Models of the lab: shapes, parameter counts known from papers, and their refusals."""

from __future__ import annotations

import pytest
import torch

from sparsewright.errors import ConfigError, UnknownNameError
from sparsewright.lab.models import MODELS, build, parse_widths
from sparsewright.weights import find_weights

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("name", MODELS.names())
@pytest.mark.parametrize("shape", SHAPES)
def test_every_model_takes_every_shape(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape, 7)
    logits = model(torch.randn(3, *shape))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", MODELS.names())
def test_no_model_mixes_the_images_of_a_batch_when_evaluated(name: str) -> None:
    model = build(name, (1, 8, 8), 10).eval()
    x = torch.randn(4, 1, 8, 8)
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


def test_resnet20_has_the_published_number_of_parameters() -> None:
    model = build("resnet20", (3, 32, 32), 10)
    # He et al. 2016, table 6: 0.27 M; with option A every shortcut is free of parameters.
    assert sum(p.numel() for p in model.parameters()) == 269_722
    assert len(find_weights(model)) == 20


def test_resnet20_halves_the_image_twice() -> None:
    sizes = []
    model = build("resnet20", (3, 32, 32), 10)
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[1:])))
    model(torch.randn(2, 3, 32, 32))
    assert sizes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_shortcut_keeps_the_channels_in_the_middle() -> None:
    block = build("resnet20", (3, 32, 32), 10).eval().blocks[3]
    for convolution in (block.conv1, block.conv2):
        torch.nn.init.zeros_(convolution.weight)
    x = torch.rand(1, 16, 8, 8)
    y = block(x)  # the two convolutions add nothing (their norms have a bias of 0)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == 0
    assert y[:, 24:].abs().sum() == 0


def test_mlp_layers_and_default_widths() -> None:
    weights = {
        w.name: tuple(w.parameter.shape) for w in find_weights(build("mlp", (1, 28, 28), 10))
    }
    assert weights == {"fc1": (1024, 784), "fc2": (1024, 1024), "head": (10, 1024)}
    weights = {w.name for w in find_weights(build("mlp", (1, 8, 8), 10, "64-10"))}
    assert weights == {"head"}


@pytest.mark.parametrize("widths", ["1024-1024", "64-32", "32-10", "10", "64"])
def test_mlp_names_the_widths_that_it_needs(widths: str) -> None:
    with pytest.raises(ConfigError, match="begin with the 64 inputs and end with the 10 classes"):
        build("mlp", (1, 8, 8), 10, widths)


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match="3 numbers of channels"):
        build("resnet20", (3, 32, 32), 10, "16-32")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet20'"):
        build("resnet-20", (3, 32, 32), 10)


@pytest.mark.parametrize("text", ["64-x", "64--10", "-10", "64-0", "6.5"])
def test_widths_must_be_whole_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="whole numbers above 0"):
        parse_widths(text)


def test_cnn_channels_are_its_widths() -> None:
    model = build("cnn", (3, 32, 32), 10, "8-16")
    shapes = {w.name: tuple(w.parameter.shape) for w in find_weights(model)}
    assert shapes == {"conv1": (8, 3, 3, 3), "conv2": (16, 8, 3, 3), "head": (10, 16)}

"""Moments: the columns that a convolution multiplies its filters with, and their sums in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsewright.moments import Moments, patches

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64 sums of a few hundred terms in another order


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
        nn.Conv2d(4, 6, 3, padding="same", groups=2),
        nn.Conv2d(4, 6, 2, padding="same", dilation=3),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv3d(4, 2, 2, padding=1, padding_mode="replicate"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_patches_times_filters_are_the_convolution(conv: Any) -> None:
    x = torch.randn(2, 4, *[9, 8, 7][: len(conv.kernel_size)])
    rows = patches(conv, x)
    filters = conv.weight.flatten(1).view(conv.groups, -1, rows.shape[2])
    found = (rows @ filters.mT).permute(0, 2, 1).reshape(conv.out_channels, -1)
    known = F.conv1d if x.dim() == 3 else F.conv2d if x.dim() == 4 else F.conv3d
    assert known is not None
    wanted = (
        (conv(x) - conv.bias.view(-1, *[1] * (x.dim() - 2)))
        .transpose(0, 1)
        .reshape(conv.out_channels, -1)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_parts_of_a_large_input_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(5, 2, 6, 6)
    whole, parts, one = Moments(conv), Moments(conv), Moments(conv)
    whole.add(x)
    monkeypatch.setattr("sparsewright.moments.AT_ONCE", 1)
    parts.add(x)
    for image in x:
        one.add(image)  # without a batch
    assert whole.second is not None
    for other in (parts, one):
        assert other.second is not None
        assert other.count == whole.count == 5 * 36
        torch.testing.assert_close(other.second, whole.second, **EXACT)

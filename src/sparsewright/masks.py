"""Masks by themselves: given to a run from outside, and kept in a file, one bit for each weight.

The file is safetensors: of every mask a U8 tensor, its bits in row-major order, the first weight in
the highest bit of the first byte, the last byte filled up with 0; shapes are in the metadata.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .arguments import check_mapping
from .core import Layer
from .errors import ArtifactError, ConfigError, MisfitError, StateError, UnknownNameError
from .weights import find_weights, is_packed

Masks = Mapping[str, Tensor]
"""Layer name -> bool in the dense weight's shape, True = present."""
KEY = "sparsewright.masks"
VERSION = 1


def save_masks(masks: Masks, path: str | os.PathLike[str]) -> None:
    """Write masks to a file, one bit for each weight; it is written beside `path` and renamed.

    masks: layer name -> bool tensor. ConfigError for other tensors.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "masks.safetensors"
    >>> save_masks({"fc": torch.tensor([[True, False]])}, path)
    >>> load_masks(path)
    {'fc': tensor([[ True, False]])}
    """
    check_masks_kind(masks)
    for name, mask in masks.items():
        _check_bool(name, mask)
    about = {"version": VERSION, "shapes": {name: list(m.shape) for name, m in masks.items()}}
    tensors = {
        name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))
        for name, mask in masks.items()
    }
    data = safetensors.torch.save(tensors, {KEY: json.dumps(about, sort_keys=True)})
    place = Path(path)
    beside = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        beside.write_bytes(data)
        os.replace(beside, place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def load_masks(path: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Masks that `save_masks` wrote; with a model, of which every one must be a weight's.

    ArtifactError if the file is none of these or damaged; UnknownNameError or MisfitError if the
    model has no weight of a mask's name or shape.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = _about(path, (file.metadata() or {}).get(KEY))
            names = set(file.keys())
            if names != set(about):
                raise ArtifactError(f"{path}: holds {sorted(names)}, and tells of {sorted(about)}")
            masks = {name: _bits(path, name, file.get_tensor(name), about[name]) for name in about}
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path}: no safetensors file: {error}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from None
    if model is not None:
        check_masks(model, masks)
    return masks


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Layer name -> where its weight is not 0, of every weight that has a 0: what pruning has left.

    For `sw.attach(model, optimizer, method="static", masks=sw.masks_of(model))`, with the pattern
    that the model was pruned to, and for `save_masks`. A weight that is present and happens to be
    0 counts as absent.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> with torch.no_grad(): _ = model[0].weight.copy_(torch.tensor([[1., 0.], [0., 2.]]))
    >>> masks_of(model)
    {'0': tensor([[ True, False],
            [False,  True]])}
    """
    found = {}
    for weight in find_weights(model):
        if is_packed(weight.module):
            raise StateError(
                f"layer {weight.name!r} is packed, and needs no mask: its topology says what is "
                "present (sw.unpack)"
            )
        mask = weight.parameter.detach() != 0
        if not bool(mask.all()):
            found[weight.name] = mask
    return found


def check_masks(model: nn.Module, masks: Masks) -> None:
    """UnknownNameError, ConfigError or MisfitError unless every mask is of a weight of the model"""
    check_masks_kind(masks)
    shapes = {weight.name: weight.shape for weight in find_weights(model)}
    for name, mask in masks.items():
        if name not in shapes:
            raise UnknownNameError("weight to mask", name, shapes)
        _check_bool(name, mask)
        _check_shape(name, mask, shapes[name])


def hold_mask(layer: Layer, mask: Tensor) -> None:
    """Let exactly the mask's units be present in a layer, and be its budget; no value changes.

    MisfitError if the layer's pattern does not hold the mask; ConfigError if it is no mask;
    StateError for packed weights that lie elsewhere.
    """
    _check_bool(layer.name, mask)
    _check_shape(layer.name, mask, layer.shape)
    place = f"layer {layer.name!r}: the mask does not hold pattern {layer.pattern}: "
    sums = layer.pattern.fold(mask.to(layer.weight.device, torch.int64))
    table = sums == layer.unit_size
    if bool((table != (sums > 0)).any()):
        raise MisfitError(place + "of some units it has a part of the weights only")
    counts = table.sum(dim=1)
    least, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    if least != most:
        raise MisfitError(
            f"{place}every group keeps as many units; this has from {least} to {most}"
        )
    allowed = layer.pattern.allowed(layer.units)
    if len(counts) and least not in allowed:
        raise MisfitError(
            f"{place}a group keeps {allowed[0]}"
            + (f" to {allowed[-1]}" if len(allowed) > 1 else "")
            + f" of {layer.units} units; this has {least}"
        )
    units = table.reshape(-1).nonzero().squeeze(1)
    if layer.storage.holds_absent:
        layer.storage.select(units)
    elif not torch.equal(units, layer.present_units):
        raise StateError(
            f"layer {layer.name!r} is packed with other weights than its mask's; give the masks "
            "to sw.pack(model, masks=...), which keeps their values"
        )
    layer.keep = least


def check_masks_kind(masks: Any) -> None:
    """ConfigError unless it maps names to masks, which others look at."""
    is_path = isinstance(masks, str | os.PathLike)
    hint = ": sw.load_masks(path) reads a file" if is_path else ""
    check_mapping("masks", masks, "{layer: bool tensor}", hint)


def _check_bool(name: str, mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(f"layer {name!r}: a mask must be a bool tensor; got {kind}")


def _check_shape(name: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(mask.shape) != tuple(shape):
        raise MisfitError(
            f"layer {name!r}: its mask must have the weight's shape {tuple(shape)}; got "
            f"{tuple(mask.shape)}"
        )


def _about(path: str | os.PathLike[str], text: str | None) -> dict[str, list[int]]:
    """Name -> shape, as the metadata tell."""
    if text is None:
        raise ArtifactError(f"{path}: holds no masks: its metadata have no {KEY!r}")
    try:
        found = json.loads(text)
        version, shapes = found["version"], dict(found["shapes"])
        good = all(isinstance(n, int) and n >= 0 for shape in shapes.values() for n in shape)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactError(f"{path}: its metadata {KEY!r} are damaged") from None
    if version != VERSION or not good:
        raise ArtifactError(f"{path}: must be of version {VERSION}, with sizes; got {version!r}")
    return shapes


def _bits(path: str | os.PathLike[str], name: str, bits: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((count + 7) // 8,):
        raise ArtifactError(
            f"{path}: mask {name!r} of shape {shape} takes {(count + 7) // 8} bytes; got "
            f"{bits.dtype} of shape {tuple(bits.shape)}"
        )
    flat = np.unpackbits(bits.numpy()).astype(bool)
    if flat[count:].any():
        raise ArtifactError(f"{path}: the bits after the last of mask {name!r} must be 0")
    return torch.from_numpy(flat[:count]).reshape(shape)

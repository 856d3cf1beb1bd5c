"""`pack`: every layer that can be packed becomes one that holds its present weights only; `unpack`
makes plain torch layers of them again."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .arguments import check_model
from .errors import KernelError, SparsityWarning, StateError, UnknownNameError
from .masks import check_masks_kind
from .naming import Skip, skipped
from .nn import PackedConv1d, PackedConv2d, PackedEmbedding, PackedLinear, PackedModule
from .weights import Weight, find_weights, is_packed

KINDS: dict[type[nn.Module], type[PackedModule]] = {
    kind.kind: kind for kind in (PackedLinear, PackedConv1d, PackedConv2d, PackedEmbedding)
}
HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"),
    "_load_state_dict_post_hooks",
)
FUSED = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}
"""Modules whose fused form in torch reads the weights of their layers, and what rules it out."""


def pack(
    model: nn.Module, *, skip: Skip = (), masks: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Replace every Linear, Conv1d, Conv2d and Embedding of `model`, in place, by its packed twin.

    The weights that are not zero are present, unless `masks` (name -> bool in the weight's shape)
    says which; a weight that is all zeros counts as wholly present. Values are kept to the bit,
    and so are mode, device, type and requires_grad; gradients are not kept. skip: names, globs or
    types of modules to leave dense. Left dense too: subclasses of the four, weights that two
    modules share, what kernels cannot compute, and what nn.MultiheadAttention reads itself. Returns
    the model, or the packed layer if the model itself is one of the four.

    Build the optimizer afterwards: the parameters are new ones. Raises StateError where hooks would
    be lost, UnknownNameError for names that are none; warns SparsityWarning if nothing was packed.

    >>> import sparsewright as sw
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> _ = sw.prune(model, sparsity=0.9, allocate="uniform_all")
    >>> sum(p.numel() for p in pack(model)[0].parameters()) < 300
    True
    """
    weights = find_weights(model)
    left_out = skipped(weights, skip) if weights else set()
    if masks is not None:
        check_masks_kind(masks)
    given = dict(masks or {})
    made: dict[int, nn.Module] = {}
    left = {}
    owners = _owners(model)
    for weight in weights:
        if is_packed(weight.module):
            continue
        mask = given.pop(weight.name, None)
        reason = "skipped by request" if weight.name in left_out else _why_dense(weight, owners)
        if reason is None:
            _refuse_hooks(weight)
            try:
                twin = KINDS[type(weight.module)].from_dense(weight.module, mask)
            except KernelError as error:
                reason = str(error)
            else:
                twin.named(weight.name)
                made[id(weight.module)] = twin
        if reason is not None and mask is not None:
            raise StateError(f"masks: {weight.name!r} stays dense: {reason}")
        if reason is not None:
            left[weight.name] = reason
    if given:
        raise UnknownNameError("weight with a mask", next(iter(given)), [w.name for w in weights])
    if not made and not any(is_packed(module) for module in model.modules()):
        why = "; ".join(f"{name!r}: {reason}" for name, reason in left.items())
        warnings.warn(
            f"pack: no layer could be packed ({why or 'there is none'})",
            SparsityWarning,
            stacklevel=2,
        )
    return _replaced(model, made)


def unpack(model: nn.Module) -> nn.Module:
    """Replace every packed module, in place, by the plain torch layer with the same values.

    Where no weight is, zeros stand; that a present weight has the value 0 is not to be told
    afterwards. Returns the model, or the layer if the model itself is a packed module. Raises
    StateError where hooks would be lost.

    >>> unpack(pack(nn.Linear(4, 2)))
    Linear(in_features=4, out_features=2, bias=True)
    """
    check_model(model)
    made: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedModule):
            _refuse_hooks(Weight(name, module.weight, module))
            made[id(module)] = module.to_module()
    return _replaced(model, made)


def _replaced(model: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """The model with some modules replaced wherever they stand, by their ids."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                setattr(parent, name, made[id(child)])
    for module in model.modules():
        for kind, attribute in FUSED.items():
            if isinstance(module, kind):
                _allow(module, attribute, not any(is_packed(m) for m in module.modules()))
    return made.get(id(model), model)


def _allow(module: Any, attribute: str, fused: bool) -> None:
    """Let torch's fused encoder run as it did before, or not at all."""
    own = module.__dict__
    if not fused and "_before_pack" not in own:
        own["_before_pack"] = own[attribute]
        own[attribute] = type(own[attribute])(False)
    elif fused and "_before_pack" in own:
        own[attribute] = own.pop("_before_pack")


def _owners(model: nn.Module) -> dict[int, set[int]]:
    """Parameter -> the modules that hold it, all by their ids."""
    owners: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].add(id(module))
    return owners


def _why_dense(weight: Weight, owners: Mapping[int, set[int]]) -> str | None:
    """Why a weight cannot be packed, or None."""
    kind = type(weight.module)
    if kind not in KINDS:
        known = ", ".join(k.__name__ for k in KINDS)
        return f"{kind.__name__} is none of {known}"
    own = weight.module
    if own._buffers or own._modules or set(own._parameters) - {"weight", "bias"}:
        return "it holds more than a weight and a bias"
    if len(owners[id(weight.parameter)]) > 1:
        return "another module shares its weight"
    bias = getattr(weight.module, "bias", None)
    if bias is not None and len(owners[id(bias)]) > 1:
        return "another module shares its bias"
    return None


def _refuse_hooks(weight: Weight) -> None:
    """StateError if the module or its parameters have hooks: a replacement would lose them."""
    for name in HOOKS:
        if getattr(weight.module, name, None):
            raise StateError(
                f"layer {weight.name!r} has {name.strip('_').replace('_', ' ')}, which the module "
                "that replaces it would not have: remove them first, or leave it out (skip)"
            )
    if isinstance(weight.module, PackedModule) and weight.module.watch.wanted is not None:
        raise StateError(
            f"layer {weight.name!r} is held by a Sparsifier: call its detach() first, or it would "
            "go on with parameters that the model no longer has"
        )
    for name, parameter in weight.module.named_parameters(recurse=False):
        hooks = [*(parameter._backward_hooks or {}).values()]
        hooks += (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values()
        if any(getattr(hook, "of_sparsifier", False) for hook in hooks):
            raise StateError(
                f"layer {weight.name!r} is held by a Sparsifier: call its detach() first; its mask "
                "is then found as the weights that are not zero, or pass masks={name: mask}"
            )
        if hooks:
            raise StateError(
                f"the {name} of layer {weight.name!r} has hooks, which the parameter that replaces "
                "it would not have: remove them first, or leave it out (skip)"
            )

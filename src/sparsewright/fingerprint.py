"""A digest of all that a model's forward can be seen to depend on, the values of its tensors aside:
its modules' code, down to the functions and constants that this reaches, and what they hold.

Code of Python's own library, of torch and of numpy stands for itself, by their versions; all other
is read as bytecode. What is neither code nor plain data makes the whole unknown, and so does a
module of others that is handed around, imported inside a function, or asked for names that no code
tells. Not seen: what a forward asks of its surroundings through code that stands for itself, as a
variable of the environment; what is put into Python's library or numpy, or was put into torch, from
their own code, before this file was imported; and annotations.
"""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import logging
import re
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .known_code import TORCH, found_under, is_known, is_known_code, public_names, uses_of

ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice),
    type(NotImplemented),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)
C_CODE = (
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.MethodWrapperType, types.ClassMethodDescriptorType, types.GetSetDescriptorType),
    types.MemberDescriptorType,
)
OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
CALLING = (functools._lru_cache_wrapper, functools.partial)
DESCRIPTORS = (property, staticmethod, classmethod, functools.cached_property)
KNOWN_OPERATORS = ("aten.", "prims.", "sparsewright.")
BUILT_IN = (tuple, list, dict, set, frozenset, str, int, float, bytes)
OF_CLASSES = frozenset([
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"),
    *("__annotate_func__", "__annotations_cache__", "__static_attributes__", "__firstlineno__"),
    *("__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__", "__slotnames__"),
])  # fmt: skip
"""What a class holds that its objects' doings do not depend on."""
OF_MODULES = frozenset(["_parameters", "_buffers", "_modules"])
HIDING = frozenset([
    *("globals", "eval", "exec", "__import__", "import_module", "__dict__", "__annotations__"),
    *("get_type_hints", "metadata", "signature", "getsource", "locals"),
])  # fmt: skip
"""What takes what no name in the code tells, or tells what is not looked at."""
MOST = 50_000
"""Values that are looked at; a text or bytes count as one for each MANY of them."""
MANY = 1000


class _Unknown(Exception):
    """Something that forward may depend on and that has no digest."""


def fingerprint(model: nn.Module) -> str | None:
    """The digest of a model, or None where something is neither code nor plain data.

    Two models of the same digest run the same operations, on tensors of the same names, types,
    sizes and strides, whose values may differ; but for what the head of this file says.

    >>> a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    >>> fingerprint(a) == fingerprint(b), fingerprint(a) == fingerprint(nn.Linear(3, 5))
    (True, False)
    """
    try:
        return _Reader(model).digest()
    except Exception:  # whatever objects of a user's may raise when they are looked at
        return None


class _Reader:
    """One model on its way into a digest; what was met before is told by its number."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.paths = {id(m): path for path, m in model.named_modules()}
        both = [*model.named_parameters(), *model.named_buffers()]
        self.tensors = {id(t): name for name, t in both}
        self.hash = hashlib.sha256()
        self.met: dict[Any, int] = {}
        self.alive: list[Any] = []  # so that no id is given twice
        self.seen = 0

    def digest(self) -> str:
        self._put(sys.version, torch.__version__, np.__version__)
        self._patches()
        for path, module in self.model.named_modules(remove_duplicate=False):
            self._put(path, self.paths[id(module)])
            self.value(type(module))
            for key, held in sorted(module.__dict__.items()):
                if key in OF_MODULES or (type(held) in (dict, OrderedDict) and not held):
                    continue
                self._put(key)
                self.value(held)
            self._put(*module._modules)
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                self._put(name)
                self._tensor(tensor)
        return self.hash.hexdigest()

    def _put(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def _tensor(self, tensor: Tensor | None) -> None:
        """One that the model holds: its type, and which it is where several are one."""
        if tensor is None:
            self._put("none")
            return
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise _Unknown  # torch asks its class what an operation on it is
        self.value(vars(tensor) or None)
        self._put(type(tensor).__name__, self.tensors.get(id(tensor), ""), tensor.requires_grad)
        self._put(tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride())

    def value(self, value: Any) -> None:
        """Anything that code can refer to."""
        self.seen += 1 + (len(value) // MANY if type(value) in (str, bytes) else 0)
        if self.seen > MOST:
            raise _Unknown
        if type(value) in ATOMS:
            self._put(type(value).__name__, repr(value))
            return
        if type(value) is tuple:  # equal ones are one object in some processes and not in others
            self._put(len(value))
            self._all(value)
            return
        number = self.met.get(id(value))
        if number is not None:
            self._put("again", number)
            return
        self.met[id(value)] = len(self.met)
        self.alive.append(value)
        self._put(type(value).__name__)
        self._new(value)

    def _new(self, value: Any) -> None:
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._all([value.__func__, value.__self__])
        elif isinstance(value, C_CODE):
            self._c_code(value)
        elif type(value) is functools.partial:
            self._all([value.func, value.args, value.keywords])
        elif type(value) is property:
            self._all([value.fget, value.fset, value.fdel])
        elif type(value) in (staticmethod, classmethod):
            self.value(value.__func__)
        elif type(value) is functools.cached_property:
            self.value(value.func)
        elif isinstance(value, types.ModuleType):
            if not is_known(value.__name__):
                raise _Unknown  # whoever has it may take anything out of it
            self._put(value.__name__)
        elif isinstance(value, (nn.Module, Tensor)):
            self._held(value)
        elif isinstance(value, OPERATORS) and str(value).startswith(KNOWN_OPERATORS):
            self._put(value)
        elif isinstance(value, enum.Enum):
            self._put(value.name)
            self._all([type(value), value.__dict__])
        elif type(value) is logging.Logger:
            self._put(value.name, value.level, value.disabled)
        elif isinstance(value, re.Pattern):
            self._put(value.flags, value.pattern)
        else:
            self._object(value)

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.value(value)
        self._put("end")

    def _held(self, value: nn.Module | Tensor) -> None:
        """A module or a tensor of the model; any other would be a constant of the trace."""
        name = (self.paths if isinstance(value, nn.Module) else self.tensors).get(id(value))
        if name is None:
            raise _Unknown
        self._put(name)

    def _c_code(self, value: Any) -> None:
        owner = getattr(value, "__self__", None)
        if owner is None:
            owner = getattr(value, "__objclass__", None)
        self._put(getattr(value, "__qualname__", value.__name__))
        if isinstance(owner, types.ModuleType):
            self._put(owner.__name__)
        elif isinstance(owner, type):
            self._put(owner.__module__, owner.__qualname__)
        elif owner is not None:
            self.value(owner)
        module = getattr(value, "__module__", None) or getattr(owner, "__module__", None)
        if module is not None and not is_known(str(module)):
            raise _Unknown

    def _class(self, value: type) -> None:
        self._put(value.__module__, value.__qualname__)
        if (
            is_known(value.__module__)
            and found_under(value.__module__, value.__qualname__) is value
        ):
            self._put_there(vars(value))
            self._all(value.__mro__[1:])
            return
        self._all([type(value), *value.__mro__[1:]])
        for key, held in sorted(vars(value).items()):
            if key not in OF_CLASSES:
                self._put(key)
                self.value(held)

    def _patches(self) -> None:
        """What somebody has put into torch itself: functions count, if they were there when this
        file was imported; of anything else since then nobody knows who calls it."""
        for space, before in TORCH:
            now = vars(space)
            if any(now[name] is not before.get(name) for name in public_names(now)):
                raise _Unknown
            self._put_there(before)

    def _put_there(self, held: Mapping[str, Any]) -> None:
        """Functions that somebody has put among what stands for itself."""
        for name, found in held.items():
            if not isinstance(found, types.FunctionType) or is_known_code(found.__code__):
                continue
            if found.__code__.co_filename == "<string>" and is_known(found.__module__ or ""):
                continue  # a dataclass writes its own
            self._put(name)
            self.value(found)

    def _function(self, value: types.FunctionType) -> None:
        self._all([value.__defaults__, value.__kwdefaults__, vars(value) or None])
        for cell in value.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:  # nothing is in it yet
                self._put("empty")
        code = value.__code__
        if is_known_code(code):
            self._put(value.__module__, value.__qualname__, code.co_firstlineno)
            return
        self._code(code)
        uses = uses_of(code)
        if uses.names & HIDING or any(level or not is_known(m) for m, level in uses.imports):
            raise _Unknown
        for chain in sorted(uses.chains):
            self._chain(value.__globals__, chain, uses.names)

    def _chain(
        self, space: Mapping[str, Any], chain: tuple[str, ...], names: frozenset[str]
    ) -> None:
        """A name of the code's, with the attributes that it takes out of it at once."""
        name, *rest = chain
        self._put(name)
        found = space.get(name, vars(builtins).get(name, "nobody knows it"))
        while isinstance(found, types.ModuleType):
            if found is sys and "modules" in names:
                raise _Unknown
            if not rest or rest[0] not in vars(found):
                if not is_known(found.__name__):
                    raise _Unknown  # it goes somewhere, and anything may be taken out of it there
                self._put(found.__name__, *rest)
                return
            name, *rest = rest
            self._put(found.__name__, name)
            found = vars(found)[name]
        self.value(found)

    def _code(self, code: types.CodeType) -> None:
        self._put(code.co_code, getattr(code, "co_exceptiontable", b""), code.co_flags)
        self._put(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._all([code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars])
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.value(constant)

    def _object(self, value: Any) -> None:
        """One of a class: what it holds, in order."""
        kind = type(value)
        inner = next((b for b in BUILT_IN if isinstance(value, b)), None)
        if inner is not kind:
            self.value(kind)
            if not hasattr(value, "__dict__") and inner is None:
                raise _Unknown
            if isinstance(value, (*CALLING, *DESCRIPTORS)):
                raise _Unknown  # it hides what it calls
            if any(vars(c).get("__slots__") for c in kind.__mro__):
                raise _Unknown
            self.value(dict(sorted(getattr(value, "__dict__", {}).items())))
        if inner is tuple or inner is list:
            self._all(inner.__iter__(value))
        elif inner is dict:
            if isinstance(value, defaultdict):
                self.value(value.default_factory)
            items = OrderedDict.items if isinstance(value, OrderedDict) else dict.items
            self._all(x for pair in items(value) for x in pair)
        elif inner in (set, frozenset):
            if any(type(x) not in ATOMS for x in value):
                raise _Unknown  # in an order that changes from process to process
            self._put(sorted(map(repr, value)))
        elif inner is not None:
            self._put(inner.__repr__(value))

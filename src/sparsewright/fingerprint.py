"""A digest of all that a model's forward can be seen to depend on, the values of its tensors aside:
its modules' code, down to the functions and constants that this reaches, and what they hold.

Code of Python's own library, of torch and of numpy stands for itself, by their versions; all other
is read as bytecode. What is found to be neither code nor plain data makes the whole unknown. Not
seen is what a forward asks of its surroundings through that code, as a variable of the environment.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import logging
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)
C_CODE = (
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.MethodWrapperType, types.ClassMethodDescriptorType, types.GetSetDescriptorType),
    types.MemberDescriptorType,
)
OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
KNOWN_OPERATORS = ("aten.", "prims.", "sparsewright.")
BUILT_IN = (tuple, list, dict, set, frozenset, str, int, float, bytes)
OF_CLASSES = frozenset([
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"),
    *("__annotate_func__", "__annotations_cache__", "__static_attributes__", "__firstlineno__"),
    *("__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__"),
])  # fmt: skip
"""What a class holds that its objects' doings do not depend on."""
OF_MODULES = frozenset(["_parameters", "_buffers", "_modules"])
LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
HIDING = frozenset(["globals", "eval", "exec", "compile", "__import__"])
"""What takes what no name in the code tells."""
MOST = 50_000
"""Objects that are looked at."""


class _Unknown(Exception):
    """Something that forward may depend on and that has no digest."""


def fingerprint(model: nn.Module) -> str | None:
    """The digest of a model, or None where something is neither code nor plain data.

    Two models of the same digest run the same operations, on tensors of the same names, types,
    sizes and strides, whose values may differ.

    >>> a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    >>> fingerprint(a) == fingerprint(b), fingerprint(a) == fingerprint(nn.Linear(3, 5))
    (True, False)
    """
    try:
        return _Reader(model).digest()
    except (_Unknown, RecursionError):
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

    def digest(self) -> str:
        self._put(sys.version, torch.__version__, np.__version__)
        for path, module in self.model.named_modules(remove_duplicate=False):
            self._put(path, self.paths[id(module)])
            self.value(type(module))
            for key, held in sorted(module.__dict__.items()):
                if key in OF_MODULES or (key.endswith("_hooks") and not held):
                    continue
                self._put(key)
                self.value(held)
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
        self._put(type(tensor).__name__, self.tensors.get(id(tensor), ""), tensor.requires_grad)
        self._put(tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride())

    def value(self, value: Any) -> None:
        """Anything that code can refer to."""
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
        if len(self.met) == MOST:
            raise _Unknown
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
        elif isinstance(value, functools.partial):
            self._all([value.func, value.args, value.keywords])
        elif isinstance(value, property):
            self._all([value.fget, value.fset, value.fdel])
        elif isinstance(value, (staticmethod, classmethod)):
            self.value(value.__func__)
        elif isinstance(value, functools.cached_property):
            self.value(value.func)
        elif isinstance(value, types.ModuleType):
            self._put(value.__name__)  # what code takes out of it is looked at there
        elif isinstance(value, (nn.Module, Tensor)):
            self._held(value)
        elif isinstance(value, OPERATORS) and str(value).startswith(KNOWN_OPERATORS):
            self._put(value)
        elif isinstance(value, enum.Enum):
            self._put(value.name)
            self.value(type(value))
        elif isinstance(value, logging.Logger):
            self._put(value.name)
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
        owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
        self._put(getattr(value, "__qualname__", value.__name__))
        if isinstance(owner, types.ModuleType):
            self._put(owner.__name__)
        elif isinstance(owner, type):
            self._put(owner.__module__, owner.__qualname__)
        elif owner is not None:
            self.value(owner)
        module = getattr(value, "__module__", None) or getattr(owner, "__module__", None)
        if module is not None and not _is_known(str(module)):
            raise _Unknown

    def _class(self, value: type) -> None:
        self._put(value.__module__, value.__qualname__)
        if _is_known(value.__module__) and _found(value.__module__, value.__qualname__) is value:
            self._put_there(vars(value))
            self._all(value.__mro__[1:])
            return
        self._all([type(value), *value.__mro__[1:]])
        for key, held in sorted(vars(value).items()):
            if key not in OF_CLASSES:
                self._put(key)
                self.value(held)

    def _put_there(self, held: Mapping[str, Any]) -> None:
        """Functions that somebody has put among what stands for itself."""
        for name, found in held.items():
            if isinstance(found, types.FunctionType) and not _is_known_code(found.__code__):
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
        if _is_known_code(code):
            self._put(value.__module__, value.__qualname__, code.co_firstlineno)
            return
        self._code(code)
        names, taken, imported = _names(code)
        if taken & HIDING or "import_module" in names or not imported <= sys.modules.keys():
            raise _Unknown
        for name in sorted(imported):
            self._module(sys.modules[name], names)
        for name in sorted(taken & value.__globals__.keys()):
            self._put(name)
            found = value.__globals__[name]
            if isinstance(found, types.ModuleType):
                self._module(found, names)
            else:
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

    def _module(self, module: types.ModuleType, names: frozenset[str]) -> None:
        """What code with these names may take out of a module."""
        key = (id(module), names)
        if key in self.met:
            return
        self.met[key] = len(self.met)
        self.alive.append(module)
        self._put(module.__name__)
        held = {name: vars(module)[name] for name in sorted(names & vars(module).keys())}
        for found in held.values():
            if isinstance(found, types.ModuleType):
                self._module(found, names)
        if _is_known(module.__name__):
            self._put_there(held)
            return
        if "getattr" in names or "vars" in names:
            raise _Unknown  # by which names, nothing tells
        for name, found in held.items():
            if not isinstance(found, types.ModuleType):
                self._put(name)
                self.value(found)

    def _object(self, value: Any) -> None:
        """One of a class: what it holds, in order."""
        kind = type(value)
        inner = next((b for b in BUILT_IN if isinstance(value, b)), None)
        if inner is not kind:
            self.value(kind)
            if not hasattr(value, "__dict__") and inner is None:
                raise _Unknown
            if any(vars(c).get("__slots__") for c in kind.__mro__):
                raise _Unknown
            self.value(dict(sorted(getattr(value, "__dict__", {}).items())))
        if inner in (tuple, list):
            self._all(value)
        elif inner is dict:
            self.value(getattr(value, "default_factory", None))
            self._all(x for pair in dict.items(value) for x in pair)
        elif inner in (set, frozenset):
            if any(type(x) not in ATOMS for x in value):
                raise _Unknown  # in an order that changes from process to process
            self._put(sorted(map(repr, value)))
        elif inner is not None:
            self._put(inner.__repr__(value))


@functools.cache
def _names(code: types.CodeType) -> tuple[frozenset[str], ...]:
    """All names in a function, those of its inner ones as well; those of globals, and of modules
    that are imported there."""
    steps = list(dis.get_instructions(code))
    taken = {step.argval for step in steps if step.opname in LOADS}
    imported = {step.argval for step in steps if step.opname == "IMPORT_NAME"}
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    own = frozenset(code.co_names), taken, imported
    return tuple(frozenset().union(*part) for part in zip(own, *inner, strict=True))


@functools.cache
def _is_known(module: str) -> bool:
    """Whether a module stands for itself, by a version: Python's library, torch and numpy do."""
    top = module.partition(".")[0]
    if top not in ("torch", "numpy") and top not in sys.stdlib_module_names:
        return False
    path = getattr(sys.modules.get(top), "__file__", None)
    return path is None or _is_known_file(path)


def _is_known_code(code: types.CodeType) -> bool:
    """The same of the file that a function was written in: decorators lend it other names."""
    return _is_known_file(code.co_filename)


@functools.cache
def _is_known_file(name: str) -> bool:
    path = Path(name)
    library, *packages = _folders()
    if name.startswith("<frozen ") or any(path.is_relative_to(folder) for folder in packages):
        return True
    return path.is_relative_to(library) and "site-packages" not in path.parts


@functools.cache
def _folders() -> list[Path]:
    """Of Python's library, torch and numpy."""
    packages = [Path(str(p.__file__)).parent for p in (torch, np)]
    return [Path(sysconfig.get_paths()["stdlib"]), *packages]


def _found(module: str, name: str) -> Any:
    """What is found under a qualified name."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def of_inputs(inputs: Iterable[Tensor]) -> list[Mapping[str, Any]]:
    """What a trace depends on of a model's inputs, as JSON takes it."""
    return [
        {"dtype": str(x.dtype), "shape": list(x.shape), "stride": list(x.stride())} for x in inputs
    ]

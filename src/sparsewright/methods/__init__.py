"""Methods: when a mask changes and to what. One file each; found by folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from typing import Any

from ..arguments import check_part
from ..core import Method
from ..registry import Table
from ..scores import as_score

METHODS: Table[Callable[..., Method]] = Table("method", __name__)
NEEDS = ("bind", "begin", "due", "update")


def as_method(spec: str | Method) -> Method:
    """A method from its object or, with all defaults, its name; ConfigError for what is neither, or
    for options that should be scores and are none.

    >>> as_method("rigl").every
    100
    """
    if isinstance(spec, str):
        return METHODS[spec]()
    method = check_part("method", spec, NEEDS)
    options: tuple[Field[Any], ...] = fields(method) if is_dataclass(method) else ()
    for option in options:
        value = getattr(method, option.name)
        if "Score" in str(option.type) and not (value is None and "None" in str(option.type)):
            as_score(value)  # now, not at the first update
    return method

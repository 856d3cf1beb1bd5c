"""Methods: when a mask changes and to what. One file each; found by folder."""

from __future__ import annotations

from collections.abc import Callable

from ..arguments import check_part
from ..core import Method
from ..registry import Table

METHODS: Table[Callable[..., Method]] = Table("method", __name__)
NEEDS = ("bind", "begin", "due", "update")


def as_method(spec: str | Method) -> Method:
    """A method from its object or, with all defaults, its name; ConfigError for what is neither.

    >>> as_method("rigl").every
    100
    """
    return METHODS[spec]() if isinstance(spec, str) else check_part("method", spec, NEEDS)

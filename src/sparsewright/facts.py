"""What a page of the docs says of a method, a score or a solver besides its docstring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Of one part, each in a sentence or two of plain Markdown.

    source: authors, title, venue and year. when: when to take it, and when another. memory: what
    is kept beside the present weights, their gradients and optimizer state. flops: of training and
    inference by the counting rules of Evci et al. 2020 (f_D, f_S: a dense and a sparse forward; a
    backward is two). published: a figure of the paper with its table and setting, or why none is
    given. departs: where this implementation differs from paper or public code.
    """

    source: str
    when: str
    memory: str
    flops: str
    published: str
    departs: str = ""

"""csr: row after row, the present values and their columns (compressed sparse rows; Tinney and
Walker, 1967), with 16-bit columns where the weight has at most 65536 of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from . import LAYOUTS, STORED, check, check_form, not_a_matrix

NARROW = 2**16
"""Most columns that 16-bit places can name."""
DTYPES = {
    "rows": (torch.int32,),
    "columns": (torch.uint16, torch.int32),
    "values": STORED,
}


class Csr:
    """rows (out + 1) int32; columns (nnz) uint16 or int32, ascending in a row; values (nnz)."""

    name = "csr"

    def refuses(self, weight: Tensor) -> str | None:
        return not_a_matrix(weight)

    def pack(self, weight: Tensor) -> Packed:
        """
        >>> Csr().pack(torch.tensor([[0., 5.], [0., 0.]])).tensors["rows"]
        tensor([0, 1, 1], dtype=torch.int32)
        """
        reason = self.refuses(weight)
        if reason:
            raise LayoutError(f"layout csr: {reason}")
        weight = weight.detach().cpu()
        present = weight != 0
        counts = present.sum(dim=1)
        rows = torch.zeros(weight.shape[0] + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=rows[1:])
        if int(rows[-1]) > torch.iinfo(torch.int32).max:
            raise LayoutError(f"layout csr: needs fewer than 2**31 weights; got {int(rows[-1])}")
        columns = present.nonzero()[:, 1]
        narrow = torch.uint16 if weight.shape[1] <= NARROW else torch.int32
        tensors = {
            "rows": rows.to(torch.int32),
            "columns": columns.to(narrow),
            "values": weight[present],
        }
        return Packed(self.name, tuple(weight.shape), tensors)

    def unpack(self, packed: Packed) -> Tensor:
        self.validate(packed)
        out, width = packed.shape
        rows, columns = packed.tensors["rows"].long(), packed.tensors["columns"].long()
        weight = torch.zeros(out, width)
        at = torch.repeat_interleave(torch.arange(out), rows.diff())
        weight[at, columns] = packed.tensors["values"]
        return weight

    def validate(self, packed: Packed) -> None:
        check_form(packed, self.name, DTYPES)
        out, width = packed.shape
        rows, columns, values = (packed.tensors[n] for n in ("rows", "columns", "values"))
        check(not packed.meta, packed, f"has no meta; got {sorted(packed.meta)}")
        check(rows.shape == (out + 1,), packed, f"rows must have {out + 1} entries")
        flat = columns.dim() == values.dim() == 1 and columns.shape == values.shape
        check(flat, packed, f"columns {_of(columns)} and values {_of(values)} must be equally long")
        nnz = values.shape[0]
        ends = int(rows[0]) == 0 and int(rows[-1]) == nnz
        check(ends, packed, f"rows must run from 0 to {nnz}; got {int(rows[0])} to {int(rows[-1])}")
        check(bool((rows[1:] >= rows[:-1]).all()), packed, "rows must not descend")
        wide = columns.to(torch.int32)
        inside = bool(((wide >= 0) & (wide < width)).all())
        check(inside, packed, f"columns must lie in [0, {width})")
        starts = torch.zeros(nnz + 1, dtype=torch.bool)
        starts[rows.long()] = True  # a row may start there: its column need not ascend
        ascend = bool(((wide[1:] > wide[:-1]) | starts[1:nnz]).all())
        check(ascend, packed, "columns must ascend within every row")


def _of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


LAYOUTS.register("csr")(Csr())

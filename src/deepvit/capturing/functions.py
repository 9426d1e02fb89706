"""What torch's functions are to an attention: which is a softmax, which a product, what each does to axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTMAX: frozenset[Any] = frozenset({torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax})
MATMUL: frozenset[Any] = frozenset(
    {
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.__rmatmul__,
        torch.bmm,
        Tensor.bmm,
        torch.linalg.matmul,
    }
)
EINSUM: frozenset[Any] = frozenset({torch.einsum, torch.functional.einsum})

# Functions that reorder axes: where rows and columns go is read off a tensor without data whose sizes all
# differ.
_REORDERING = frozenset(
    {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "T", "t"}
)
# Functions that move or copy entries and leave every value of the map as it is (a cast rounds it).
VALUE_KEEPING = _REORDERING | {
    *(
        "contiguous",
        "reshape",
        "reshape_as",
        "view",
        "view_as",
        "flatten",
        "unflatten",
        "clone",
        "detach",
        "alias",
    ),
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "expand", "squeeze", "unsqueeze"),
}
_DISTINCT = (2, 3, 5, 7, 11, 13, 17, 19)


def axes_after(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    source: Tensor,
    out: Tensor,
    rows: int,
    columns: int,
) -> tuple[int, int] | None:
    """Where the axes over queries and keys are after ``func``, or None where they are gone."""
    name = name_of(func)
    if name in _REORDERING and args and args[0] is source and source.ndim <= len(_DISTINCT):
        sizes = _DISTINCT[: source.ndim]
        moved = func(torch.empty(sizes, device="meta"), *args[1:], **kwargs).shape
        return moved.index(sizes[rows]) - len(moved), moved.index(sizes[columns]) - len(moved)
    if min(rows, columns) < -out.ndim:
        return None
    if out.shape[rows] != source.shape[rows] or out.shape[columns] != source.shape[columns]:
        return None
    # Another number of axes: only the trailing two stay in place (a batch split into windows and joined
    # again).
    if out.ndim != source.ndim and {rows, columns} != {-2, -1}:
        return None
    return rows, columns


def name_of(func: Any) -> str:
    """The function's own name; for a property (``x.mT``) that of the property."""
    name = getattr(func, "__name__", str(func))
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def writes_in_place(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the function overwrites its first argument."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    operator = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return in_place or operator or name == "__setitem__" or bool(kwargs.get("inplace"))


def tensors_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors of an argument list, lists of tensors included."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (x for x in value if isinstance(x, Tensor))

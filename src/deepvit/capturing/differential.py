"""Differential attention: two fused attentions over one V, of which one, times lambda, is taken from the other.

What multiplies V is the difference of two softmax maps. The two calls are held until the subtraction, so that
they come out as the one map that they are.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.capturing.functions import name_of
from deepvit.capturing.layouts import Site
from deepvit.capturing.maps import aside, exact, relative_error, sdpa_map, tolerance
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.seen import Check

_SUBTRACTION = frozenset({"sub", "__sub__", "subtract"})
_PRODUCT = frozenset({"mul", "__mul__", "__rmul__", "multiply"})


@dataclass(frozen=True)
class Term:
    """One attention of a difference, with what its output has been multiplied by."""

    out: weakref.ref[Tensor]  # what the model goes on with
    plain: Tensor | None  # without dropout, where that was active
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float | None
    factor: Any = 1.0


def is_differential(module: nn.Module) -> bool:
    """Whether a module subtracts two attentions: it has the constant of the paper, lambda_init."""
    return hasattr(module, "lambda_init") and hasattr(module, "sub_norm")


class Differences:
    """Holds the attentions of such modules until they are subtracted."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._terms: list[Term] = []
        self._owner = ""
        self._shape: tuple[int, ...] = ()

    def hold(self, term: Term, owner: str) -> None:
        """Keep one attention of ``owner``."""
        if owner != self._owner:
            self.close()
        shape = (*term.query.shape[:-1], term.key.shape[-2])
        self._owner, self._shape = owner, shape
        self._terms.append(term)

    def close(self) -> None:
        """Note what was held and never subtracted."""
        if self._terms:
            self.recorder.skip(self._owner, self._shape, "attentions of one V that were not subtracted")
        self._terms.clear()

    def look(self, func: Any, args: tuple[Any, ...], out: object) -> Tensor | None:
        """Follow a product by a number; record a difference, and return another one if that is asked for."""
        if not self._terms or len(args) != 2 or not isinstance(out, Tensor):
            return None
        name = name_of(func)
        left, right = self._of(args[0]), self._of(args[1])
        if name in _PRODUCT and (left is None) != (right is None):
            term, factor = (left, args[1]) if left else (right, args[0])
            assert term is not None
            if not isinstance(factor, Tensor) or factor.numel() == 1:
                factor = term.factor * (factor.detach() if isinstance(factor, Tensor) else factor)
                self._terms.append(replace(term, out=weakref.ref(out), factor=factor))
        elif name in _SUBTRACTION and left is not None and right is not None:
            self._terms.clear()
            return self._record(left, right, out)
        return None

    def _of(self, value: object) -> Term | None:
        return next((term for term in self._terms if term.out() is value), None)

    def _record(self, first: Term, second: Term, out: Tensor) -> Tensor | None:
        value, source = first.value, "scaled_dot_product_attention"
        rows, columns = first.query.shape[-2], first.key.shape[-2]
        site = self.recorder.site(first.query.shape[:-2], rows, columns, value)
        if site is None:
            return None
        if not self.recorder.wants_map(site):
            self.recorder.record_layout(site, rows, columns, value.shape[-1], source)
            return None
        how, wanted = "(map - lambda map) @ V with the difference of two attentions", out
        if first.plain is not None and second.plain is not None:
            how += " without their dropout"
            wanted = first.factor * first.plain - second.factor * second.plain
        with aside(out):
            pair = [self._map(site, term) for term in (first, second)]
            matrix = exact_times(first.factor, pair[0]) - exact_times(second.factor, pair[1])
            v = site.arrange(value)
            error = relative_error(matrix @ exact(v), site.arrange(wanted))
            softmax = torch.stack(pair, dim=2).flatten(1, 2)  # [B, 2H, N, M]: the two of a head side by side
        instead = self.recorder.record(
            site,
            queries=None,
            keys=None,
            values=v,
            attention=matrix,
            softmax=softmax,
            source=source,
            measured="difference of two softmax maps a head, as it multiplies V",
            head_dim=value.shape[-1],
            check=Check(site.key, error, tolerance(out), how),
        )
        return None if instead is None else site.put(instead, v, out)

    @staticmethod
    def _map(site: Site, term: Term) -> Tensor:
        out = term.plain if term.plain is not None else term.out()
        q, k, v = (site.arrange(t) for t in (term.query, term.key, term.value))
        lead = term.query.shape[:-2]
        mask = term.mask
        if mask is not None:
            mask = site.arrange(mask.expand(*lead, q.shape[-2], k.shape[-2]))
        # Its own output may be gone by now: the difference is what is compared.
        like = v.new_zeros(*q.shape[:-1], v.shape[-1]) if out is None else site.arrange(out)
        return sdpa_map(q, k, v, like, mask, term.is_causal, term.scale)[0]


def exact_times(factor: Any, maps: Tensor) -> Tensor:
    """A map times a number or a tensor of one."""
    return maps * (factor.to(maps.dtype) if isinstance(factor, Tensor) else factor)

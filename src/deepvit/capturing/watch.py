"""The torch function mode that sees attention being computed, whoever wrote the model."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deepvit import ops
from deepvit.capturing.differential import Differences, Term, is_differential
from deepvit.capturing.follow import Follower, Product
from deepvit.capturing.functions import EINSUM, MATMUL, SOFTMAX, VALUE_KEEPING
from deepvit.capturing.layouts import Site
from deepvit.capturing.maps import aside, exact, relative_error, sdpa_map, tolerance
from deepvit.capturing.multihead import MULTI_HEAD, multi_head
from deepvit.capturing.reattended import reattention
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.seen import Check
from deepvit.capturing.spatial import channels_read, merge

_SDPA = F.scaled_dot_product_attention


class Watch(TorchFunctionMode):
    """Calls every function exactly as the model does, returns exactly what it returns, and looks on.

    Only a recorder that asks for another map (``record`` returns one) changes the output of an attention.

    Own computation runs without gradient and unseen by this and any other mode; own products run outside
    autocast.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.follower = Follower()
        self.differences = Differences(recorder)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Outside the model: the user's own code in the with block. Compiling: a compiled part of an eager model is
        # traced, and this must not be. (Blocks run again in a backward pass are out of reach of any mode.)
        if torch.compiler.is_compiling() or self.recorder.paused or not self.recorder.frames.stack:
            return func(*args, **kwargs)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self.follower.before(func, args, kwargs)
        out = func(*args, **kwargs)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            instead = self._look(func, args, kwargs, out)
            if isinstance(instead, Tensor):  # with the strides of what it stands for: the model may view it
                instead = torch.empty_like(out).copy_(instead)
        return out if instead is None else instead

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        recorder = self.recorder
        merge(recorder.frames.stack[-1].reads, channels_read(func, args, kwargs, out))
        recorder.grids.look(func, args, kwargs, out)
        if func is _SDPA:
            return self._sdpa(*args, out=out, **kwargs)
        if func is MULTI_HEAD:
            return multi_head(self.recorder, args, kwargs, out)
        if func is ops.reattention:
            return reattention(self.recorder, *args, out=out, **kwargs)
        if func in SOFTMAX:
            reason = self.follower.softmax(args, kwargs, out)
            if reason is not None and out.ndim >= 3:
                self.recorder.skip(self.recorder.frames.stack[-1].name, out.shape, reason)
        elif func in MATMUL or func in EINSUM:
            if (product := self.follower.multiply(func, args, kwargs, out)) is not None:
                return self._product(product)
        elif (instead := self.differences.look(func, args, out)) is not None:
            return instead
        else:
            self.follower.follow(func, args, kwargs, out)
        return None

    def _sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        out: Tensor,
    ) -> Tensor | None:
        if enable_gqa:  # as torch defines it: each key and value head serves the same number of query heads
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
        owner = self.recorder.frames.stack[-1]
        if is_differential(owner.module):
            plain = None
            if dropout_p > 0.0:
                plain = _SDPA(query, key, value, attn_mask, 0.0, is_causal, scale=scale)
            term = Term(weakref.ref(out), plain, query, key, value, attn_mask, is_causal, scale)
            self.differences.hold(term, owner.name)
            return None
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        rows, columns = query.shape[-2], key.shape[-2]
        site = self.recorder.site(lead, rows, columns, value)
        if site is None:
            return None
        if not self.recorder.wants_map(site):
            self.recorder.record_layout(site, rows, columns, value.shape[-1], "scaled_dot_product_attention")
            return None
        how = "map @ V with scaled_dot_product_attention"
        if dropout_p > 0.0:
            out = _SDPA(query, key, value, attn_mask, 0.0, is_causal, scale=scale)
            how += f" without its dropout of {dropout_p:g}"
        mask = None if attn_mask is None else attn_mask.expand(*lead, rows, columns)
        q, k, v, o = (site.arrange(t) for t in (query, key, value, out))
        with aside(out):
            attention, error = sdpa_map(
                q, k, v, o, None if mask is None else site.arrange(mask), is_causal, scale
            )
        instead = self.recorder.record(
            site,
            queries=q,
            keys=k,
            values=v,
            attention=attention,
            softmax=None,
            source="scaled_dot_product_attention",
            measured="softmax map" + (f" before dropout of {dropout_p:g}" if dropout_p > 0.0 else ""),
            head_dim=value.shape[-1],
            check=Check(site.key, error, tolerance(out), how),
        )
        return None if instead is None else site.put(instead, v, out)

    def _product(self, product: Product) -> Tensor | None:
        matrix, values, out, found = product.matrix, product.values, product.out, product.map
        lead = tuple(matrix.shape[:-2])
        site = self.recorder.site(lead, matrix.shape[-2], matrix.shape[-1], values)
        if site is None:
            return None
        if not self.recorder.wants_map(site):
            self.recorder.record_layout(site, matrix.shape[-2], matrix.shape[-1], values.shape[-1], "softmax")
            return None
        multiplied, v, o = (site.arrange(t.detach()) for t in (matrix, values, out))
        with aside(out):
            error = relative_error(exact(multiplied) @ exact(v), o)
        attention, softmax, measured = multiplied, None, "softmax map"
        same_axes = found.softmax.shape[:-2] == lead
        if found.changed:
            softmax = site.arrange(found.softmax) if same_axes else _several(site, found.softmax)
            steps = ", ".join(step for step in found.steps if step not in VALUE_KEEPING)
            measured = f"softmax map after {steps}, as it multiplies V"
        elif found.dropped and same_axes:
            attention, measured = site.arrange(found.softmax), "softmax map before dropout"
        elif found.dropped:
            measured = "softmax map after dropout"
        instead = self.recorder.record(
            site,
            queries=_arranged(site, found.queries),
            keys=_arranged(site, found.keys),
            values=v,
            attention=attention,
            softmax=softmax,
            source="softmax",
            measured=measured,
            head_dim=values.shape[-1],
            check=Check(
                site.key, error, tolerance(out), "the matrix that multiplies V, times V, with the product"
            ),
        )
        return None if instead is None else product.restore(site.put(instead, v, out))


def _several(site: Site, softmax: Tensor) -> Tensor | None:
    """Softmax maps [B, k · H, N, M] of which k make one map of the H that multiply V (differential attention)."""
    if softmax.ndim == 4 and len(site.order.lead) == 2 and site.order.heads_axis == 1:
        images, heads = site.order.lead
        if softmax.shape[0] == images and softmax.shape[1] % heads == 0:
            return softmax
    return None


def _arranged(site: Site, tensor: Tensor) -> Tensor | None:
    """Queries or keys in order, if their leading axes are those of the map."""
    try:
        return site.arrange(tensor)
    except RuntimeError:  # they do not broadcast: the model changed axes between scores and product
        return None

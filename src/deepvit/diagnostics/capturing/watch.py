"""The torch function mode that sees attention being computed, whoever wrote the model."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deepvit import ops
from deepvit.diagnostics.capturing.follow import EINSUM, MATMUL, SOFTMAX, VALUE_KEEPING, Follower, Product
from deepvit.diagnostics.capturing.fused import projections, rebuild
from deepvit.diagnostics.capturing.maps import aside, exact, relative_error, sdpa_map, tolerance
from deepvit.diagnostics.capturing.recorder import Recorder, Site
from deepvit.diagnostics.capturing.seen import Check

_SDPA = F.scaled_dot_product_attention
_MHA = F.multi_head_attention_forward
_MHA_SIGNATURE = inspect.signature(_MHA)


class Watch(TorchFunctionMode):
    """Calls every function exactly as the model does, returns exactly what it returns, and looks on.

    Own computation runs without gradient and unseen by this and any other mode; own products run outside
    autocast.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.follower = Follower()
        self.paused = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Outside the model: the user's own code in the with block. Compiling: a compiled part of an eager model is
        # traced, and this must not be. (Blocks run again in a backward pass are out of reach of any mode.)
        if torch.compiler.is_compiling() or self.paused or not self.recorder.frames.stack:
            return func(*args, **kwargs)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self.follower.before(func, args, kwargs)
        out = func(*args, **kwargs)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self._look(func, args, kwargs, out)
        return out

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if func is _SDPA:
            self._sdpa(*args, out=out, **kwargs)
        elif func is _MHA:
            self._multi_head(args, kwargs, out)
        elif func is ops.reattention:
            self._reattention(*args, out=out, **kwargs)
        elif func in SOFTMAX:
            reason = self.follower.softmax(args, kwargs, out)
            if reason is not None and out.ndim >= 3:
                self.recorder.skip(self.recorder.frames.stack[-1].name, out.shape, reason)
        elif func in MATMUL or func in EINSUM:
            if (product := self.follower.multiply(func, args, kwargs, out)) is not None:
                self._product(product)
        else:
            self.follower.follow(func, args, kwargs, out)

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
    ) -> None:
        if enable_gqa:  # as torch defines it: each key and value head serves the same number of query heads
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        rows, columns = query.shape[-2], key.shape[-2]
        site = self.recorder.site(lead, rows, columns, value)
        if site is None:
            return
        if not self.recorder.options.attention:
            self.recorder.record_layout(site, rows, columns, value.shape[-1], "scaled_dot_product_attention")
            return
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
        self.recorder.record(
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

    def _product(self, product: Product) -> None:
        matrix, values, out, found = product.matrix, product.values, product.out, product.map
        lead = tuple(matrix.shape[:-2])
        site = self.recorder.site(lead, matrix.shape[-2], matrix.shape[-1], values)
        if site is None:
            return
        if not self.recorder.options.attention:
            self.recorder.record_layout(site, matrix.shape[-2], matrix.shape[-1], values.shape[-1], "softmax")
            return
        multiplied, v, o = (site.arrange(t.detach()) for t in (matrix, values, out))
        with aside(out):
            error = relative_error(exact(multiplied) @ exact(v), o)
        attention, softmax, measured = multiplied, None, "softmax map"
        same_axes = found.softmax.shape[:-2] == lead
        if found.changed:
            softmax = site.arrange(found.softmax) if same_axes else None
            steps = ", ".join(step for step in found.steps if step not in VALUE_KEEPING)
            measured = f"softmax map after {steps}, as it multiplies V"
        elif found.dropped and same_axes:
            attention, measured = site.arrange(found.softmax), "softmax map before dropout"
        elif found.dropped:
            measured = "softmax map after dropout"
        self.recorder.record(
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

    def _multi_head(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], out: tuple[Tensor, Tensor | None]
    ) -> None:
        """``F.multi_head_attention_forward``: called once more, for its weights, without dropout."""
        bound = _MHA_SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        call: dict[str, Any] = dict(bound.arguments)
        wanted, without = out[0], ""
        if call["training"] and call["dropout_p"] > 0.0:
            without = f" without its dropout of {call['dropout_p']:g}"
            wanted = _MHA(**{**call, "need_weights": False, "training": False})[0]
        again, weights = _MHA(
            **{**call, "need_weights": True, "average_attn_weights": False, "training": False}
        )
        assert weights is not None
        self.heads(weights, again, wanted, without, {**call, "batch_first": False})

    def heads(self, weights: Tensor, again: Tensor, out: Tensor, without: str, call: dict[str, Any]) -> None:
        """Record torch's own multi-head attention.

        ``weights`` [B, H, N, M] and the output ``again`` come from a second call that forms the map; ``out``
        is what the model got; ``call`` holds the arguments of ``F.multi_head_attention_forward``.
        """
        rows, columns = weights.shape[-2:]
        site = self.recorder.site(tuple(weights.shape[:-2]), rows, columns, None)
        if site is None:
            return
        source, width = "multi_head_attention", again.shape[-1] // weights.shape[-3]
        if not self.recorder.options.attention:
            self.recorder.record_layout(site, rows, columns, width, source)
            return
        projected = projections(call)
        with aside(out):
            if projected is None:  # keys of its own, that are no activations
                error, how = (
                    relative_error(again, out),
                    f"multi-head attention with and without weights{without}",
                )
            else:
                rebuilt, how = (
                    rebuild(weights, projected[2], call),
                    f"map @ V, projected, with its output{without}",
                )
                error = relative_error(rebuilt, out)
        q, k, v = (site.arrange(t) for t in projected) if projected else (None, None, None)
        self.recorder.record(
            site,
            queries=q,
            keys=k,
            values=v,
            attention=site.arrange(weights),
            softmax=None,
            source=source,
            measured="softmax map" + (f", taken{without}" if without else ""),
            head_dim=width,
            check=Check(site.key, error, tolerance(out), how),
        )

    def _reattention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        theta: Tensor,
        *,
        out: Tensor,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        """Our own operator: both maps, P and the mixed and normalised Y that multiplies V.

        With batch statistics nothing may be updated, and with dropout the model's own maps cannot be made
        again: then the operator is called once more without it, and its output is what the maps have to give.
        """
        source = "reattention"
        site = self.recorder.site(tuple(q.shape[:-2]), q.shape[-2], k.shape[-2], v)
        if site is None:
            return
        if not self.recorder.options.attention:
            self.recorder.record_layout(site, q.shape[-2], k.shape[-2], v.shape[-1], source)
            return
        how, measured = "Y @ V with the operator", "softmax map mixed over heads and normalised (Y)"
        if _of_batch(options):
            options = {**options, "running_mean": None, "running_var": None}
        if options.get("training") and options.get("dropout_p", 0.0) > 0.0:
            how += f" without its dropout of {options['dropout_p']:g}"
            measured += f", without dropout of {options['dropout_p']:g}"
            options = {**options, "dropout_p": 0.0}
            out = ops.reattention(q, k, v, theta, backend=backend, **options)
        with aside(out):
            q_cast, k_cast = (t.to(out.dtype) for t in (q, k))  # as the operator does under autocast
            softmax, mixed = ops.reattention_maps(q_cast, k_cast, theta, **options)
            error = relative_error(mixed @ v.to(mixed.dtype), out)
            allowed = tolerance(out)
            if error > allowed:
                allowed *= max(1.0, _cancellation(softmax, theta, v, out, options))
        self.recorder.record(
            site,
            queries=site.arrange(q),
            keys=site.arrange(k),
            values=site.arrange(v),
            attention=site.arrange(mixed),
            softmax=site.arrange(softmax),
            source=source,
            measured=measured,
            head_dim=v.shape[-1],
            check=Check(site.key, error, allowed, how),
        )


def _of_batch(options: dict[str, Any]) -> bool:
    """Whether a call of our operator takes the batch's statistics."""
    chosen = options.get("batch_statistics")
    return bool(options.get("training") if chosen is None else chosen)


def _cancellation(softmax: Tensor, theta: Tensor, v: Tensor, out: Tensor, options: dict[str, Any]) -> float:
    """How much larger the terms that Re-attention adds up are than their sum, its output.

    The norm takes out what all entries of a mixed map share and amplifies the rest, so that terms far larger
    than the output cancel in it; rounding is a share of the terms, whichever way they are added up.
    """
    gain = softmax.new_full((softmax.shape[1],), float(options.get("output_scale", 1.0)))
    mixed = torch.einsum("hg,bgmn->bhmn", theta.to(softmax.dtype), softmax)
    if options.get("norm", "batch") == "batch":
        spread = options.get("running_var")
        if _of_batch(options) or spread is None:
            spread = mixed.var(dim=(0, 2, 3), unbiased=False)
        gain = gain * torch.rsqrt(spread.to(softmax.dtype) + options.get("eps", 1e-5))
        if options.get("norm_weight") is not None:
            gain = gain * options["norm_weight"].to(softmax.dtype).abs()
    terms = torch.einsum("hg,bgmn->bhmn", theta.abs().to(softmax.dtype), softmax) @ v.abs().to(softmax.dtype)
    largest = (gain.abs()[:, None, None] * terms).amax()
    return float(largest / exact(out).abs().amax().clamp_min(torch.finfo(softmax.dtype).tiny))


def _arranged(site: Site, tensor: Tensor) -> Tensor | None:
    """Queries or keys in order, if their leading axes are those of the map."""
    try:
        return site.arrange(tensor)
    except RuntimeError:  # they do not broadcast: the model changed axes between scores and product
        return None

"""Re-attention as a layer that takes the place of timm's ``Attention``."""

# B batch, N tokens, C model width, H heads, D head width

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch._jit_internal import is_scripting
from torch.jit._trace import is_tracing

from deepvit.errors import UserError
from deepvit.layers.in_torchscript import centred_maps, normalised_by_batch, normalised_by_running
from deepvit.layers.map_norm import check_norm, check_theta, norm_arguments
from deepvit.ops import BACKENDS, NORMS, reattention

INITS = ("official", "identity")


class ReAttention(nn.Module):
    """Self-attention whose maps are mixed over heads and normalised: [B, N, dim] -> [B, N, dim].

    DeepViT, Zhou et al. 2021 (arXiv 2103.11886), in the official code's form and state names, so that its
    checkpoints load as they are: ``reatten_matrix`` (a 1x1 convolution over heads) holds theta and its bias,
    ``var_norm`` (a batch norm over heads) holds gain, shift and running statistics. They are containers; the
    arithmetic is :func:`deepvit.ops.reattention`, which keeps no attention map.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` works as usual: the layer then takes its statistics over
    the processes of that group.

    Args:
        dim: width of the tokens.
        num_heads: number of heads; must divide ``dim`` unless ``attn_head_dim`` is given.
        attn_head_dim: width of one head; None is ``dim // num_heads``.
        dim_out: width of the result; None is ``dim``.
        qkv_bias: bias of the query, key and value projection.
        qk_norm: normalise queries and keys per head with ``norm_layer``.
        scale_norm: normalise the heads' output with ``norm_layer`` before the last projection.
        proj_bias: bias of the last projection.
        gated: multiply the heads' output by a sigmoid gate computed from the input.
        attn_drop: dropout on the softmax maps, before theta.
        proj_drop: dropout after the last projection.
        norm_layer: constructor for ``qk_norm`` and ``scale_norm``; None is ``nn.LayerNorm``.
        device: where parameters are made.
        dtype: of the parameters.
        backend: "auto", "reference", "streaming", "native" or "triton".
        init: theta's start: "official" (the default of a convolution, U(-H^-1/2, H^-1/2)) or "identity"
            (theta the unit matrix, bias 0; the author reports similar results).
        norm: "batch", as published, or "none".
        rescale: multiply the normalised map by D^-1/2, as the published S model does.

    Raises:
        UserError: options that do not fit.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        var_norm: Any

    def __init__(
        self,
        dim: int,
        num_heads: int = 12,
        *,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        init: str = "official",
        norm: str = "batch",
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if attn_head_dim is None and dim % num_heads != 0:
            raise UserError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        if backend != "auto" and backend not in BACKENDS:
            raise UserError(f"backend={backend!r} is unknown; choose auto, {', '.join(BACKENDS)}")
        if init not in INITS:
            raise UserError(f"init={init!r} is unknown; choose {' or '.join(INITS)}")
        if norm not in NORMS:
            raise UserError(f"norm={norm!r} is unknown; choose {' or '.join(NORMS)}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        norm_layer = nn.LayerNorm if norm_layer is None else norm_layer
        self.num_heads = num_heads
        self.head_dim = dim // num_heads if attn_head_dim is None else attn_head_dim
        self.attn_dim = num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.backend, self.init, self.norm_mode, self.rescale = backend, init, norm, rescale
        self.output_scale = self.head_dim**-0.5 if rescale else 1.0
        # 1/N of the maps that the running statistics are of, 0 where it is not known: see entries.py.
        self.entry_mean = 0.0

        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=qkv_bias, **factory)
        self.q_norm = norm_layer(self.head_dim, **factory) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(self.head_dim, **factory) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.reatten_matrix = nn.Conv2d(num_heads, num_heads, 1, **factory)
        self.var_norm = nn.BatchNorm2d(num_heads, **factory) if norm == "batch" else nn.Identity()
        self.norm = norm_layer(self.attn_dim, **factory) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, self.attn_dim, bias=qkv_bias, **factory) if gated else None
        self.proj = nn.Linear(self.attn_dim, dim if dim_out is None else dim_out, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_theta()

    @torch.no_grad()
    def reset_theta(self) -> None:
        """Set theta to its initial value. A model's own weight initialisation should call this last."""
        if self.init == "identity":
            nn.init.eye_(self.reatten_matrix.weight.view(self.num_heads, self.num_heads))
            nn.init.zeros_(self._theta_bias())
        else:
            self.reatten_matrix.reset_parameters()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [B, N, dim] -> [B, N, dim_out]; masks are refused: batch norm over maps has no masked form."""
        if is_scripting():
            return self._in_torchscript(x, attn_mask, is_causal)
        else:  # TorchScript does not read this branch
            _refuse_masks(x, attn_mask, is_causal)
            if is_tracing():  # sees PyTorch's own operations only
                return self._in_torchscript(x, None, False)
            return self._by_operator(x)

    def _by_operator(self, x: Tensor) -> Tensor:
        """``forward`` by ``deepvit.ops.reattention``."""
        check_theta(self.reatten_matrix)
        batch, tokens, _ = x.shape
        # Unbound before the transpose: the three gradients are then stacked in the projection's own layout.
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.unbind(2)
        known = self._norm_arguments(x)
        y = reattention(
            self.q_norm(q.transpose(1, 2)),
            self.k_norm(k.transpose(1, 2)),
            v.transpose(1, 2),
            self.reatten_matrix.weight.view(self.num_heads, self.num_heads),
            theta_bias=self._bias_at(tokens, known),
            norm=self.norm_mode,
            scale=self.scale,
            output_scale=self.output_scale,
            dropout_p=self.attn_drop.p if self.attn_drop.training else 0.0,
            backend=self.backend,
            **known,
        )
        y = self.norm(y.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        result: Tensor = self.proj_drop(self.proj(y))
        return result

    def _in_torchscript(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        """``forward`` in operations and words that TorchScript knows (see ``in_torchscript.py``)."""
        if attn_mask is not None or is_causal:
            raise RuntimeError("ReAttention takes no attention mask: its norm is over whole maps")
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        maps = centred_maps(q, k, self.scale, self.attn_drop.p if self.attn_drop.training else 0.0)
        theta, bias = self.reatten_matrix.weight, self.reatten_matrix.bias
        assert bias is not None
        if hasattr(
            self.var_norm, "momentum"
        ):  # a batch norm; TorchScript reads the branch that is taken, no other
            norm = self.var_norm
            if norm.training or norm.running_mean is None:
                momentum, mean, var = 0.0, norm.running_mean, norm.running_var
                if norm.momentum is not None:
                    momentum = norm.momentum
                if not norm.track_running_stats:
                    mean, var = None, None
                counted = norm.num_batches_tracked
                if mean is not None and counted is not None:
                    counted.add_(1)
                    if norm.momentum is None:
                        momentum = 1.0 / float(counted)
                y = normalised_by_batch(
                    maps, v, theta, bias, norm.weight, norm.bias, mean, var, momentum, norm.eps, self.output_scale
                )  # fmt: skip
            else:
                y = self._by_running_statistics(maps, v)
        elif hasattr(self.var_norm, "running_mean"):  # a frozen one
            y = self._by_running_statistics(maps, v)
        else:
            y = normalised_by_running(maps, v, theta, bias, None, None, None, None, 0.0, self.output_scale)
        y = self.norm(y.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        result: Tensor = self.proj_drop(self.proj(y))
        return result

    def _by_running_statistics(self, maps: Tensor, v: Tensor) -> Tensor:
        norm = self.var_norm  # by itself: TorchScript makes a value of what stands in a tuple
        theta, bias = self.reatten_matrix.weight, self.reatten_matrix.bias
        assert bias is not None
        if self.entry_mean > 0.0:
            bias = bias - (1.0 / maps.size(-1) - self.entry_mean) * theta.sum((1, 2, 3))
        return normalised_by_running(
            maps, v, theta, bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps,
            self.output_scale,
        )  # fmt: skip

    def __prepare_scriptable__(self) -> ReAttention:
        """What ``torch.jit.script`` asks of a module before it reads it: what cannot be scripted is refused here."""
        check_norm(self.var_norm, self.norm_mode)
        check_theta(self.reatten_matrix)
        if type(self).forward is not ReAttention.forward:
            raise UserError(
                f"{type(self).__name__} cannot be scripted; torch.export and torch.compile take it as it is"
            )
        if isinstance(self.var_norm, nn.SyncBatchNorm):
            raise UserError(
                "torch.jit.script knows no SyncBatchNorm; script the model before "
                "convert_sync_batchnorm, or load its weights into one that was not converted"
            )
        return self

    def _theta_bias(self) -> Tensor:
        assert self.reatten_matrix.bias is not None
        return self.reatten_matrix.bias

    def _bias_at(self, tokens: int, known: dict[str, Any]) -> Tensor:
        """Theta's bias, in evaluation less what maps of so many tokens have more in the mean than those of the statistics.

        ``known`` are the norm's arguments. With the batch's own statistics, which go into the running ones, 1/N is kept
        as they are: as a moving average, where sizes change while training. Compiled code does not do so (each value would
        be compiled anew): ``learn_entries`` says it there.
        """
        bias = self._theta_bias()
        if self.norm_mode != "batch":
            return bias
        if not known["batch_statistics"]:
            return at_tokens(bias, self.reatten_matrix.weight, tokens, self.entry_mean)
        counted = known["running_mean"] is not None and not torch.compiler.is_compiling()
        if counted and isinstance(tokens, int) and tokens:  # torch.fx has no number yet
            weight = known["momentum"] if self.entry_mean else 1.0
            self.entry_mean += weight * (1.0 / tokens - self.entry_mean)
        return bias

    def _norm_arguments(self, x: Tensor | None = None) -> dict[str, Any]:
        """What the operator needs of ``var_norm`` (``map_norm.py``); ``x`` is any tensor of this call."""
        known = norm_arguments(self.var_norm, self.norm_mode, x)
        # Dropout goes on where the norm is frozen.
        return {"training": self.attn_drop.training, **known}

    def folded(self) -> tuple[Tensor, Tensor]:
        """Θ' [H, H] and shift [H] of the one mixture that evaluation computes, Y = Θ'P + shift, the norm in both.

        At the number of tokens that the statistics are of; at N the shift is larger by
        ``(entry_mean − 1/N) mixed_rows(Θ')``.

        Raises:
            UserError: parts that it cannot compute, or a norm without running statistics.
        """
        check_norm(self.var_norm, self.norm_mode)
        check_theta(self.reatten_matrix)
        dtype, exact = self.reatten_matrix.weight.dtype, torch.float64
        theta = self.reatten_matrix.weight.view(self.num_heads, self.num_heads).to(exact)
        bias = self._theta_bias().to(exact)
        gain, shift = torch.full_like(bias, self.output_scale), self.output_scale * bias
        if self.norm_mode == "batch":
            norm = self.var_norm
            if norm.running_mean is None or norm.running_var is None:
                raise UserError(
                    "its norm keeps no running statistics, so that an image's answer hangs on others"
                )
            gain = gain * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
            gain = gain if norm.weight is None else gain * norm.weight.to(exact)
            shift = gain * (bias - norm.running_mean.to(exact))
            shift = shift if norm.bias is None else shift + self.output_scale * norm.bias.to(exact)
        return (gain[:, None] * theta).to(dtype), shift.to(dtype)

    def mixed_rows(self, theta: Tensor) -> Tensor:
        """Sums [H] over the rows of what the norm has scaled in the folded ``theta``; 0 without a norm."""
        return theta.sum(1) if self.norm_mode == "batch" else torch.zeros_like(theta[:, 0])

    def extra_repr(self) -> str:
        """Options that the parts do not show."""
        return f"backend={self.backend}, init={self.init}, norm={self.norm_mode}, rescale={self.rescale}"


@torch.fx.wrap  # type: ignore[untyped-decorator]
def at_tokens(shift: Tensor, theta: Tensor, tokens: int, entry_mean: float) -> Tensor:
    """``shift`` [H] less what maps of so many tokens have more in the mean than those with the mean entry given.

    A softmax map's mean goes into a mixed one by the sums over the rows of ``theta`` [H, ...].
    """
    if not tokens or entry_mean in (0.0, 1.0 / tokens):
        return shift
    return shift - (1.0 / tokens - entry_mean) * theta.flatten(1).sum(1)


@torch.fx.wrap  # type: ignore[untyped-decorator]
def _refuse_masks(x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
    """A function by itself, so that torch.fx, to whom a mask may yet be given, asks when its graph runs."""
    if attn_mask is not None:
        raise UserError("ReAttention takes no attn_mask: its norm is over whole maps; remove the mask")
    if is_causal:
        raise UserError("ReAttention takes no is_causal=True: its norm is over whole maps; leave it False")


# timm's and torchvision's feature extraction by torch.fx takes the layer as one node, with its dtypes and checks.
register_notrace_module(ReAttention)

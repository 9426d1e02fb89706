"""Mixing loss: each patch of a mixed image is asked for the label of the image that it came from.

Shapes: B images, N = h·w patch tokens, K classes, S sources (images that went into one mixed image).
Source: Gong et al. 2021 (arXiv 2104.12753), mixing loss. ``patch_mix`` makes the images and labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.losses.loss import Loss, Seen
from deepvit.losses.patch_mix import PatchLabels
from deepvit.losses.precision import full, no_autocast


def patch_mixing(
    logits: Tensor,
    labels: Tensor | PatchLabels,
    form: str = "paper",
    *,
    prefix_tokens: int = 0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Ask each patch for the label of the image it came from.

    - ``"paper"``: ``mean_i CE(g(h_i[L]), y_i)`` over all patches. ``logits`` is [B, N, K] (grids [B, h, w, K]
      too); ``labels`` is hard [B, N] (smoothed by ``label_smoothing``), soft [B, N, K], or ``PatchLabels``.
      The first ``prefix_tokens`` tokens of ``logits`` are ignored.
    - ``"official"``: the official code's loss: KL from each region's label to the prediction for that
      region's mean token, weighted by the region's area. ``logits`` is [B, S, K], one row a region
      (``PatchHead`` makes it), and ``labels`` are ``PatchLabels`` with S sources. No token axis, hence no
      prefix.

    Returns a scalar, mean over images; raises UserError for an unknown form or shapes that do not fit.
    """
    LOSS.check_form(form)
    with no_autocast(logits):
        if form == "official":
            return _region_mixing(full(logits), labels)
        logits_BNK = full(logits.flatten(1, 2) if logits.ndim == 4 else logits)[:, prefix_tokens:]
        if isinstance(labels, PatchLabels):
            _check_places(logits_BNK, labels)
            sources, share = labels.sources.to(logits_BNK.dtype), labels.share.to(logits_BNK.dtype)
            # Labels sum to 1, so CE = logsumexp − <label, logits>: the dense labels are never built.
            agreement_BNS = torch.bmm(logits_BNK, sources.transpose(1, 2))
            held_BN = share.sum(dim=-1)
            cost_BN = torch.logsumexp(logits_BNK, dim=-1) * held_BN - (agreement_BNS * share).sum(dim=-1)
            held = held_BN.sum() if labels.held is None else labels.held.to(cost_BN.dtype)
            return cost_BN.sum() / held.clamp_min(torch.finfo(held.dtype).tiny)
        expected = logits_BNK.shape[:2] if labels.ndim == 2 else logits_BNK.shape
        if labels.shape != expected:
            raise UserError(
                f"patch labels must be {list(expected)} for these logits, not {list(labels.shape)}"
            )
        target = labels.flatten() if labels.ndim == 2 else full(labels).flatten(0, 1)
        return F.cross_entropy(logits_BNK.flatten(0, 1), target, label_smoothing=label_smoothing)


def _check_places(logits_BNK: Tensor, labels: PatchLabels) -> None:
    if logits_BNK.shape[1] != labels.share.shape[1]:
        raise UserError(
            f"the labels are for {labels.grid[0]}×{labels.grid[1]} patches but the network has "
            f"{logits_BNK.shape[1]} patch tokens; PatchMix's patch_size must be the pixels of one such token"
        )


def _region_mixing(logits_BSK: Tensor, labels: Tensor | PatchLabels) -> Tensor:
    if not isinstance(labels, PatchLabels) or logits_BSK.shape != labels.sources.shape:
        raise UserError(
            "patch_mixing form 'official' takes region logits [B, S, K] and PatchLabels with S sources"
        )
    area_BS = labels.share.mean(dim=1).to(logits_BSK.dtype)
    label_BSK = labels.sources.to(logits_BSK.dtype)
    log_prob = torch.log_softmax(logits_BSK, dim=-1)
    divergence_BS = (torch.xlogy(label_BSK, label_BSK) - label_BSK * log_prob).sum(dim=-1)
    return (divergence_BS * area_BS).sum(dim=1).mean()


class PatchHead(nn.Module):
    """The linear head g of the mixing loss, one for all patches (its parameters belong in the optimizer).

    Args:
        dim: C, channels of a token.
        num_classes: K.
        form: ``"paper"``: logits for each patch, no dropout by default. ``"official"``: logits for each
            region's mean token (weighted by share where Mixup made regions overlap), dropout 0.2 before the
            linear layer.
        dropout: overrides the form's own rate.

    ``forward(tokens [B, N, C], labels)`` returns the loss. Source: papers as in ``patch_mixing``.
    """

    def __init__(self, dim: int, num_classes: int, form: str = "paper", dropout: float | None = None) -> None:
        super().__init__()
        LOSS.check_form(form)
        if num_classes < 1:
            raise UserError(f"patch_mixing needs num_classes of at least 1, not {num_classes}")
        self.form = form
        self.num_classes = num_classes
        self.dropout = nn.Dropout((0.2 if form == "official" else 0.0) if dropout is None else dropout)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, labels: PatchLabels) -> Tensor:
        """The mixing loss of these tokens, a scalar."""
        tokens_BNC = (tokens.flatten(1, 2) if tokens.ndim == 4 else tokens).to(self.linear.weight.dtype)
        _check_places(tokens_BNC, labels)
        if tokens_BNC.shape[-1] != self.linear.in_features:
            raise UserError(
                f"patch_mixing's head is for tokens of width {self.linear.in_features} and was given "
                f"{tokens_BNC.shape[-1]}"
            )
        if self.form == "official":
            share_BNS = labels.share.to(tokens_BNC.dtype)
            # A region of no patches (CutMix drew an empty rectangle) has area 0 and must not divide by it.
            size_BS1 = share_BNS.sum(dim=1).clamp_min(torch.finfo(torch.float32).eps).unsqueeze(-1)
            tokens_BNC = torch.bmm(share_BNS.transpose(1, 2), tokens_BNC) / size_BS1
        return patch_mixing(self.linear(self.dropout(tokens_BNC)), labels, self.form)


def compute(seen: Seen, form: str, options: object) -> Tensor:
    """The loss of a watched forward pass."""
    head: PatchHead = seen.part()
    loss: Tensor = head(seen.last(), seen.labels(head.num_classes))
    return loss


def make_part(classes: int, width: int, form: str) -> nn.Module:
    """The head g."""
    return PatchHead(width, classes, form)


LOSS = Loss(
    name="patch_mixing",
    formula="mean_i CE(g(h_i), y_i), y_i the label of the image that patch i came from",
    source="Gong et al. 2021, arXiv 2104.12753",
    forms={"paper": frozenset({"normed", "labels"}), "official": frozenset({"normed", "labels"})},
    compute=compute,
    helps="alike patches",
    make_part=make_part,
    part_name="head",
    paper_weight=1.0,
)

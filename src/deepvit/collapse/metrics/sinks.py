"""Attention sinks: the token that gets most attention, and whether there is anything to fetch from it.

Legend: B images, W windows per image, H heads, Q queries, K keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepvit.collapse.metrics.metric import Metric


def sink_share(softmax: Tensor) -> Tensor:
    """Largest share of attention that one token gets, of softmax maps [B,H,Q,K] -> [B,H], from 1/K to 1.

    ``max_t mean_q P[q,t]``. 1/K: no token gets more than others; 1: every query looks at the same token.
    Source: attention sinks, Xiao et al. (arXiv 2309.17453); the largest column mean is the usual reading.
    """
    share: Tensor = softmax.to(torch.float32).mean(-2).amax(-1)
    return share


def sink_value_norm(softmax: Tensor, values: Tensor) -> Tensor | None:
    """Value norm of the sink over the median token's: maps [B,H,Q,K], values [B,H,K,D] -> [B,H], from 0.

    ``|v_s| / median_t |v_t|`` with ``s = argmax_t mean_q P[q,t]``. Near 0: a sink from which nothing is fetched,
    so attending to it is doing nothing (a gate answers that); near 1 and above: what it holds is broadcast
    (registers answer that). Source: the two kinds and the value norm as their mark are those of Fesser et al.
    (arXiv 2606.08105); the ratio to the median token is ours. ``None`` where values do not belong to the heads.
    """
    if values.shape[:3] != (*softmax.shape[:2], softmax.shape[-1]):
        return None
    norms = torch.linalg.vector_norm(values.to(torch.float32), dim=-1)
    sink = softmax.to(torch.float32).mean(-2).argmax(-1, keepdim=True)
    ratio: Tensor = (norms.gather(-1, sink) / _median(norms)).squeeze(-1)
    return ratio


def _median(values: Tensor) -> Tensor:
    """The median along the last axis, of an even count the mean of the middle two."""
    ordered = values.sort(-1).values
    count = values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2])[..., None] / 2


# fmt: off
SHARE = Metric(
    "sink_share", "Attention on the most attended token", "share", 0.0, 1.0, "none",
    "max over tokens t of the mean over queries of P[q,t], mean over heads; of softmax maps",
    "High: an attention sink. The value norm of the sink says of which kind.",
    "Xiao et al. (arXiv 2309.17453)",
    needs=("softmax",), compute=sink_share,
)
VALUE_NORM = Metric(
    "sink_value_norm", "Value norm of the most attended token", "times the median", 0.0, None, "none",
    "|v_s| / median over tokens of |v_t|, s the token that gets most attention, mean over heads",
    "Says something where that token gets much. Near 0: nothing is fetched from it, which a gate answers. "
    "From 1 on: it broadcasts what it holds, which registers answer.",
    "Fesser et al. (arXiv 2606.08105); the ratio to the median token is ours",
    needs=("softmax", "values"), compute=sink_value_norm,
)
# fmt: on

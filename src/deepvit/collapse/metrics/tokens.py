"""Properties of the patch tokens after a block; who calls leaves out prefix tokens (class, registers).

Legend: B images, N patches, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deepvit.collapse.metrics.metric import Metric

HIGH_NORM_FACTOR = 3.0


def patch_similarity(tokens: Tensor) -> Tensor:
    """Patch similarity P(h) of patch tokens [B,N,C] -> [B], in [0, 1].

    ``mean over i != j of |cos(h_i, h_j)|``. 1: all patches point along one line, place is lost; about
    sqrt(2 / (pi C)) for random directions. A zero token has cosine 0 with every other. NaN for one patch.
    Source: patch diversification (Gong et al., arXiv 2104.12753).
    """
    units = F.normalize(tokens.to(torch.float32), dim=-1)
    gram = (units @ units.mT).abs()
    count = tokens.shape[1]
    total = gram.sum(dim=(-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return total / (count * (count - 1)) if count > 1 else torch.full_like(total, torch.nan)


def signed_patch_similarity(tokens: Tensor) -> Tensor:
    """``mean over i != j of cos(h_i, h_j)`` of patch tokens [B,N,C] -> [B], in [-1/(N-1), 1].

    As ``patch_similarity``, but opposite directions count as different. NaN for one patch.
    """
    units = F.normalize(tokens.to(torch.float32), dim=-1)
    count = tokens.shape[1]
    # |sum of unit vectors|^2 holds all pairs and the N equal ones.
    total = units.sum(1).square().sum(-1) - units.square().sum(dim=(-2, -1))
    return total / (count * (count - 1)) if count > 1 else torch.full_like(total, torch.nan)


def feature_similarity(tokens: Tensor, last: Tensor) -> Tensor:
    """``mean over patches i of cos(h_i, last_i)``: tokens and the last block's, [B,N,C] each -> [B].

    In [-1, 1]; 1: the blocks in between no longer turn the features. Source: DeepViT (arXiv 2103.11886),
    feature similarity of each block's output with the last block's; taken over patch tokens here.
    """
    return F.cosine_similarity(tokens.to(torch.float32), last.to(torch.float32), dim=-1).mean(-1)


def rank_one_distance(tokens: Tensor) -> Tensor:
    """``|X - 1 mean(X)| / |X|`` (Frobenius) of patch tokens [B,N,C] -> [B], in [0, 1].

    0: all patches are the same vector; 1: their mean is zero. NaN when all are zero. Source: the residual
    of Dong et al. (arXiv 2103.03404), who take the 1-infinity norm and do not divide; the mean is its
    minimiser in the Frobenius norm.
    """
    tokens = tokens.to(torch.float32)
    rest = tokens - tokens.mean(1, keepdim=True)
    return _length(rest) / _length(tokens)


def change(before: Tensor, after: Tensor) -> Tensor:
    """How much a block changes its tokens, ``|X_out - X_in| / |X_in|`` (Frobenius): [B,N,C] each -> [B].

    From 0; 0: the block passes its input on. NaN (or infinity) when the input is zero.
    """
    before, after = before.to(torch.float32), after.to(torch.float32)
    return _length(after - before) / _length(before)


def update_cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of what a block adds with the stream it adds to: [B,N,C] each -> [B], in [-1, 1].

    ``mean over patches of cos(x_out - x_in, x_in)``. 0: the block writes something new; positive: it mostly makes
    tokens longer; negative: it takes back what is there. NaN where nothing is added or the stream is zero. Source:
    orthogonal residual updates (arXiv 2505.11881), there of each branch; this is the block's two
    branches together, which needs no knowledge of the block.
    """
    before, added = before.to(torch.float32), after.to(torch.float32) - before.to(torch.float32)
    lengths = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(added, dim=-1)
    cosine = torch.where(lengths > 0, (before * added).sum(-1) / lengths, torch.nan)
    return cosine.nanmean(-1).clamp(-1.0, 1.0)


def image_directions(tokens: Tensor) -> Tensor:
    """The direction of each image's mean patch [B,N,C] -> [B,C], in float64; zero where the mean is zero."""
    return F.normalize(tokens.to(torch.float64).mean(1), dim=-1)


def image_similarity(total: Tensor, count: int) -> float:
    """``mean over pairs of images a != b of cos(m_a, m_b)``, m an image's mean patch, in [-1/(B-1), 1].

    From ``total`` [C], the sum of the ``count`` images' directions (``image_directions``): its squared length
    holds all pairs and the images themselves. 1: all images end in one direction, features say nothing about the
    image. NaN for one image. Ours; that features can be uniform over the data is asked in the DINO repository.
    """
    if count < 2:
        return float("nan")
    return float((total.square().sum() - count) / (count * (count - 1)))


def high_norm_share(tokens: Tensor, factor: float = HIGH_NORM_FACTOR) -> Tensor:
    """Share of patches whose norm is above ``factor`` times the median norm of their image: [B,N,C] -> [B].

    Source: Darcet et al., "Vision Transformers need registers" (arXiv 2309.16588), who cut at a norm that
    suits one model; a multiple of the median is our rule, so that it suits any.
    """
    norms = torch.linalg.vector_norm(tokens.to(torch.float32), dim=-1)
    median = norms.median(dim=-1, keepdim=True).values
    high: Tensor = norms > factor * median
    return high.to(torch.float32).mean(-1)


def _length(tokens: Tensor) -> Tensor:
    """Frobenius norm of each image's tokens: [B,N,C] -> [B]."""
    length: Tensor = torch.linalg.vector_norm(tokens, dim=(1, 2))
    return length


# fmt: off
PATCHES = Metric(
    "patch_similarity", "Patch similarity P(h)", "cosine", 0.0, 1.0, "high",
    "mean over pairs of patches i != j of |cos(h_i, h_j)| of the block's output, prefix tokens left out",
    "1: all patch tokens point the same way and the block's output says nothing about place.",
    "patch diversification (arXiv 2104.12753)",
    needs=("some_patches",), compute=patch_similarity,
)
PATCHES_SIGNED = Metric(
    "patch_similarity_signed", "Patch similarity, signed", "cosine", -1.0, 1.0, "high",
    "mean over pairs of patches i != j of cos(h_i, h_j)",
    "As P(h), with opposite directions counted as different.",
    "usual form of the same measure",
    needs=("patches",), compute=signed_patch_similarity,
)
FEATURES = Metric(
    "feature_similarity", "Feature similarity with the last block", "cosine", -1.0, 1.0, "high",
    "mean over images and patches i of cos(h_i, last block's h_i)",
    "From where it is near 1 the remaining blocks hardly turn the features.",
    "DeepViT (arXiv 2103.11886)",
    needs=("some_patches", "last_patches"), compute=feature_similarity,
)
RANK_ONE = Metric(
    "rank_one_distance", "Distance of the patch tokens from rank one", "share", 0.0, 1.0, "low",
    "|X - 1 mean(X)| / |X| in the Frobenius norm, X the patch tokens of one image",
    "0: all patch tokens are the same vector.",
    "residual of Dong et al. (arXiv 2103.03404), relative and with the Frobenius norm",
    needs=("patches",), compute=rank_one_distance,
)
CHANGE = Metric(
    "change", "How much the block changes its tokens", "share", 0.0, None, "low",
    "|X_out - X_in| / |X_in| in the Frobenius norm, patch tokens of one image",
    "Near 0: the block passes its input on.",
    "usual measure of a residual branch",
    needs=("patches_before", "patches"), compute=change,
)
UPDATE = Metric(
    "update_cosine", "Cosine of what the block adds with its stream", "cosine", -1.0, 1.0, "none",
    "mean over patches of cos(x_out - x_in, x_in), both branches of the block together",
    "0: the block writes something new. Towards 1: it only makes tokens longer. Below 0: it takes back what is there.",
    "orthogonal residual updates (arXiv 2505.11881), there of each branch",
    needs=("patches_before", "patches"), compute=update_cosine,
)
ATTENTION_BRANCH = Metric(
    "attention_branch_cosine", "Cosine of what attention adds with its stream", "cosine", -1.0, 1.0, "none",
    "mean over patches of cos(x_mid - x_in, x_in), x_mid the stream between attention and MLP",
    "As the cosine of what the block adds, of the attention branch alone. Blocks that norm before each branch have it.",
    "orthogonal residual updates (arXiv 2505.11881)",
    needs=("patches_before", "patches_between"), compute=update_cosine,
)
MLP_BRANCH = Metric(
    "mlp_branch_cosine", "Cosine of what the MLP adds with its stream", "cosine", -1.0, 1.0, "none",
    "mean over patches of cos(x_out - x_mid, x_mid), x_mid the stream between attention and MLP",
    "As the cosine of what the block adds, of the MLP branch alone. Blocks that norm before each branch have it.",
    "orthogonal residual updates (arXiv 2505.11881)",
    needs=("patches_between", "patches"), compute=update_cosine,
)
IMAGES = Metric(
    "image_similarity", "Similarity between images", "cosine", -1.0, 1.0, "high",
    "mean over pairs of images of the cosine of their mean patches",
    "1: all images look alike after this block, so it cannot tell what is shown. Over images, so it has no spread.",
    "ours",
)
HIGH_NORM = Metric(
    "high_norm_share", "Share of high-norm patch tokens", "share", 0.0, 1.0, "none",
    "share of patch tokens with a norm above 3 times the median norm of the image's patch tokens",
    "Patches that the network uses as scratch space instead of describing their place.",
    "Darcet et al. (arXiv 2309.16588); the relative rule is ours",
    needs=("patches",), compute=high_norm_share,
)
# fmt: on

"""What each measured quantity is called, its range, unit, formula, source and meaning: one entry a metric.

Reports, documentation and tests read this table; the code that computes a metric says the same in detail.
Order is the order in which a report shows them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """One quantity measured for every block.

    ``alarm`` says which end of the range speaks of collapse: "high", "low", "both" (either end) or "none".
    """

    key: str
    title: str
    unit: str
    low: float | None
    high: float | None
    alarm: str
    formula: str
    meaning: str
    source: str


# fmt: off
_ENTRIES = [
    MetricInfo(
        "attention_similarity", "Attention similarity with the previous block", "cosine", -1.0, 1.0, "high",
        "mean over images, heads h and tokens t of cos(A^p[h,:,t], A^{p-1}[h,:,t])",
        "1: the block attends exactly as the one before it, so its attention adds nothing new. "
        "A block from 0.9 on counts as similar.",
        "DeepViT (arXiv 2103.11886); taking the mean over heads, tokens and images is our choice",
    ),
    MetricInfo(
        "attention_similarity_centred", "The same on centred maps", "cosine", -1.0, 1.0, "high",
        "as attention similarity, on A - mean(A) (the mean of a softmax map is 1/N)",
        "Near-uniform maps have cosine 1 with everything although nothing was learned; here they have not. "
        "High in both: the blocks share one learned map.",
        "ours, to tell collapse from uniformity",
    ),
    MetricInfo(
        "softmax_similarity", "Similarity of the maps before heads are mixed", "cosine", -1.0, 1.0, "high",
        "attention similarity of the softmax maps P, before Re-attention or talking heads mix them",
        "Differs from attention similarity only in models that mix heads: what the mixing itself changed.",
        "ours",
    ),
    MetricInfo(
        "head_similarity", "Similarity of the heads within a block", "cosine", -1.0, 1.0, "high",
        "mean over images, tokens t and pairs of heads g < h of cos(A[g,:,t], A[h,:,t])",
        "Low: the heads look at different things, which is what Re-attention builds new maps from.",
        "DeepViT shows neighbouring heads; all pairs is our choice",
    ),
    MetricInfo(
        "entropy", "Entropy of the attention maps", "share of log N", 0.0, 1.0, "both",
        "mean over queries of -sum_t P[q,t] log P[q,t], divided by log N; of softmax maps only",
        "1: every query looks at all tokens alike. 0: every query looks at one token.",
        "Shannon; collapse of entropy: Zhai et al. (arXiv 2303.06296)",
    ),
    MetricInfo(
        "map_contrast", "Contrast of the attention maps", "ratio", 0.0, None, "low",
        "rms of A - mean(A) over all heads, divided by the rms of mean(A); of the maps that multiply V",
        "0: uniform maps, also where heads are mixed and entropy is not defined.",
        "ours; for softmax maps near uniform 1 - entropy is contrast^2 / (2 log N)",
    ),
    MetricInfo(
        "map_rank", "Effective rank of the attention maps", "patterns", 1.0, None, "low",
        "exp of the entropy of the singular values, each divided by their sum",
        "About how many different rows the map is made of; 1: all queries look at the same tokens.",
        "Roy & Vetterli 2007",
    ),
    MetricInfo(
        "attention_distance", "Mean attention distance", "patches", 0.0, None, "none",
        "mean over patch queries i of sum_j P[i,j] |pos_i - pos_j|, over patches j, weights made to sum to 1",
        "How far a patch looks. Multiply by the pixels of a patch for pixels.",
        "Dosovitskiy et al. (arXiv 2010.11929)",
    ),
    MetricInfo(
        "patch_similarity", "Patch similarity P(h)", "cosine", 0.0, 1.0, "high",
        "mean over pairs of patches i != j of |cos(h_i, h_j)| of the block's output, prefix tokens left out",
        "1: all patch tokens point the same way and the block's output says nothing about place.",
        "patch diversification (arXiv 2104.12753)",
    ),
    MetricInfo(
        "patch_similarity_signed", "Patch similarity, signed", "cosine", -1.0, 1.0, "high",
        "mean over pairs of patches i != j of cos(h_i, h_j)",
        "As P(h), with opposite directions counted as different.",
        "usual form of the same measure",
    ),
    MetricInfo(
        "feature_similarity", "Feature similarity with the last block", "cosine", -1.0, 1.0, "high",
        "mean over images and patches i of cos(h_i, last block's h_i)",
        "From where it is near 1 the remaining blocks hardly turn the features.",
        "DeepViT (arXiv 2103.11886)",
    ),
    MetricInfo(
        "token_rank", "Effective rank of the patch tokens", "directions", 1.0, None, "low",
        "exp of the entropy of the singular values of the patch tokens [N, C], each divided by their sum",
        "About how many directions the patches of one image fill.",
        "Roy & Vetterli 2007",
    ),
    MetricInfo(
        "rank_one_distance", "Distance of the patch tokens from rank one", "share", 0.0, 1.0, "low",
        "|X - 1 mean(X)| / |X| in the Frobenius norm, X the patch tokens of one image",
        "0: all patch tokens are the same vector.",
        "residual of Dong et al. (arXiv 2103.03404), relative and with the Frobenius norm",
    ),
    MetricInfo(
        "change", "How much the block changes its tokens", "share", 0.0, None, "low",
        "|X_out - X_in| / |X_in| in the Frobenius norm, patch tokens of one image",
        "Near 0: the block passes its input on.",
        "usual measure of a residual branch",
    ),
    MetricInfo(
        "high_norm_share", "Share of high-norm patch tokens", "share", 0.0, 1.0, "none",
        "share of patch tokens with a norm above 3 times the median norm of the image's patch tokens",
        "Patches that the network uses as scratch space instead of describing their place.",
        "Darcet et al. (arXiv 2309.16588); the relative rule is ours",
    ),
]
# fmt: on

METRICS: dict[str, MetricInfo] = {entry.key: entry for entry in _ENTRIES}

MATRICES: dict[str, str] = {
    "attention_similarity": "attention similarity of every pair of blocks whose maps have the same shape",
    "attention_similarity_centred": "the same on centred maps",
    "cka": "linear centred kernel alignment of the patch tokens of every pair of blocks",
}

KINDS: dict[str, str] = {
    "maps_alike": "all maps alike",
    "uniform_maps": "maps uniform",
    "sharp_maps": "maps too sharp",
    "patches_alike": "patches alike",
}
"""What each kind of collapse goes towards, in two or three words."""

"""Losses against collapse: patch diversification (cosine, contrastive, mixing) and attention-map
regularisers.

Pure functions on tensors, small modules where there is something to train, and ``Diversity``, which takes
what they need from a running model. They need torch alone, and compute in float32 whatever the network
computes in.
"""

from __future__ import annotations

from deepvit.losses.attention import AttentionInputs, attention_cosine
from deepvit.losses.collect import FORMS, PAPER_WEIGHTS, Diversity, check_weights
from deepvit.losses.diversity import patch_contrastive, patch_cosine, patch_tokens
from deepvit.losses.mixing import MixedBatch, PatchHead, PatchLabels, PatchMix, patch_mixing, soft_labels

__all__ = [
    "FORMS",
    "PAPER_WEIGHTS",
    "AttentionInputs",
    "Diversity",
    "MixedBatch",
    "PatchHead",
    "PatchLabels",
    "PatchMix",
    "attention_cosine",
    "check_weights",
    "patch_contrastive",
    "patch_cosine",
    "patch_mixing",
    "patch_tokens",
    "soft_labels",
]

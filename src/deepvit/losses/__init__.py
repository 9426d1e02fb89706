"""Losses against collapse: patch diversification (cosine, contrastive, mixing) and attention-map
regularisers.

Pure functions on tensors, small modules where there is something to train, and ``Diversity``, which takes
what they need from a running model. They need torch alone, and compute in float32 whatever the network
computes in.
"""

from __future__ import annotations

from deepvit.losses.attention import attention_cosine
from deepvit.losses.attention_inputs import AttentionInputs
from deepvit.losses.collect import Diversity, check_weights
from deepvit.losses.contrastive import patch_contrastive
from deepvit.losses.cosine import patch_cosine
from deepvit.losses.gram import gram_anchoring
from deepvit.losses.kernel_alignment import patch_kernel_alignment
from deepvit.losses.loss import Loss, Seen
from deepvit.losses.mixing import PatchHead, patch_mixing
from deepvit.losses.patch_mix import MixedBatch, PatchLabels, PatchMix, soft_labels
from deepvit.losses.registry import LOSSES, PAPER_WEIGHTS, answering, register, table
from deepvit.losses.tokens import patch_tokens

__all__ = [
    "LOSSES",
    "PAPER_WEIGHTS",
    "AttentionInputs",
    "Diversity",
    "Loss",
    "MixedBatch",
    "PatchHead",
    "PatchLabels",
    "PatchMix",
    "Seen",
    "answering",
    "attention_cosine",
    "check_weights",
    "gram_anchoring",
    "patch_contrastive",
    "patch_cosine",
    "patch_kernel_alignment",
    "patch_mixing",
    "patch_tokens",
    "register",
    "soft_labels",
    "table",
]

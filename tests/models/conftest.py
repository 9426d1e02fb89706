"""Tiny DeepViT settings shared by the tests of the models."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Arguments that make any variant small: 3 blocks, 16 patches."""
    return {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5}

"""Fixtures of the cure tests: a maker of small models, and images for them."""

from __future__ import annotations

import pytest
import torch
from cures.small_vits import build


@pytest.fixture
def make():
    return build


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

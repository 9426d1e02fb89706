"""deepvit: train Vision Transformers deep — see attention collapse in any ViT, cure it, prove that it worked.

Importing the package registers the DeepViT models with timm. Everything heavier (training, data, reports)
is imported when it is first used, so that ``import deepvit`` costs no more than ``import timm``.
"""

from __future__ import annotations

__version__ = "0.1.0"

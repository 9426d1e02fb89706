"""Model hubs: runs as timm and Hugging Face keep models. ``import deepvit`` registers what rebuilds cured ones."""

"""What a capture shows of itself in a console and in a notebook."""

from __future__ import annotations

import timm
import torch

from deepvit.capturing import Check, capture
from deepvit.capturing.seen import Seen


def test_a_capture_is_told_in_three_lines() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2, img_size=32).eval()
    with torch.no_grad(), capture(model) as seen:
        assert repr(seen).splitlines()[0] == "Seen: nothing yet"
        model(torch.randn(2, 3, 32, 32))
    assert repr(seen).splitlines() == [
        "Seen: 3 attention blocks (blocks.0 to blocks.2), 2 images of 32×32",
        "  attention 3 × [2, 2, 5, 5], tokens 3 × [2, 5, 24]",
        "  3 of 3 checks passed",
    ]
    page = seen._repr_html_()
    assert page.count("<tr>") == 7
    assert "2×2×5×5" in page
    assert "softmax map" in page
    seen.checks["<b>"] = Check("<b>", error=1.0, tolerance=0.1, how="")
    assert "3 of 4 checks passed (not <b>)" in repr(seen)
    assert "<b>" not in seen._repr_html_()


def test_nothing_is_kept_of_what_a_consumer_took() -> None:
    seen = Seen(blocks=["a"], images=1, forwards=1)
    assert repr(seen).splitlines()[1:] == ["  nothing kept", "  no checks"]

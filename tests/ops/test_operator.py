"""Bad arguments, the choice of a backend, and the maps for diagnosis."""

from __future__ import annotations

import pytest
import torch

from deepvit.errors import UserError
from deepvit.ops import BACKENDS, available_backends, choose_backend, reattention, reattention_maps


def qkv(heads=2, tokens=5, width=4, batch=2):
    return tuple(torch.randn(3, batch, heads, tokens, width).unbind(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": torch.eye(3)}, "2 heads need"),
        ({"norm": "layer"}, "'layer'.*batch or none"),
        ({"dropout_p": 1.0, "training": True}, "dropout_p=1.0"),
        ({"backend": "cuda", "norm": "none"}, "'cuda'.*choose auto, reference, streaming, native, triton"),
        ({}, "running_mean and running_var"),
    ],
)
def test_bad_arguments_are_named(change, message):
    q, k, v = qkv()
    with pytest.raises(UserError, match=message) as caught:
        reattention(q, k, v, **({"theta": torch.eye(2)} | change))
    assert "\n" not in str(caught.value)


def test_shapes_must_agree():
    q, k, _ = qkv()
    with pytest.raises(UserError, match="one shape"):
        reattention(q, k, torch.randn(2, 2, 6, 4), torch.eye(2), norm="none")


def test_a_backend_by_name_is_never_replaced(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q, k, v = qkv()
    with pytest.raises(UserError, match=r"triton.*cannot run here.*(streaming|auto)"):
        reattention(q, k, v, torch.eye(2), norm="none", backend="triton")
    assert choose_backend(q) == "streaming"  # two heads
    assert choose_backend(q, 0.1) == "streaming"
    assert choose_backend(torch.randn(2, 3, 5, 4)) == "native"
    assert choose_backend(torch.randn(2, 3, 5, 4), 0.1) == "streaming"
    assert choose_backend(q, backend="reference") == "reference"
    assert set(available_backends(q)) == {"reference", "streaming"}
    assert set(available_backends(torch.randn(2, 3, 5, 4))) == set(BACKENDS) - {"triton"}


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_maps_times_v_are_the_output(norm, training):
    q, k, v = qkv(heads=3)
    options = {"theta_bias": torch.randn(3), "norm": norm, "training": training, "output_scale": 0.5}
    if norm == "batch":
        options |= {"norm_weight": torch.rand(3), "norm_bias": torch.randn(3)}
    theta = torch.randn(3, 3)

    def running():
        return {"running_mean": torch.full((3,), 0.1), "running_var": torch.full((3,), 0.4)}

    P, Y = reattention_maps(q, k, theta, **options, **running())
    torch.testing.assert_close(P, torch.softmax(q @ k.mT / 2, -1))
    for backend in ("reference", "streaming", "native"):
        out = reattention(q, k, v, theta, **options, **running(), backend=backend)
        torch.testing.assert_close(out, Y @ v, rtol=1e-4, atol=1e-4)

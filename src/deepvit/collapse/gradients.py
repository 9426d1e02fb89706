"""The gradient that reaches the patch tokens of each block, split into its mean over patches and the rest.

What pushes all patches the same way cannot make them differ. It is meant as an earlier sign of collapse than the forward
measures; whether it is one, nothing here has shown yet.
Source: MV-split residual (arXiv 2605.06169) for the split into mean and rest; the two numbers are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.capturing.passing import in_order
from deepvit.capturing.spatial import first_tensor
from deepvit.collapse.lesions.answers import answer_of, input_of_head, reader_of
from deepvit.collapse.rows import Row

# Legend: B images, N patches, C channels.


def mean_share(gradient: Tensor) -> Tensor:
    """``N |mean_i g_i|² / Σ_i |g_i|²`` of the patches' gradients [B,N,C] -> [B], in [0, 1].

    1: every patch gets the same push (always behind the last block of a network that pools by the mean); 1/N for pushes
    that have nothing in common. NaN where no gradient arrives.
    """
    gradient = gradient.double()
    mean = gradient.mean(1)
    return gradient.shape[1] * mean.square().sum(-1) / gradient.square().sum((1, 2))


def centred_norm(gradient: Tensor) -> Tensor:
    """``|G - 1 mean(G)|`` (Frobenius) of the patches' gradients [B,N,C] -> [B], at least 0."""
    gradient = gradient.double()
    rest: Tensor = torch.linalg.vector_norm(gradient - gradient.mean(1, keepdim=True), dim=(1, 2))
    return rest


MEASURED = {"gradient_mean_share": mean_share, "gradient_centred_norm": centred_norm}
"""Names in logs → functions of the gradient at one block."""


def patch_gradients(model: nn.Module, rows: Sequence[Row], images: Tensor) -> dict[int, Tensor]:
    """The gradient at the patches that leave each block, of one forward and one backward pass: row → [B,N,C].

    The loss needs no labels: the cross-entropy of the network's answers, summed over images (mean over the places of a dense
    one), to its own first answers; without classes, half the squared norm of the pooled output. No parameter's
    ``grad`` is touched. Rows without tokens of their own are left out.

    Raises RuntimeError where the network has no gradient.
    """
    taken: dict[int, Tensor] = {}
    with torch.enable_grad(), _watching(model, rows, taken):
        images = images.detach().requires_grad_()  # a frozen network has a gradient by its images
        output = model(images)
        reader = reader_of(model, output)
    if reader.head:
        taken.clear()
        with torch.enable_grad(), _watching(model, rows, taken), input_of_head(model, reader) as before:
            model(images)
        output = before[0]
    with torch.enable_grad():
        loss = _stand_in(reader.task, output)
    numbers = [number for number, tensor in taken.items() if tensor.requires_grad]
    if not numbers:
        raise RuntimeError("no gradient reaches its blocks")
    found = torch.autograd.grad(loss, [taken[number] for number in numbers], allow_unused=True)
    gradients = {}
    for number, gradient in zip(numbers, found, strict=True):
        layout = rows[number].tokens
        assert layout is not None
        if gradient is not None:
            gradients[number] = in_order(gradient, layout)[:, layout.patches]
    return gradients


def _stand_in(task: str, output: Any) -> Tensor:
    answer = answer_of(output)
    if task == "features":
        pooled = (
            answer.flatten(2).mean(-1) if answer.ndim == 4 else answer.mean(1) if answer.ndim == 3 else answer
        )
        return pooled.float().square().sum() / 2
    logs = answer.float().log_softmax(1)
    own = logs.gather(1, answer.argmax(1, keepdim=True))
    return -own.flatten(1).mean(1).sum()


@contextmanager
def _watching(model: nn.Module, rows: Sequence[Row], taken: dict[int, Tensor]) -> Iterator[None]:
    """Keep the tensor that leaves each block, in the graph; the last pass counts."""
    handles = []

    def keep(number: int, tensor: Tensor | None) -> None:
        if tensor is not None:
            taken[number] = tensor

    for number, row in enumerate(rows):
        if row.tokens is None or row.patches < 1:
            continue
        module = model.get_submodule(row.tokens.module)
        if row.tokens.side == "output":
            handles.append(
                module.register_forward_hook(
                    lambda _m, _a, out, number=number: keep(number, first_tensor(out))
                )
            )
        else:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _m, args, number=number: keep(number, first_tensor(args))
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

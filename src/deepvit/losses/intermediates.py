"""Where a network's first and last patch tokens and its attention inputs are, by module name, and how to take
them.

Knows timm's conventions by their attribute names only (``blocks``, ``layers[i].blocks``, ``norm``,
``patch_embed``, ``num_prefix_tokens``, ``attn.q_norm``), so it imports nothing of timm and follows any model
that has them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepvit.errors import UserError
from deepvit.losses.attention import AttentionInputs, head_mix


@dataclass(frozen=True)
class Places:
    """Module names in one model: where to listen.

    Attributes:
        blocks: transformer blocks in order, of the last stage for hierarchical models.
        first, last: the modules whose outputs are the first- and last-layer tokens.
        norm: the final norm over tokens, or None when the model has none there.
        embed: the patch embedding, or None.
        prefix: number of class and register tokens before the patches.
    """

    blocks: tuple[str, ...]
    first: str
    last: str
    norm: str | None
    embed: str | None
    prefix: int


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile`` and (distributed) data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def find_places(model: nn.Module, first: str | None = None, last: str | None = None) -> Places:
    """Find the places in a timm-like model; ``first`` and ``last`` name modules that override what is found.

    Raises UserError when the model has no transformer blocks under ``blocks`` or ``layers[-1].blocks`` and no
    names were given, or when a given name is no module of the model.
    """
    modules = dict(model.named_modules())
    for name in (first, last):
        if name is not None and name not in modules:
            raise UserError(f"{type(model).__name__} has no module {name!r}; see model.named_modules()")
    blocks = _blocks(model)
    if not blocks and (first is None or last is None):
        raise UserError(
            f"{type(model).__name__} has no patch tokens to take: no blocks with attention under 'blocks' or "
            "'layers'; name the modules with first= and last="
        )
    norm = getattr(model, "norm", None)
    has_norm = isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity)
    return Places(
        blocks=blocks,
        first=first or blocks[0],
        last=last or blocks[-1],
        norm="norm" if has_norm and last is None else None,
        embed="patch_embed" if "patch_embed" in modules else None,
        prefix=int(getattr(model, "num_prefix_tokens", 0) or 0),
    )


def _blocks(model: nn.Module) -> tuple[str, ...]:
    layers = getattr(model, "layers", None)
    if isinstance(getattr(model, "blocks", None), (nn.Sequential, nn.ModuleList)):
        holder, path = model.blocks, "blocks"
    elif isinstance(layers, (nn.Sequential, nn.ModuleList)) and hasattr(layers[-1], "blocks"):
        holder, path = layers[-1].blocks, f"layers.{len(layers) - 1}.blocks"
    else:
        return ()
    assert isinstance(holder, nn.Module)
    named = [(f"{path}.{name}", block) for name, block in holder.named_children()]
    # A convolutional network may call its stages "blocks" too; attention is what tells them apart.
    if not all(
        any(part.split(".")[-1].startswith("attn") for part, _ in b.named_modules()) for _, b in named
    ):
        return ()
    return tuple(name for name, _ in named)


@dataclass
class Taken:
    """What one forward pass left behind: outputs by module name, and (q, k) by attention module name."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    queries: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)


class Switch:
    """Where the hooks of one listener put what they see: nowhere until ``taken`` is set."""

    def __init__(self) -> None:
        self.taken: Taken | None = None

    def __getstate__(self) -> dict[str, None]:
        # Copies and files of the model carry the hooks, but never a batch's tensors.
        return {"taken": None}


class _Hook:
    """A forward hook that stores the output under a name while the switch is on."""

    def __init__(self, switch: Switch, kind: str, name: str) -> None:
        self.switch, self.kind, self.name = switch, kind, name

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        taken = self.switch.taken
        if taken is not None:
            getattr(taken, self.kind)[self.name] = output


def listen(model: nn.Module, outputs: set[str], attention: list[str]) -> tuple[Switch, list[RemovableHandle]]:
    """Hook the named modules' outputs and the named attention modules' queries and keys; off until switched
    on.

    The hooks stay on the model, since ``torch.compile`` does not see hooks that come after its first trace;
    the switch is what a compiled model is guarded on. A deep copy of the model gets a switch of its own.
    """
    switch = Switch()
    places = [("outputs", name, name) for name in sorted(outputs)]
    places += [("queries", name, f"{name}.q_norm") for name in attention]
    places += [("keys", name, f"{name}.k_norm") for name in attention]
    handles = [
        model.get_submodule(path).register_forward_hook(_Hook(switch, kind, name))
        for kind, name, path in places
    ]
    return switch, handles


def check_attention(model: nn.Module, names: list[str]) -> None:
    """Raise UserError unless each named attention module's maps follow from its queries and keys alone."""
    for name in names:
        attn = dict(model.named_modules()).get(name)
        kind = type(attn).__name__
        if attn is None or not all(hasattr(attn, part) for part in ("q_norm", "k_norm", "scale")):
            raise UserError(
                f"attention_cosine cannot read {name} ({kind if attn is not None else 'missing'}): it has no "
                "q_norm, k_norm and scale; leave attention_cosine out for this model"
            )
        if "rope" in inspect.signature(attn.forward).parameters or hasattr(
            attn, "relative_position_bias_table"
        ):
            raise UserError(
                f"attention_cosine cannot read {name} ({kind}): positions enter after its queries and keys"
            )
        if hasattr(attn, "proj_l"):
            raise UserError(
                f"attention_cosine cannot read {name} ({kind}): it mixes heads before the softmax"
            )
        if hasattr(attn, "lambda_init"):
            raise UserError(f"attention_cosine cannot read {name} ({kind}): its map is a difference of two")


def attention_inputs(model: nn.Module, name: str, taken: Taken, images: Tensor | None) -> AttentionInputs:
    """What ``attention_cosine`` needs of one attention module, for images at these indices (None: all)."""
    attn = model.get_submodule(name)
    q, k = taken.queries[name], taken.keys[name]
    if images is not None:
        q, k = q.index_select(0, images), k.index_select(0, images)
    mix = getattr(attn, "mix_maps", None)
    theta = getattr(attn, "reatten_matrix", None)
    if mix is None and isinstance(theta, nn.Conv2d):
        norm = getattr(attn, "var_norm", None)
        mix = head_mix(theta.weight, theta.bias, norm if hasattr(norm, "running_mean") else None)
    scale = attn.scale
    assert isinstance(scale, float)
    return AttentionInputs(q, k, scale, mix)

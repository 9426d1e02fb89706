"""Where a network's first and last patch tokens and its attention inputs are, by module name, and how to take
them.

Knows timm's conventions by their attribute names only (``blocks``, ``layers[i].blocks``, ``norm``,
``patch_embed``, ``num_prefix_tokens``, ``attn.q_norm``), so it imports nothing of timm and follows any model
that has them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepvit.errors import UserError
from deepvit.losses.attention_inputs import AttentionInputs, head_mix
from deepvit.losses.tokens import patch_tokens

# What an attention that adds positions to its scores calls them.
POSITIONS = ("relative_position_bias_table", "rel_pos", "rel_pos_h", "use_rel_pos")
# Blocks after the others in which the class token alone attends (CaiT's and XCiT's names).
CLASS_BLOCKS = ("blocks_token_only", "cls_attn_blocks")


@dataclass(frozen=True)
class Places:
    """Module names in one model: where to listen.

    Attributes:
        blocks: transformer blocks in order, of the last stage for hierarchical models.
        first, last: the modules whose outputs are the first- and last-layer tokens.
        norm: the final norm over tokens, or None when the model has none there.
        embed: the patch embedding, or None.
        prefix: number of class and register tokens before the patches.
        late: these tokens join after ``blocks`` (CaiT, XCiT), so that only the final norm sees them.
    """

    blocks: tuple[str, ...]
    first: str
    last: str
    norm: str | None
    embed: str | None
    prefix: int
    late: bool = False

    def prefix_at(self, name: str) -> int:
        """How many class and register tokens come before the patches in this module's output."""
        return 0 if name == self.embed or (self.late and name != self.norm) else self.prefix


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
    late = any(isinstance(getattr(model, name, None), nn.ModuleList) for name in CLASS_BLOCKS)
    return Places(
        blocks=blocks,
        first=first or blocks[0],
        last=last or blocks[-1],
        norm="norm" if has_norm and last is None else None,
        embed="patch_embed" if "patch_embed" in modules else None,
        prefix=max(int(getattr(model, "num_prefix_tokens", 0) or 0), int(late)),
        late=late,
    )


def width_of(model: nn.Module, places: Places) -> int | None:
    """Channels of the last block's patch tokens, None where the model does not say."""
    if places.blocks and places.last == places.blocks[-1]:
        # What the model says of itself can be the width of a neck behind the blocks (SAM).
        weight = getattr(getattr(model.get_submodule(places.last), "norm2", None), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1:
            return len(weight)
    told = getattr(model, "num_features", None) or getattr(model, "embed_dim", None)
    return int(told) if isinstance(told, int) and told else None


def _blocks(model: nn.Module) -> tuple[str, ...]:
    layers = getattr(model, "layers", None)
    if isinstance(getattr(model, "blocks", None), (nn.Sequential, nn.ModuleList)):
        holder, path = model.blocks, "blocks"
    elif isinstance(layers, (nn.Sequential, nn.ModuleList)) and hasattr(layers[-1], "blocks"):
        holder, path = layers[-1].blocks, f"layers.{len(layers) - 1}.blocks"
    else:
        return ()
    assert isinstance(holder, nn.Module)
    children = list(holder.named_children())
    if children and isinstance(children[-1][1], (nn.Sequential, nn.ModuleList)):
        # Stages that hold their blocks directly (Twins): tokens are the last one's.
        path, children = f"{path}.{children[-1][0]}", list(children[-1][1].named_children())
    named = [(f"{path}.{name}", block) for name, block in children]
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
    images: dict[str, Any] = field(default_factory=dict)


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

    def __call__(self, module: nn.Module, inputs: object, given: dict[str, Any], output: Any) -> None:
        taken = self.switch.taken
        if taken is None:
            return
        if given.get("attn_mask") is not None:
            raise UserError(
                f"diversity losses would count the padding as patches: {self.name} was given a mask; watch batches "
                "without padding"
            )
        if self.name == "patch_embed" and isinstance(output, tuple):
            output = output[0]  # the rest is the grid's size
        if not isinstance(output, Tensor):
            raise UserError(
                f"{self.name} ({type(module).__name__}) returns a {type(output).__name__}, not one tensor of tokens; "
                "name other modules with first= and last="
            )
        getattr(taken, self.kind)[self.name] = output


class _Images:
    """A hook before the model that keeps what it was called with while the switch is on."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        taken = self.switch.taken
        if taken is not None:
            taken.images.update(inputs=inputs, given=given)


def listen(
    model: nn.Module, outputs: set[str], attention: list[str], *, images: bool = False
) -> tuple[Switch, list[RemovableHandle]]:
    """Hook the named modules' outputs and the named attention modules' queries and keys, and with ``images`` what
    the model is called with; off until switched on.

    The hooks stay on the model, since ``torch.compile`` does not see hooks that come after its first trace;
    the switch is what a compiled model is guarded on. A deep copy of the model gets a switch of its own.
    """
    # Otherwise blocks that are compiled one by one share a graph whether they are listened to or not.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    switch = Switch()
    places = [("outputs", name, name) for name in sorted(outputs)]
    places += [("queries", name, f"{name}.q_norm") for name in attention]
    places += [("keys", name, f"{name}.k_norm") for name in attention]
    handles = [
        model.get_submodule(path).register_forward_hook(_Hook(switch, kind, name), with_kwargs=True)
        for kind, name, path in places
    ]
    if images:
        handles.append(model.register_forward_pre_hook(_Images(switch), with_kwargs=True))
    return switch, handles


def check_attention(model: nn.Module, names: list[str], loss: str) -> None:
    """Raise UserError unless each named attention module's maps follow from its queries and keys alone."""
    for name in names:
        attn = dict(model.named_modules()).get(name)
        kind = type(attn).__name__
        if attn is None or not all(hasattr(attn, part) for part in ("q_norm", "k_norm", "scale")):
            raise UserError(
                f"{loss} cannot read {name} ({kind if attn is not None else 'missing'}): it has no "
                f"q_norm, k_norm and scale; leave {loss} out for this model"
            )
        taken = set(inspect.signature(attn.forward).parameters) - {"x", "attn_mask", "is_causal"}
        if taken or any(hasattr(attn, part) for part in POSITIONS):
            raise UserError(f"{loss} cannot read {name} ({kind}): positions enter after its queries and keys")
        if hasattr(attn, "proj_l"):
            raise UserError(f"{loss} cannot read {name} ({kind}): it mixes heads before the softmax")
        if hasattr(attn, "lambda_init"):
            raise UserError(f"{loss} cannot read {name} ({kind}): its map is a difference of two")


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
        norm = norm if hasattr(norm, "running_mean") else None
        mix = head_mix(theta.weight, theta.bias, norm, getattr(attn, "entry_mean", 0.0))
    scale = attn.scale
    assert isinstance(scale, float)
    return AttentionInputs(q, k, scale, mix)


def patches_of(model: nn.Module, places: Places, name: str, tokens: Tensor) -> Tensor:
    """The patch tokens [B, N, C] in the output of one of the places.

    Raises UserError where the output's axes, or its number of class and register tokens, are not what the model
    says: a wrong guess would put a class token among the patches, or leave a patch out.
    """
    kind, prefix = type(model).__name__, places.prefix_at(name)
    widths = {getattr(model, key, None) for key in ("num_features", "embed_dim")}
    if tokens.ndim == 4 and tokens.shape[-1] not in widths and tokens.shape[1] in widths:
        raise UserError(
            f"{kind}: {name} gives {list(tokens.shape)}, channels first; diversity losses take tokens [B, N, C] or "
            "[B, h, w, C]"
        )
    embed = getattr(model, "patch_embed", None)
    patches = getattr(embed, "num_patches", None)
    fixed = getattr(embed, "strict_img_size", True) and not getattr(model, "dynamic_img_size", False)
    if tokens.ndim == 3 and isinstance(patches, int) and fixed:
        extra = tokens.shape[1] - patches
        # Fewer tokens than patches is a later stage, or patches that were dropped in training.
        if extra >= 0 and extra != prefix:
            raise UserError(
                f"{kind}: {name} gives {tokens.shape[1]} tokens for {patches} patches, which is not the {prefix} class "
                "and register tokens that the model says; diversity losses cannot tell which are patches"
            )
    return patch_tokens(tokens, prefix)

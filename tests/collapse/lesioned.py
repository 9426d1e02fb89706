"""Small Vision Transformers whose blocks are worth something, or nothing, or harm, by construction."""

import timm
import torch
from collapse.constructed import patches_made_alike
from torch import nn
from torch.nn import functional as F


class GivenMaps(nn.Module):
    """Attention with fixed maps softmax(logits) [H, N, N], the same for every image."""

    def __init__(self, dim, heads, logits):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("logits", logits)

    def forward(self, x, attn_mask=None, is_causal=False):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(0 * q, k, v, attn_mask=self.logits, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


def working(depth=12, dim=64, heads=4, grid=4, class_token=True, seed=0, classes=6):
    """A ViT every block of which moves the answer: large weights, patches that differ, a sharp head."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8 * grid, patch_size=8, embed_dim=dim, depth=depth, num_heads=heads,
        num_classes=classes, class_token=class_token, global_pool="token" if class_token else "avg",
    )  # fmt: skip
    for name, p in model.named_parameters():
        if p.ndim > 1 and ("blocks" in name or "patch_embed" in name):
            nn.init.normal_(p, std=1.2 / p[0].numel() ** 0.5)
    nn.init.normal_(model.head.weight, std=5 / dim**0.5)
    nn.init.normal_(model.pos_embed, std=0.5)
    with torch.no_grad():  # all classes are answered
        model.head.bias -= model.eval()(images_of(model, 64, seed=2)).mean(0)
    return model


def zeroed(model, blocks, parts=("attn.proj", "mlp.fc2")):
    """Branches of these blocks that add nothing."""
    for number in blocks:
        for part in parts:
            layer = model.blocks[number].get_submodule(part)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def sharing_a_map(model, start, *, needed):
    """From block ``start`` on all blocks have one map, of attention that they need, or whose output they throw away."""
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    dim, heads = model.embed_dim, model.blocks[0].attn.num_heads
    logits = 3 * torch.randn(heads, tokens, tokens)
    for block in list(model.blocks)[start:]:
        old = block.attn
        block.attn = GivenMaps(dim, heads, logits)
        block.attn.qkv, block.attn.proj = old.qkv, old.proj
    return model if needed else zeroed(model, range(start, len(model.blocks)), ("attn.proj",))


def with_equal_patches(model, after):
    """Patches are averaged where they leave block ``after``."""
    model.blocks[after].register_forward_hook(patches_made_alike(model.num_prefix_tokens))
    return model


@torch.no_grad()
def doing_harm(model, block, images):
    """Labels as the network without this block answers them; then noise in the block, until a fifth comes out wrong."""
    zeroed(model, [block])
    labels = model(images).argmax(1)
    layers = [model.blocks[block].get_submodule(part) for part in ("attn.proj", "mlp.fc2")]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.1 / layer.in_features**0.5)
    while (model(images).argmax(1) == labels).double().mean() > 0.8:
        for layer in layers:
            layer.weight *= 1.2
    return model, labels


def images_of(model, count=48, seed=1):
    side = model.patch_embed.img_size[0]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))

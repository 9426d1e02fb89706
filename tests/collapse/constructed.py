"""Small real Vision Transformers that collapse, or do not, by construction."""

import timm
import torch
from torch import nn
from torch.nn import functional as F


class MadeAttention(nn.Module):
    """Attention whose maps are softmax(logits) with a little of the image in them, fused by torch."""

    def __init__(self, dim, heads, logits, of_image=0.3):
        super().__init__()
        self.heads, self.of_image = heads, of_image
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("logits", logits)

    def forward(self, x, attn_mask=None, is_causal=False):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = F.normalize(q, dim=-1) * self.of_image, F.normalize(k, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.logits, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


def patches_made_alike(prefix):
    """A hook that gives all patches of a block's output their mean; the class token is left alone."""

    def hook(module, args, output):
        patches = output[:, prefix:]
        return torch.cat([output[:, :prefix], patches.mean(1, keepdim=True).expand_as(patches)], 1)

    return hook


def network(kind="healthy", depth=12, start=8, dim=64, heads=4, grid=5, class_token=True, seed=0):
    """A ViT that is healthy up to block ``start``; from there on of the given kind."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=8 * grid,
        patch_size=8,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        num_classes=5,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
    )
    tokens = grid * grid + int(class_token)
    # Patches that differ from place to place, as a trained position embedding makes them.
    nn.init.normal_(model.pos_embed, std=1.0)
    reused = 2 * torch.randn(heads, tokens, tokens)
    for index, block in enumerate(model.blocks):
        logits, of_image = 2 * torch.randn(heads, tokens, tokens), 0.3
        if index >= start:
            if kind == "maps_alike":
                logits = reused
            elif kind == "uniform_maps":
                logits, of_image = torch.zeros(heads, tokens, tokens), 0.05
            elif kind == "sharp_maps":
                targets = torch.randint(tokens, (heads, tokens))
                logits = 50 * F.one_hot(targets, tokens).float()
            elif kind == "patches_alike" and index == start:
                block.register_forward_hook(patches_made_alike(int(class_token)))
        block.attn = MadeAttention(dim, heads, logits, of_image)
    return model.eval()


def images(count=12, grid=5, seed=1):
    return torch.randn(count, 3, 8 * grid, 8 * grid, generator=torch.Generator().manual_seed(seed))

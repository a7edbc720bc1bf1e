from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.model.activation import activation_named
from pipeline.model.shapes import image_shape
from pipeline.validation import check_count


class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V for each of `num_heads` heads of width d, every token looking at every other.

    Written out in matrix products, because torch's fused attention has no second derivative.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        n, t, w = tokens.shape
        heads = self.qkv(tokens).reshape(n, t, 3, self.num_heads, w // self.num_heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)  # (n, heads, t, d) each
        scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
        mixed = scores.softmax(-1) @ values
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, w))
        return projected


class TransformerBlock(nn.Module):
    """x ↦ x + attention(norm(x)), then x ↦ x + fc2(φ(fc1(norm(x)))): the norms come first."""

    def __init__(self, width: int, num_heads: int, hidden_size: int, activation: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden_size)
        self.activation = activation_named(activation)
        self.fc2 = nn.Linear(hidden_size, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        changed: Tensor = tokens + self.fc2(self.activation(self.fc1(self.norm2(tokens))))
        return changed


class Transformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) that reads the mean of its tokens.

    An image is cut into patches of patch_size × patch_size pixels; each becomes a token of `width` numbers, to which
    a learned position is added.
    P = 2,762 for gray images of 8 × 8 pixels, 10 outputs and the defaults; the attention of one sample takes
    num_heads · t² numbers, with t = (height / patch_size) · (width / patch_size) tokens.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        patch_size: int = 2,
        width: int = 16,
        num_blocks: int = 1,
        num_heads: int = 2,
        hidden_size: int = 32,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        channels, height, columns = image_shape("transformer", input_shape, num_outputs)
        counts = {
            "patch_size": patch_size,
            "width": width,
            "num_heads": num_heads,
            "hidden_size": hidden_size,
        }
        for name, value in {**counts, "num_blocks": num_blocks}.items():
            check_count(f"model.{name}", value)
        if height % patch_size or columns % patch_size:
            raise PipelineError(
                f"model.patch_size={patch_size} does not divide images of {height} x {columns} pixels: "
                f"choose a patch size that divides both."
            )
        if width % num_heads:
            raise PipelineError(f"model.width={width}: give a multiple of model.num_heads={num_heads}.")
        self.patch_size = patch_size
        num_tokens = (height // patch_size) * (columns // patch_size)
        self.embedding = nn.Linear(channels * patch_size**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, num_heads, hidden_size, activation) for _ in range(num_blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_outputs)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embedding(self.patches(images)) + self.positions
        outputs: Tensor = self.fc(self.norm(self.blocks(tokens)).mean(1))
        return outputs

    def patches(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) ↦ (n, tokens, channels · patch_size²), tokens row by row."""
        n, c, h, w = images.shape
        p = self.patch_size
        return images.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, c * p * p)

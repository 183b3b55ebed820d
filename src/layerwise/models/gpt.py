"""A small causal transformer (Radford et al. 2019, GPT-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import DEEPEST, at_least, checks_arguments, share
from layerwise.errors import InputError
from layerwise.models.building_blocks import Window, chain, check_sizes


class Embedding(nn.Module):
    """Embeds tokens and their positions: (B, T) -> (B, T, D), for any T up to the context."""

    def __init__(self, tokens: int, context: int, width: int):
        super().__init__()
        self.token = nn.Embedding(tokens, width)
        self.position = nn.Parameter(torch.randn(context, width))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.position):
            raise InputError(
                f"gpt: got a window of {x.shape[1]} tokens, but its context is "
                f"{len(self.position)}; give at most that, also as the context of `generate`"
            )
        return self.token(x) + self.position[: x.shape[1]]


class CausalAttention(nn.Module):
    """Causal attention, (B, T, D) -> (B, T, D): a position reads itself and those before it."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.read = nn.Linear(width, 3 * width)  # queries, keys, values
        self.write = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        # B batch, H heads, T tokens, E = D / H
        q_BHTE, k_BHTE, v_BHTE = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.read(h).chunk(3, dim=-1)
        )
        dropped = self.dropout if self.training else 0.0
        read_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BHTE, v_BHTE, dropout_p=dropped, is_causal=True
        )
        return self.write(read_BHTE.transpose(1, 2).flatten(2))


class CausalLayer(nn.Module):
    """A transformer layer, (B, T, D) -> (B, T, D).

    It is h + attention(norm(h)), then h + MLP(norm(h)); without `norm_first`, it is
    norm(h + attention(h)), then norm(h + MLP(h)).
    """

    def __init__(self, width: int, heads: int, dropout: float, norm_first: bool):
        super().__init__()
        self.norm_first = norm_first
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        if self.norm_first:
            h = h + self.drop(self.attention(self.norm1(h)))
            return h + self.drop(self.mlp(self.norm2(h)))
        h = self.norm1(h + self.drop(self.attention(h)))
        return self.norm2(h + self.drop(self.mlp(h)))


@checks_arguments
def gpt(
    shape: Window = (64,),
    num_classes: int = 256,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    dropout: float = 0.0,
    norm_first: bool = True,
) -> nn.Sequential:
    """Transformer decoder that scores the next token at every position.

    It takes windows of any length up to the context and gives scores (B, T, num_classes).
    Deviations from GPT-2: the classifier has its own weights, because a parameter belongs to one
    block; weights are initialised as in PyTorch.

    Args:
        shape: (T,), the context.
        num_classes: number of different tokens.
        layers: number of layers of attention and MLP.
        width: features of a token; an MLP has four times this number of units.
        heads: number of attention heads.
        dropout: dropout probability.
        norm_first: normalise the inputs of attention and MLP, as GPT-2 does; otherwise normalise
            the sum of each and its residual, as the first transformer did (Vaswani et al. 2017,
            arXiv:1706.03762).

    Raises:
        InputError: the shape is not that of text; a size is below 1; `heads` does not divide
            `width`.
    """
    if len(shape) != 1:
        raise InputError(
            f"gpt(shape={tuple(shape)}): it takes windows of tokens, (T,); give a text, such as "
            "--data markov, or a network for images, such as vit"
        )
    check_sizes("gpt", shape, num_classes, axes=1)
    at_least(0, "gpt", DEEPEST, layers=layers)
    share("gpt", dropout=dropout)
    if min(width, heads, *shape) < 1 or width % heads:
        raise InputError(
            f"gpt(shape={tuple(shape)}, layers={layers}, width={width}, heads={heads}): give sizes "
            "of at least 1, and a width that the heads divide"
        )
    named: list[tuple[str, nn.Module]] = [("embedding", Embedding(num_classes, *shape, width))]
    named += [
        (f"layer{i + 1}", CausalLayer(width, heads, dropout, norm_first)) for i in range(layers)
    ]
    classifier = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
    return chain([*named, ("classifier", classifier)])

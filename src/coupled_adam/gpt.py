"""The GPT-2 architecture, as small as it can be read and as exact as the paper's runs need it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coupled_adam.errors import RefusedError


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Attributes:
        vocabulary_size: number of tokens V.
        context: greatest number of tokens that the model sees at once.
        layers: number of transformer blocks.
        heads: attention heads in a block; must divide ``width``.
        width: length H of embeddings and hidden states.
        tied: whether input and output embeddings are one matrix, as in GPT-2.
    """

    vocabulary_size: int
    context: int = 128
    layers: int = 2
    heads: int = 4
    width: int = 128
    tied: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible shapes."""
        for name in ("vocabulary_size", "context", "layers", "heads", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RefusedError(f"GPTConfig.{name} must be a whole number from 1, not {value!r}")
        if self.width % self.heads:
            raise RefusedError(
                f"GPTConfig.width ({self.width}) must be a multiple of heads ({self.heads})"
            )


class Block(nn.Module):
    """One transformer block: attention and a two-layer network, each behind a norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.network_norm = nn.LayerNorm(width, bias=False)
        self.network_in = nn.Linear(width, 4 * width, bias=False)
        self.network_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states [B, T, H] to hidden states [B, T, H]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.network_out(F.gelu(self.network_in(self.network_norm(x))))

    def attention(self, x: Tensor) -> Tensor:
        """Let every position look at itself and the ones before it; [B, T, H] to [B, T, H]."""
        batch, length, width = x.shape
        # [B, T, 3H] -> three tensors of [B, heads, T, H / heads]
        split = self.query_key_value(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))


class GPT(nn.Module):
    """GPT-2 (Radford et al., 2019) without biases and dropout, as in the paper's runs.

    Attributes:
        token_embedding: the table of input embeddings, [V, H].
        position_embedding: the table of positions, [context, H].
        head: the output embeddings as a linear layer; tied, its weight is the token table.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's: normal with 0.02, narrower where a block adds to the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            residual = name.endswith(("attention_out.weight", "network_out.weight"))
            scale = 1 / math.sqrt(2 * self.config.layers) if residual else 1.0
            nn.init.normal_(parameter, std=0.02 * scale)

    @property
    def embedding(self) -> Tensor:
        """The input embeddings, [V, H]."""
        return self.token_embedding.weight

    @property
    def output_embedding(self) -> Tensor:
        """The output embeddings, [V, H]; the same matrix as ``embedding`` if tied."""
        return self.head.weight

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """The vectors h that meet the output embeddings.

        Args:
            tokens: token numbers, integer, shape [B, T] with T at most ``config.context``.

        Returns:
            The hidden states after the last norm, shape [B, T, H].

        Raises:
            ValueError: if there are more tokens than the context holds.
        """
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(
                f"got {length} tokens, but the model's context is {self.config.context}: cut the "
                "input, or build the model with a longer context"
            )
        positions = torch.arange(length, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Predict the next token at every position, or measure how well it is predicted.

        Args:
            tokens: token numbers, shape [B, T].
            targets: the tokens that follow, shape [B, T]; optional.

        Returns:
            Logits of shape [B, T, V]; with targets the mean cross-entropy in nats, a scalar.
        """
        hidden = self.hidden_states(tokens)
        return self.head(hidden) if targets is None else self.loss(hidden, targets)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of predicting targets [B, T] from hidden states [B, T, H]."""
        return F.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten())

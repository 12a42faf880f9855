"""The adaptive scoring module of RealCustom (CVPR 2024, Eq. 5-10): which image tokens matter for this text, this step.

Shape letters: B batch, n image tokens, k kept tokens, c token channels, T text positions, t text channels,
C latent channels, h x w latent size.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

KEEP_IN_TRAINING = (0.3, 1.0)  # gamma_num is drawn uniformly from this range
KEEP_AT_INFERENCE = 0.8

ScoreWeights: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""alpha_bar (B,) in [0, 1] -> weights of the textual and of the visual scores, each (B,)."""


def noise_level_weights(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 8: the noisier the latents, the more the text decides."""
    visual = alpha_bar.sqrt()
    return 1 - visual, visual


def text_only(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Ablation: textual scores alone."""
    return torch.ones_like(alpha_bar), torch.zeros_like(alpha_bar)


def visual_only(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Ablation: visual scores alone."""
    return torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)


def plain_average(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Ablation: both scores with the same weight at every noise level."""
    return torch.full_like(alpha_bar, 0.5), torch.full_like(alpha_bar, 0.5)


def keep_highest(tokens: Tensor, scores: Tensor, keep: float) -> Tensor:
    """Eq. 10: the highest-scored share of the tokens, in their old order.

    tokens (B, n, c), scores (B, n), keep in (0, 1] -> (B, k, c) with k = round(keep * n), at least 1.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"The share of image tokens to keep must be in (0, 1], not {keep}.")
    count = max(1, round(keep * tokens.shape[1]))
    kept = scores.topk(count, dim=1).indices.sort(dim=1).values
    return tokens.gather(1, repeat(kept, "b k -> b k c", c=tokens.shape[2]))


class AttentionPool(nn.Module):
    """One vector of many: a learned softmax weight for each position."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, t) -> (B, t)."""
        weights = self.weight(tokens).softmax(dim=1)
        return einsum(weights, tokens, "b n one, b n c -> b c")


def context_scorer(feature_dim: int, context_dim: int, hidden_dim: int) -> nn.Sequential:
    """Two-layer MLP on a token with its context (Eq. 6, 7). The paper leaves the activation open; it is a GELU here."""
    return nn.Sequential(nn.Linear(feature_dim + context_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, 1))


class AdaptiveScoringModule(nn.Module):
    """Scores image tokens by the text and by the current latents, weighs them by their scores and keeps the best.

    Args:
        feature_dim: c, channels of the image tokens.
        text_dim: t, channels of the text features.
        latent_channels: C.
        hidden_dim: inner width of the two scoring MLPs.
        weights: how the noise level mixes the textual and the visual scores; the ablations pass another function.
    """

    def __init__(
        self,
        feature_dim: int,
        text_dim: int,
        latent_channels: int = 4,
        hidden_dim: int = 512,
        weights: ScoreWeights = noise_level_weights,
    ):
        super().__init__()
        self.latent_channels = latent_channels
        self.text_pool = AttentionPool(text_dim)
        self.visual_pool = AttentionPool(latent_channels)
        self.text_scorer = context_scorer(feature_dim, text_dim, hidden_dim)
        self.visual_scorer = context_scorer(feature_dim, latent_channels, hidden_dim)
        self.weights = weights

    def scores(self, tokens: Tensor, text: Tensor, latents: Tensor, mask: Tensor | None, alpha_bar: Tensor) -> Tensor:
        """Eq. 5-8: positive scores (B, n) that add up to 1 over the tokens; arguments as in `forward`."""
        if mask is not None:
            mask = F.interpolate(mask.to(latents.dtype), size=latents.shape[-2:], mode="bilinear", align_corners=False)
            latents = latents * mask
        text_context = self.text_pool(text)
        visual_context = self.visual_pool(rearrange(latents, "b c h w -> b (h w) c").to(tokens.dtype))
        text_score = self._score(self.text_scorer, tokens, text_context)
        visual_score = self._score(self.visual_scorer, tokens, visual_context)
        text_weight, visual_weight = (weight.to(tokens)[:, None] for weight in self.weights(alpha_bar))
        return (text_weight * text_score + visual_weight * visual_score).softmax(dim=1)

    def forward(
        self,
        tokens: Tensor,
        text: Tensor,
        latents: Tensor,
        mask: Tensor | None,
        alpha_bar: Tensor,
        keep: float = KEEP_AT_INFERENCE,
    ) -> tuple[Tensor, Tensor]:
        """Weigh the image tokens and keep the best of them (Eq. 5-10).

        Args:
            tokens: (B, n, c) image tokens.
            text: (B, T, t) text features.
            latents: (B, C, h, w), the current noisy latents.
            mask: guidance mask (B, 1, h', w') in [0, 1] that the latents are multiplied with, at inference; None in
                training.
            alpha_bar: (B,) cumulative signal level of the step in [0, 1], 1 being noise-free.
            keep: gamma_num in (0, 1], the share of tokens kept.

        Returns:
            The kept tokens (B, k, c), each multiplied by 1 + its score, in their old order, and all scores (B, n).
        """
        scores = self.scores(tokens, text, latents, mask, alpha_bar)
        return keep_highest(tokens * (1 + scores[..., None]), scores, keep), scores

    @staticmethod
    def _score(scorer: nn.Module, tokens: Tensor, context: Tensor) -> Tensor:
        """Each token beside the one context vector -> (B, n)."""
        context = repeat(context, "b c -> b n c", n=tokens.shape[1])
        return rearrange(scorer(torch.cat([tokens, context], dim=-1)), "b n 1 -> b n")

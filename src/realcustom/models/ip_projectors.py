"""IP-Adapter's projectors, from image features to visual tokens, on diffusers' own classes.

Shape letters: R references, n feature tokens, c feature channels, d token channels.
"""

from __future__ import annotations

from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from einops import rearrange
from torch import Tensor, nn

from ..encoders.image import ReferenceFeatures


class ImageEmbedProjector(nn.Module):
    """One embedding of the whole picture to `tokens` tokens: a linear map and a layer norm (IP-Adapter)."""

    def __init__(self, vision_dim: int, out_dim: int, tokens: int = 4):
        super().__init__()
        self.network = ImageProjection(vision_dim, out_dim, tokens)

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Features with deep (R, 1, c) -> tokens (R, tokens, d)."""
        return self.network(rearrange(features.deep, "r 1 c -> r c"))


class ResamplerProjector(nn.Module):
    """Learned queries that attend to the features of all patches (IP-Adapter Plus)."""

    def __init__(
        self, vision_dim: int, out_dim: int, hidden_dim: int, heads: int, depth: int = 4, tokens: int = 16,
        dim_head: int = 64, mlp_ratio: float = 4,
    ):  # fmt: skip
        super().__init__()
        self.network = IPAdapterPlusImageProjection(
            vision_dim, out_dim, hidden_dim, depth, dim_head, heads, tokens, mlp_ratio
        )

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Features with deep (R, n, c) -> tokens (R, tokens, d)."""
        return self.network(features.deep)

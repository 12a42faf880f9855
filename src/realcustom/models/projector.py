"""From reference features to the visual tokens that the visual keys and values are made of.

The cross-layer cross-scale projector (RealCustom++, Sec. "cross-layer cross-scale projector") in three forms: as the
authors released it for one deep level, as they released it with shallow levels, and as the paper describes it. The
state-dict names of the first two are the release's, so that its weights load strictly.

Shape letters: R references, n global tokens, m key tokens, c feature channels, d token channels, h heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.image import ReferenceFeatures
from .ip_projectors import ImageEmbedProjector, ResamplerProjector


class FeatureAttention(nn.Module):
    """Normed cross-attention between two sets of features: no biases, no output matrix, no residual.

    `dim` channels are split over `dim // dim_head` heads.
    """

    def __init__(self, dim: int, dim_head: int = 64):
        super().__init__()
        if dim % dim_head:
            raise ValueError(f"The feature width {dim} is not a multiple of the head size {dim_head}.")
        self.heads = dim // dim_head
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """queries (R, n, c), keys (R, m, c) -> (R, n, c)."""
        keys = self.norm2(keys)
        query, key, value = (
            rearrange(projected, "r n (h d) -> r h n d", h=self.heads)
            for projected in (self.to_q(self.norm1(queries)), self.to_k(keys), self.to_v(keys))
        )
        return rearrange(F.scaled_dot_product_attention(query, key, value), "r h n d -> r n (h d)")


class LearnedScale(nn.Module):
    """One learned number that multiplies its input."""

    def __init__(self, value: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.value


def token_mlp(vision_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Three linear layers with exact GELU between them and a layer norm at the end."""
    return nn.Sequential(
        nn.Linear(vision_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, out_dim),
        nn.GELU(),
        nn.Linear(out_dim, out_dim),
        nn.LayerNorm(out_dim),
    )


class DeepProjector(nn.Module):
    """The released projector: global deep tokens, refined by what the local views add at the same level.

    `hidden_dim` is the inner width of the MLP (default 4 * vision_dim). With `adaptive_scale` the refinement is
    multiplied by one learned number that starts at `scale_value`.
    """

    def __init__(
        self,
        vision_dim: int,
        out_dim: int,
        dim_head: int = 64,
        hidden_dim: int | None = None,
        adaptive_scale: bool = False,
        scale_value: float = 1.0,
    ):
        super().__init__()
        self.min_attention = FeatureAttention(vision_dim, dim_head)
        self.projector = token_mlp(vision_dim, hidden_dim or 4 * vision_dim, out_dim)
        self.projector_base = nn.Linear(vision_dim, out_dim)
        self.scale_value = LearnedScale(scale_value) if adaptive_scale else nn.Identity()

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Features with deep (R, n, c) and local (R, 4n, c) -> tokens (R, n, d)."""
        refinement = self.projector(self.min_attention(features.deep, require_local(features)))
        return self.projector_base(features.deep) + self.scale_value(refinement)


class ShallowProjector(nn.Module):
    """The released variant with shallow levels, exactly as released: twice the tokens of `DeepProjector`.

    The release computes the local fusion and then overwrites it, so the local views and the weights of that branch
    (`min_attention`, `projector`) do not reach the output. They are kept for its checkpoints; for new training use
    `CrossLayerCrossScaleProjector`, which has the same weights.
    """

    def __init__(self, vision_dim: int, out_dim: int, dim_head: int = 64, hidden_dim: int | None = None):
        super().__init__()
        hidden_dim = hidden_dim or 4 * vision_dim
        self.min_attention = FeatureAttention(vision_dim, dim_head)
        self.projector = token_mlp(vision_dim, hidden_dim, out_dim)
        self.projector_base = nn.Linear(vision_dim, out_dim)
        self.min_attention2 = FeatureAttention(vision_dim, dim_head)
        self.projector2 = token_mlp(vision_dim, hidden_dim, out_dim)

    def cross_layer(self, features: ReferenceFeatures) -> Tensor:
        """Deep tokens attend to the shallow levels: (R, n, d)."""
        return self.projector2(self.min_attention2(features.deep, torch.cat(require_shallow(features), dim=1)))

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Features with deep and shallow, each (R, n, c) -> tokens (R, 2n, d)."""
        return torch.cat([self.projector_base(features.deep), self.cross_layer(features)], dim=1)


class CrossLayerCrossScaleProjector(ShallowProjector):
    """The projector as RealCustom++ describes it: the cross-scale and the cross-layer fusion both reach the output.

    The first n tokens are those of `DeepProjector` (global tokens refined by the local views), the second n come from
    the shallow levels. Weights and names are those of `ShallowProjector`.
    """

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Features with deep (R, n, c), local (R, 4n, c) and shallow (R, n, c) each -> tokens (R, 2n, d)."""
        cross_scale = self.projector(self.min_attention(features.deep, require_local(features)))
        return torch.cat([self.projector_base(features.deep) + cross_scale, self.cross_layer(features)], dim=1)


class PlainProjector(nn.Module):
    """Layer norm and one linear map of the deep tokens: RealCustom (CVPR 2024), in front of its scoring module."""

    def __init__(self, vision_dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(vision_dim)
        self.linear = nn.Linear(vision_dim, out_dim)

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Features with deep (R, n, c) -> tokens (R, n, d)."""
        return self.linear(self.norm(features.deep))


def require_local(features: ReferenceFeatures) -> Tensor:
    """The local tokens (R, 4n, c), or ValueError where the encoder gives none."""
    if features.local is None:
        raise ValueError("This projector needs local views, which the reference encoder does not give.")
    return features.local


def require_shallow(features: ReferenceFeatures) -> tuple[Tensor, ...]:
    """The shallow levels, each (R, n, c), or ValueError where the encoder gives none."""
    if not features.shallow:
        raise ValueError("This projector needs shallow levels: give the reference encoder more than one layer index.")
    return features.shallow


PROJECTORS: dict[str, type[nn.Module]] = {
    "deep": DeepProjector,
    "shallow": ShallowProjector,
    "cross-layer-cross-scale": CrossLayerCrossScaleProjector,
    "plain": PlainProjector,
    "image-embed": ImageEmbedProjector,
    "resampler": ResamplerProjector,
}


def build_projector(config: Mapping[str, Any]) -> nn.Module:
    """The projector of a stored configuration: `kind` (a key of PROJECTORS) and that class's arguments.

    Example: `{"kind": "deep", "vision_dim": 2176, "out_dim": 2048}`.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in PROJECTORS:
        raise ValueError(f"The projector's kind is {kind!r}, but must be one of {', '.join(PROJECTORS)}.")
    return PROJECTORS[kind](**arguments)

"""The RealCustom adapter: everything that is trained, one object, saved by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import nn

from realcustom.encoders.image import ReferenceFeatures
from realcustom.guidance.mask import MaskSettings
from realcustom.models.attention import LayerKeysValues
from realcustom.models.projector import build_projector
from realcustom.models.scoring import AdaptiveScoringModule
from realcustom.models.unet import UNetBackbone

GUIDANCE = (3.5, None)  # the release's single scale
SCOPE = MaskSettings.scope


@dataclass(frozen=True, kw_only=True)
class ScoringInputs:
    """What RealCustom's scoring module reads besides the R reference images.

    Attributes:
        text: (B, T, c) prompt embeddings.
        latents: (B, C, h, w) noisy latents.
        masks: (B, R, G, g) guidance mask of each reference's subject; None in training.
        alpha_bar: scalar or (B,) cumulative alpha of the timestep.
        keep: gamma_num in (0, 1], share of the visual tokens kept.
    """

    text: torch.Tensor
    latents: torch.Tensor
    masks: torch.Tensor | None
    alpha_bar: torch.Tensor
    keep: float


class RealCustomAdapter(ModelMixin, ConfigMixin):
    """Projector, visual keys and values of every cross-attention layer and, for RealCustom, the scoring module.

    It fits every base model of the family it was built for: the weights live here, not in the U-Net.
    """

    @register_to_config
    def __init__(
        self,
        layers: list[int],
        token_dim: int,
        projector_config: dict,
        scoring_config: dict | None = None,
        guidance: tuple[float, float | None] = GUIDANCE,
        scope: float = SCOPE,
    ):
        """
        Args:
            layers: inner width of each cross-attention layer in running order (down, mid, up).
            token_dim: width of the visual tokens, the projector's output.
            projector_config: configuration for `build_projector`.
            scoring_config: arguments of `AdaptiveScoringModule` (RealCustom); None for RealCustom++.
            guidance: guidance scale and image guidance scale that this adapter works best with, used where a call names
                neither; None as the second is the single scale of RealCustom++.
            scope: gamma_scope that suits the subjects this adapter was trained on, used where a call gives no mask.
        """
        super().__init__()
        self.projector = build_projector(projector_config)
        self.scoring = None if scoring_config is None else AdaptiveScoringModule(**scoring_config)
        self.to_k = nn.ModuleList(nn.Linear(token_dim, width, bias=False) for width in layers)
        self.to_v = nn.ModuleList(nn.Linear(token_dim, width, bias=False) for width in layers)

    @classmethod
    def for_backbone(
        cls,
        backbone: UNetBackbone,
        projector: dict,
        scoring: dict | None = None,
        guidance: tuple[float, float | None] = GUIDANCE,
        scope: float = SCOPE,
    ) -> RealCustomAdapter:
        """An untrained adapter for a backbone; `projector` must give tokens of its text's width."""
        token_dim = backbone.text_weights()[0][0].shape[1]
        return cls(list(backbone.widths), token_dim, projector, scoring, guidance, scope)

    @torch.no_grad()
    def init_from_text(self, backbone: UNetBackbone) -> None:
        """Start the visual keys and values as copies of the backbone's text keys and values."""
        self.check(backbone)
        for (key, value), to_k, to_v in zip(backbone.text_weights(), self.to_k, self.to_v, strict=True):
            to_k.weight.copy_(key)
            to_v.weight.copy_(value)

    def check(self, backbone: UNetBackbone) -> None:
        """Refuse a backbone of another family.

        Raises:
            ValueError: number or widths of the layers differ.
        """
        widths = list(backbone.widths)
        if widths != list(self.config.layers):
            raise ValueError(
                f"The adapter was made for a base model with {len(self.config.layers)} cross-attention layers of "
                f"widths {sorted(set(self.config.layers))}, this one has {len(widths)} of widths "
                f"{sorted(set(widths))}: use the adapter of this base model's family."
            )

    def tokens(self, features: ReferenceFeatures) -> torch.Tensor:
        """Visual tokens (R, n, token_dim) of R reference images."""
        return self.projector(features)

    def keys_values(self, tokens: torch.Tensor) -> list[LayerKeysValues]:
        """Per cross-attention layer the keys and values (..., n, C) of visual tokens (..., n, token_dim)."""
        return [(to_k(tokens), to_v(tokens)) for to_k, to_v in zip(self.to_k, self.to_v, strict=True)]

    def forward(self, features: ReferenceFeatures, scoring: ScoringInputs | None = None) -> list[LayerKeysValues]:
        """Per cross-attention layer the keys and values of R reference images: (R, n, C), or with `scoring` for each
        of B images (B * R, k, C), the references of an image next to each other."""
        tokens = self.tokens(features)
        return self.keys_values(tokens if scoring is None else self.score(tokens, scoring))

    def score(self, tokens: torch.Tensor, inputs: ScoringInputs) -> torch.Tensor:
        """Visual tokens (R, n, d) weighted and selected for each of B images: (B * R, k, d), k = share kept of n."""
        references, batch = tokens.shape[0], inputs.latents.shape[0]

        def each(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(references, dim=0)

        masks = None if inputs.masks is None else rearrange(inputs.masks, "b r h w -> (b r) 1 h w")
        alpha_bar = each(inputs.alpha_bar.expand(batch))
        selected, _ = self.scoring(
            tokens.repeat(batch, 1, 1), each(inputs.text), each(inputs.latents), masks, alpha_bar, inputs.keep
        )
        return selected

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> RealCustomAdapter:
        """Load strictly, from a folder or a hub id.

        Raises:
            ValueError: keys are missing, unknown or misshapen.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        wrong = {kind: keys for kind, keys in info.items() if kind != "error_msgs" and keys}
        if wrong:
            listed = "; ".join(f"{kind}: {', '.join(map(str, keys))}" for kind, keys in wrong.items())
            raise ValueError(f"The adapter's weights do not fit its configuration ({listed}).")
        return (model, info) if wants_info else model

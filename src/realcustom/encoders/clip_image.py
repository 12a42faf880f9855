"""IP-Adapter's reference encoder: CLIP with its projection, as one embedding of the picture or as features of patches.

Shape letters: R references, s view size in pixels, n tokens of CLIP (class token and patches), c feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from realcustom.encoders.image import OPENAI, ImageEncoder, ReferenceFeatures, normalise
from realcustom.pictures.opening import ImageSource, open_image


def crop_pixels(image: ImageSource, size: int) -> Tensor:
    """Open one image, bring its shorter side to `size` (bicubic) and cut the middle: (3, size, size), RGB in [0, 1].

    That is how CLIP's own preprocessing frames a picture.
    """
    picture = open_image(image)
    short = min(picture.size)
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    array = torch.from_numpy(np.array(picture.crop((left, top, left + size, top + size))))
    return rearrange(array, "h w c -> c h w").float() / 255


class ClipImageEncoder(ImageEncoder):
    """CLIP's vision model with its projection, for IP-Adapter weights.

    Args:
        clip_config: arguments of transformers' CLIPVisionConfig; `projection_dim` among them.
        patches: whether the features are the tokens of the second-to-last layer (IP-Adapter Plus, n of them) or the one
            projected embedding of the picture (IP-Adapter, n = 1).
    """

    @register_to_config
    def __init__(self, clip_config: dict[str, Any], patches: bool = False):
        super().__init__()
        self.clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**{**clip_config, "attn_implementation": "sdpa"})
        ).requires_grad_(False)

    @property
    def pixel_size(self) -> int:
        """The size a reference is cut to."""
        return self.clip.config.image_size

    @property
    def tokens(self) -> int:
        """n."""
        return 1 + (self.clip.config.image_size // self.clip.config.patch_size) ** 2 if self.config.patches else 1

    @property
    def feature_dim(self) -> int:
        """c, CLIP's width for patches and that of its projection otherwise."""
        return self.clip.config.hidden_size if self.config.patches else self.clip.config.projection_dim

    def pixels(self, images: Sequence[ImageSource]) -> Tensor:
        """Images of any kind and size -> (R, 3, s, s) in [0, 1], float32 on the CPU."""
        if not images:
            raise ValueError("There are no reference images to encode.")
        return torch.stack([crop_pixels(image, self.pixel_size) for image in images])

    def forward(self, pixels: Tensor) -> ReferenceFeatures:
        """References (R, 3, s, s) in [0, 1] -> features with deep (R, n, c) only."""
        self._check_pixels(pixels)
        inputs = normalise(pixels.float(), OPENAI).to(self.dtype)
        if self.config.patches:
            return ReferenceFeatures(self.clip(inputs, output_hidden_states=True).hidden_states[-2])
        return ReferenceFeatures(rearrange(self.clip(inputs).image_embeds, "r c -> r 1 c"))

    @torch.no_grad()
    def negative(self, count: int = 1, device: torch.device | None = None) -> ReferenceFeatures:
        """What IP-Adapter's negative branch sees: an embedding of zeros, or the features of an input of zeros, which
        is a grey picture, not a black one."""
        device = device or self.device
        if self.config.patches:
            # Through `forward`, which normalises the mean to zeros, and so through hooks that bring the weights in.
            mean = torch.tensor(OPENAI[0], device=device).view(1, 3, 1, 1)
            features = self(mean.expand(-1, -1, self.pixel_size, self.pixel_size))
        else:
            features = ReferenceFeatures(torch.zeros((1, 1, self.feature_dim), device=device, dtype=self.dtype))
        return features.map(lambda tensor: repeat(tensor, "1 n c -> r n c", r=count))

"""Reference images to features: SigLIP + DINOv2 (RealCustom++) and CLIP (RealCustom), on transformers' vision models.

The features of RealCustom++ (Sec. "cross-layer cross-scale projector"): a reference is squashed to 2s x 2s pixels and
seen as one global view (resized to s x s) and four local views (every second pixel, so each s x s view covers the
whole picture). Both backbones see every view; their tokens are concatenated along the channels, SigLIP first.

Shape letters: R references, s view size in pixels, n = (s // patch)^2 tokens of a view, c feature channels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from realcustom.pictures.opening import ImageSource, open_image

SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "gelu",
}
DINOV2_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class ReferenceFeatures:
    """What an encoder sees in R references.

    Attributes:
        deep: (R, n, c) tokens of the global view at the deepest level.
        local: (R, 4n, c) tokens of the four local views at that level, or None where the encoder has no local views.
        shallow: (R, n, c) tokens of the global view at each earlier level, shallowest first.
    """

    deep: Tensor
    local: Tensor | None = None
    shallow: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.deep.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> "ReferenceFeatures":
        """The features with `function` applied to every tensor."""
        local = None if self.local is None else function(self.local)
        return ReferenceFeatures(function(self.deep), local, tuple(function(level) for level in self.shallow))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ReferenceFeatures":
        """The features on another device or in another dtype."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def select(self, rows: slice | Sequence[int] | Tensor) -> "ReferenceFeatures":
        """The features of some of the references: a slice, indices (repeats allowed) or a boolean mask."""
        return self.map(lambda tensor: tensor[rows])


def cat_features(features: Sequence[ReferenceFeatures]) -> ReferenceFeatures:
    """Join features of one encoder along R."""
    if not features:
        raise ValueError("There are no reference features to join.")
    first = features[0]
    if any((f.local is None) != (first.local is None) or len(f.shallow) != len(first.shallow) for f in features):
        raise ValueError("Only features of one and the same reference encoder can be joined.")
    return ReferenceFeatures(
        deep=torch.cat([f.deep for f in features]),
        local=None if first.local is None else torch.cat([f.local for f in features]),
        shallow=tuple(torch.cat(levels) for levels in zip(*(f.shallow for f in features), strict=True)),
    )


def to_pixels(image: ImageSource, size: int, antialias: bool = False) -> Tensor:
    """Open one image and squash it to (3, size, size), RGB in [0, 1], bilinear with half-pixel centres."""
    array = torch.from_numpy(np.array(open_image(image)))
    pixels = rearrange(array, "h w c -> 1 c h w").float() / 255
    size_2d = (size, size)
    return F.interpolate(pixels, size=size_2d, mode="bilinear", align_corners=False, antialias=antialias)[0].clamp(0, 1)


def to_views(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """References (R, 3, 2s, 2s) -> global views (R, 3, s, s) and local views (4R, 3, s, s), both 0..1 in 256 steps.

    The global view is sampled with aligned corners; local view (r, i, j) has number 4r + 2i + j and holds the pixels
    [i::2, j::2]. Values are truncated to 8 bits, as the released encoder does.
    """
    size = pixels.shape[-1] // 2
    global_view = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=True)
    local_views = rearrange(pixels, "r c (h i) (w j) -> (r i j) c h w", i=2, j=2)
    return truncate_to_8_bits(global_view), truncate_to_8_bits(local_views)


def truncate_to_8_bits(pixels: Tensor) -> Tensor:
    """Values in [0, 1] cut (not rounded) to multiples of 1/255."""
    return (pixels * 255).to(torch.uint8).to(pixels.dtype) / 255


def normalise(pixels: Tensor, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """(B, 3, h, w) in [0, 1] -> (x - mean) / std per channel."""
    mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in statistics)
    return (pixels - mean) / std


def block_outputs(hidden: Tensor, blocks: Iterable[nn.Module], indices: Sequence[int]) -> list[Tensor]:
    """Outputs of the blocks with these ascending 0-based indices, before any final norm; later blocks do not run."""
    outputs = []
    for index, block in enumerate(blocks):
        if index > indices[-1]:
            break
        hidden = block(hidden, attention_mask=None)
        if index in indices:
            outputs.append(hidden)
    return outputs


def check_layers(layers: Sequence[int], count: int, name: str) -> tuple[int, ...]:
    """The block indices as a tuple, or ValueError unless they ascend within 0..count-1."""
    layers = tuple(layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(f"{name} {list(layers)} must be ascending block indices between 0 and {count - 1}.")
    return layers


class ImageEncoder(ModelMixin, ConfigMixin):
    """What every reference encoder offers; a subclass gives `pixel_size`, `tokens`, `feature_dim` and `forward`."""

    antialias = False

    @property
    def pixel_size(self) -> int:
        """Height and width in pixels that `forward` takes."""
        raise NotImplementedError

    def pixels(self, images: Sequence[ImageSource]) -> Tensor:
        """Images of any kind and size -> (R, 3, pixel_size, pixel_size) in [0, 1], float32 on the CPU."""
        if not images:
            raise ValueError("There are no reference images to encode.")
        return torch.stack([to_pixels(image, self.pixel_size, self.antialias) for image in images])

    @torch.no_grad()
    def encode(self, images: Sequence[ImageSource], device: torch.device | None = None) -> ReferenceFeatures:
        """Features of R images (anything `open_image` takes), without gradient.

        `device` computes them; None is where the weights lie, which offloading makes another place.
        """
        return self(self.pixels(images).to(device or self.device))

    @torch.no_grad()
    def negative(self, count: int = 1, device: torch.device | None = None) -> ReferenceFeatures:
        """Features of `count` all-zero (black) images: the reference of the negative branch."""
        black = torch.zeros(1, 3, self.pixel_size, self.pixel_size, device=device or self.device)
        return self(black).map(lambda tensor: repeat(tensor, "1 n c -> r n c", r=count))

    def _check_pixels(self, pixels: Tensor) -> None:
        expected = (3, self.pixel_size, self.pixel_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"Reference pixels must be (R, {expected}), not {tuple(pixels.shape)}.")


class ReferenceEncoder(ImageEncoder):
    """SigLIP and DINOv2 with registers, their tokens joined along the channels (RealCustom++).

    Args:
        siglip_config: arguments of transformers' SiglipVisionConfig, such as `SIGLIP_SO400M`.
        dino_config: arguments of transformers' Dinov2WithRegistersConfig, such as `DINOV2_LARGE`.
        siglip_layers: 0-based SigLIP blocks whose outputs (without final norm) are the levels; the last is the deep
            one, the others shallow. The released deep-only projector reads `(25,)`.
        dino_layers: the same for DINOv2, as many; the released deep-only projector reads `(22,)`.
        image_size: s, the view size in pixels. Position tables are built for exactly this size.
    """

    @register_to_config
    def __init__(
        self,
        siglip_config: dict[str, Any],
        dino_config: dict[str, Any],
        siglip_layers: Sequence[int] = (7, 13, 19, 25),
        dino_layers: Sequence[int] = (4, 10, 16, 22),
        image_size: int = 384,
    ):
        super().__init__()
        fixed = {"image_size": image_size, "attn_implementation": "sdpa"}
        self.siglip = SiglipVisionModel(SiglipVisionConfig(**{**siglip_config, **fixed, "vision_use_head": False}))
        self.dino = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**{**dino_config, **fixed}))
        siglip, dino = self.siglip.config, self.dino.config
        if siglip.patch_size != dino.patch_size:
            raise ValueError(f"SigLIP's patches ({siglip.patch_size}) and DINOv2's ({dino.patch_size}) must be equal.")
        self.siglip_layers = check_layers(siglip_layers, siglip.num_hidden_layers, "siglip_layers")
        self.dino_layers = check_layers(dino_layers, dino.num_hidden_layers, "dino_layers")
        if len(self.siglip_layers) != len(self.dino_layers):
            raise ValueError("siglip_layers and dino_layers must name equally many levels.")
        # These never reach the features; without gradient they do not disturb distributed training.
        unused = [self.siglip.post_layernorm, self.dino.layernorm]
        unused += [*self.siglip.encoder.layers[self.siglip_layers[-1] + 1 :]]
        unused += [*self.dino.encoder.layer[self.dino_layers[-1] + 1 :]]
        for module in unused:
            module.requires_grad_(False)
        self.dino.embeddings.mask_token.requires_grad_(False)

    @property
    def pixel_size(self) -> int:
        """2s: the size a reference is squashed to."""
        return 2 * self.config.image_size

    @property
    def tokens(self) -> int:
        """n, the tokens of one view."""
        return (self.config.image_size // self.siglip.config.patch_size) ** 2

    @property
    def feature_dim(self) -> int:
        """c, SigLIP's width plus DINOv2's."""
        return self.siglip.config.hidden_size + self.dino.config.hidden_size

    def levels(self, views: Tensor) -> list[Tensor]:
        """Views (B, 3, s, s) in [0, 1] -> for each level the joined tokens (B, n, c)."""
        patches = self.siglip.embeddings(normalise(views, HALF))
        siglip = block_outputs(patches, self.siglip.encoder.layers, self.siglip_layers)
        patches = self.dino.embeddings(normalise(views, IMAGENET))
        dino = block_outputs(patches, self.dino.encoder.layer, self.dino_layers)
        prefix = 1 + self.dino.config.num_register_tokens
        return [torch.cat([s, d[:, prefix:]], dim=-1) for s, d in zip(siglip, dino, strict=True)]

    def forward(self, pixels: Tensor) -> ReferenceFeatures:
        """References (R, 3, 2s, 2s) in [0, 1] -> features, differentiable with respect to the weights.

        Views are cut and normalised in float32 whatever the weights' dtype. No gradient reaches the pixels, because
        they are truncated to 8 bits.
        """
        self._check_pixels(pixels)
        global_view, local_views = to_views(pixels.float())
        # The global and the local views of all references form one batch; only the deep level needs the local ones.
        count = len(global_view)
        *shallow, deep = self.levels(torch.cat([global_view, local_views]))
        local = rearrange(deep[count:], "(r i j) n c -> r (n i j) c", i=2, j=2)
        return ReferenceFeatures(deep[:count], local, tuple(level[:count] for level in shallow))

    @classmethod
    def from_backbones(
        cls,
        siglip: str = "google/siglip-so400m-patch14-384",
        dino: str = "facebook/dinov2-with-registers-large",
        *,
        siglip_layers: Sequence[int] = (7, 13, 19, 25),
        dino_layers: Sequence[int] = (4, 10, 16, 22),
        image_size: int = 384,
        hidden_act: str = "gelu",
        **loading: Any,
    ) -> "ReferenceEncoder":
        """Build from two folders or hub ids in transformers' format.

        Position tables are resampled to the grid of `image_size` (DINOv2: 37 x 37 -> 27 x 27, bicubic, antialiased).
        `hidden_act` is SigLIP's activation: the release computes the exact GELU although the hub's file names its tanh
        approximation. `loading` goes to `from_pretrained` (`revision`, `cache_dir`, `local_files_only`, `dtype`).
        """
        from .backbones import load_backbones

        models, configs = load_backbones(siglip, dino, image_size, loading)
        configs["siglip"]["hidden_act"] = hidden_act
        encoder = cls(configs["siglip"], configs["dino"], siglip_layers, dino_layers, image_size)
        encoder.siglip.load_state_dict(models["siglip"], strict=True)
        encoder.dino.load_state_dict(models["dino"], strict=True)
        return encoder.to(models["siglip"]["embeddings.position_embedding.weight"].dtype).eval()


class ClipReferenceEncoder(ImageEncoder):
    """CLIP patch features at one level and one scale (RealCustom, Sec. "adaptive scoring module").

    Args:
        clip_config: arguments of transformers' CLIPVisionConfig.
        layer: 0-based block whose output (without final norm, without the class token) is taken. The paper does not
            say which; the default is the second-to-last of ViT-L/14, the choice RealCustom++ makes for its backbones.
        image_size: view size in pixels; the reference is squashed to it.
    """

    # Its input is small and nothing released fixes how it is made, so downscaling is antialiased here.
    antialias = True

    @register_to_config
    def __init__(self, clip_config: dict[str, Any], layer: int = 22, image_size: int = 224):
        super().__init__()
        fixed = {"image_size": image_size, "attn_implementation": "sdpa"}
        self.clip = CLIPVisionModel(CLIPVisionConfig(**{**clip_config, **fixed}))
        (self.layer,) = check_layers((layer,), self.clip.config.num_hidden_layers, "layer")
        for module in [self.clip.post_layernorm, *self.clip.encoder.layers[layer + 1 :]]:
            module.requires_grad_(False)

    @property
    def pixel_size(self) -> int:
        """The size a reference is squashed to."""
        return self.config.image_size

    @property
    def tokens(self) -> int:
        """n, the patches of the view."""
        return (self.config.image_size // self.clip.config.patch_size) ** 2

    @property
    def feature_dim(self) -> int:
        """c, CLIP's width."""
        return self.clip.config.hidden_size

    def forward(self, pixels: Tensor) -> ReferenceFeatures:
        """References (R, 3, s, s) in [0, 1] -> features with deep (R, n, c) only."""
        self._check_pixels(pixels)
        hidden = self.clip.pre_layrnorm(self.clip.embeddings(normalise(pixels.float(), OPENAI)))
        (deep,) = block_outputs(hidden, self.clip.encoder.layers, (self.layer,))
        return ReferenceFeatures(deep[:, 1:])

    @classmethod
    def from_backbone(
        cls, clip: str = "openai/clip-vit-large-patch14", *, layer: int | None = None, **loading: Any
    ) -> "ClipReferenceEncoder":
        """Build from a folder or hub id in transformers' format; `layer` defaults to the second-to-last block."""
        from .backbones import load_clip

        state, config, image_size = load_clip(clip, loading)
        encoder = cls(config, config["num_hidden_layers"] - 2 if layer is None else layer, image_size)
        encoder.clip.load_state_dict(state, strict=True)
        return encoder.to(state["embeddings.patch_embedding.weight"].dtype).eval()

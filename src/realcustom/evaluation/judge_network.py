"""The sticker judge's networks: small convolutional towers that look at a picture of the sticker world.

Nothing of them is shared with the generator: own networks, own training, own weights. Text is a closed vocabulary; the
rows of the heads are the embeddings of its phrases. Shapes: B pictures, N crops, W words, (h, w) = picture / 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from realcustom.data.vocabulary import ACCESSORY_PHRASES, COLOURS, DEFAULT_WORDS, SCENE_PHRASES, STYLES


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def stage(before: int, width: int, blocks: int) -> nn.Sequential:
    """Half the resolution, then residual blocks."""
    return nn.Sequential(nn.Conv2d(before, width, 3, 2, 1), *[Residual(width) for _ in range(blocks)])


class CropTower(nn.Module):
    """Crops (N, 4, C, C) in [0, 1], colours and mask -> features (N, `features`): mean and maximum over positions."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        stages = [stage(a, b, 1) for a, b in itertools.pairwise(widths)]
        self.layers = nn.Sequential(nn.Conv2d(4, widths[0], 5, 2, 2), Residual(widths[0]), *stages)
        self.features = 2 * widths[-1]

    def forward(self, crops: Tensor) -> Tensor:
        x = self.layers(2 * crops - 1)
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)


class Namer(nn.Module):
    """Which word stands where, of pictures whose background is taken away: an outline on black names itself."""

    def __init__(self, words: int, widths: Sequence[int]):
        super().__init__()
        one, two, three, four = widths
        self.fine = nn.Sequential(nn.Conv2d(4, one, 5, 2, 2), Residual(one), *stage(one, two, 1))
        self.middle, self.deep = stage(two, three, 1), stage(three, four, 1)
        self.up_middle, self.up_fine = nn.Conv2d(four, three, 1), nn.Conv2d(three, two, 1)
        self.merge_middle, self.merge_fine = Residual(three), Residual(two)
        self.head = nn.Conv2d(two, words, 1)

    def forward(self, pictures: Tensor, shares: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] and subjects' shares (B, 1, h, w) of the cells -> logits (B, W, H/8, W/8)."""
        pictures = F.avg_pool2d(pictures, 2)
        shares = grown(shares, pictures)
        fine = self.fine(2 * torch.cat([pictures * shares, shares], dim=1) - 1)
        middle = self.middle(fine)
        middle = self.merge_middle(middle + grown(self.up_middle(self.deep(middle)), middle))
        return self.head(self.merge_fine(fine + grown(self.up_fine(middle), fine)))


class StickerJudge(ModelMixin, ConfigMixin):
    """One tower for whole pictures, one that names their subjects, and two for crops of a subject."""

    @register_to_config
    def __init__(
        self,
        words: Sequence[str] = DEFAULT_WORDS,
        scenes: Sequence[str] = tuple(SCENE_PHRASES),
        styles: Sequence[str] = STYLES,
        accessories: Sequence[str] = tuple(ACCESSORY_PHRASES),
        colours: Sequence[str] = tuple(COLOURS),
        widths: Sequence[int] = (16, 40, 80, 144),
        name_widths: Sequence[int] = (32, 64, 128, 192),
        crop_widths: Sequence[int] = (24, 48, 96, 192),
        identity_dim: int = 128,
    ):
        """
        Args:
            words, scenes, styles, accessories, colours: the phrases it knows, in the order of the heads' rows.
            widths: channels of the picture tower at 1/2, 1/4, 1/8 and 1/16 of the picture.
            name_widths: channels of the naming tower at 1/4, 1/8, 1/16 and 1/32 of the picture.
            crop_widths: channels of the crop towers.
            identity_dim: width of an identity's embedding.
        """
        super().__init__()
        one, two, three, four = widths
        self.stem = nn.Sequential(nn.Conv2d(3, one, 5, 2, 2), nn.SiLU())
        self.fine = stage(one, two, 1)
        self.middle = stage(two, three, 2)
        self.deep = stage(three, four, 2)
        self.up_middle = nn.Conv2d(four, three, 1)
        self.up_fine = nn.Conv2d(three, two, 1)
        self.merge_middle, self.merge_fine = Residual(three), Residual(two)
        self.subject_head = nn.Conv2d(two, 1, 1)
        self.namer = Namer(len(words), name_widths)
        self.scene_head = nn.Linear(four + three, len(scenes))
        self.style_head = nn.Linear(four + three, 1 + len(styles))
        self.identity_tower, self.worn_tower = CropTower(crop_widths), CropTower(crop_widths)
        self.identity_head = nn.Linear(self.identity_tower.features, identity_dim)
        self.colour_head = nn.Linear(self.identity_tower.features, len(colours))
        self.accessory_head = nn.Linear(self.worn_tower.features, 1 + len(accessories))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Scores of whole pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].

        Returns:
            those of `see`, and the logits words (B, 1 + W, h, w) with the background first.
        """
        seen = self.see(pictures)
        return {**seen, "words": self.name(pictures, seen["subject"], seen["subject"].sigmoid())}

    def see(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits of pictures (B, 3, H, W): subject (B, 1, h, w) against background; scene (B, scenes), read outside the
        subjects; style (B, 1 + styles) with "none" first. And "features" (B, d) of the whole."""
        fine = self.fine(self.stem(2 * pictures - 1))
        middle = self.middle(fine)
        deep = self.deep(middle)
        middle = self.merge_middle(middle + grown(self.up_middle(deep), middle))
        fine = self.merge_fine(fine + grown(self.up_fine(middle), fine))
        subject = self.subject_head(fine)
        # Outside the subjects only, so that a scene is not guessed from who usually stands in it.
        behind = (-subject.detach()).sigmoid()
        scene = torch.cat([pooled_by(level, behind) for level in (deep, middle)], dim=1)
        whole = torch.cat([level.mean(dim=(2, 3)) for level in (deep, middle)], dim=1)
        return {
            "features": whole,
            "subject": subject,
            "scene": self.scene_head(scene),
            "style": self.style_head(whole),
        }

    def name(self, pictures: Tensor, subject: Tensor, shares: Tensor) -> Tensor:
        """Log-probabilities (B, 1 + W, h, w) of background and words.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            subject: (B, 1, h, w) logits of "a subject is here".
            shares: (B, 1, h, w) in 0..1, what is shown of the pictures to the namer.
        """
        names = grown(self.namer(pictures, shares.detach().to(pictures.dtype)).float(), subject)
        there = subject.float()
        return torch.cat([F.logsigmoid(-there), F.logsigmoid(there) + names.log_softmax(dim=1)], dim=1)

    def crops(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (N, identity_dim) and colour logits (N, colours) of `subject_crop`s (N, 4, C, C), 0..1."""
        features = self.identity_tower(crops)
        return F.normalize(self.identity_head(features).float(), dim=1), self.colour_head(features)

    def worn(self, crops: Tensor) -> Tensor:
        """Logits (N, 1 + accessories), "none" first, of `surroundings`' crops (N, 4, C, C) in [0, 1]."""
        return self.accessory_head(self.worn_tower(crops))


def grown(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def pooled_by(x: Tensor, weights: Tensor) -> Tensor:
    """Mean of (B, C, h, w) over positions, weighted by (B, 1, h', w')."""
    weights = F.interpolate(weights, size=x.shape[-2:], mode="area").to(x.dtype)
    return (x * weights).sum(dim=(2, 3)) / (weights.sum(dim=(2, 3)) + 1e-4)


def as_pixels(crops, device: torch.device) -> Tensor:
    """Crops uint8 (N, C, C, 4) -> float (N, 4, C, C) in [0, 1]."""
    return rearrange(torch.from_numpy(crops).to(device), "n h w c -> n c h w").float() / 255

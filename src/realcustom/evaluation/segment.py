"""The subject of a picture, cut out on white: by a mask that is given, or by a transformers SAM model.

Shapes: H, W picture height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def on_white(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture where the mask is high, white elsewhere.

    Args:
        mask: (h, w) in [0, 1] or bool, stretched to the picture; cut at half of its largest value.
    """
    mask = np.asarray(mask, dtype=np.float32)
    large = Image.fromarray(mask).resize(picture.size, Image.Resampling.BILINEAR)
    inside = np.asarray(large) > 0.5 * max(float(mask.max()), 1e-6)
    pixels = np.where(inside[..., None], np.asarray(picture.convert("RGB")), 255)
    return Image.fromarray(pixels.astype(np.uint8))


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom), in fractions of the picture, around what is above half of the mask's maximum."""
    inside = mask > 0.5 * mask.max()
    if not inside.any():
        return 0.0, 0.0, 1.0, 1.0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


class SamSegmenter:
    """A transformers SamModel that sharpens a coarse mask: its box is the prompt."""

    def __init__(self, model):
        self.model = model.eval()
        self.side = model.config.vision_config.image_size

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> SamSegmenter:
        from transformers import SamModel

        return cls(SamModel.from_pretrained(source).to(device or "cpu"))

    @torch.no_grad()
    def __call__(self, picture: Image.Image, coarse: np.ndarray) -> np.ndarray:
        """bool (H, W): SAM's best mask for the box of the coarse one."""
        scale = self.side / max(picture.size)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        small = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
        pixels = np.zeros((self.side, self.side, 3), np.float32)
        pixels[: size[1], : size[0]] = (small - np.float32(SAM_MEAN)) / np.float32(SAM_STD)
        box = np.array(box_of(coarse)) * np.array([*size, *size])
        device = self.model.device
        out = self.model(
            pixel_values=torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device),
            input_boxes=torch.tensor(box, dtype=torch.float32, device=device).view(1, 1, 4),
            multimask_output=True,
        )
        best = int(out.iou_scores[0, 0].argmax())
        logits = out.pred_masks[0, 0, best].float().cpu().numpy()
        whole = np.asarray(Image.fromarray(logits).resize((self.side, self.side), Image.Resampling.BILINEAR))
        cut = Image.fromarray(whole[: size[1], : size[0]]).resize(picture.size, Image.Resampling.BILINEAR)
        return np.asarray(cut) > 0

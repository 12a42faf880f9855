"""The files of a result: images with their settings, masks and overlays."""

from __future__ import annotations

from pathlib import Path

from realcustom.pictures.overlays import mask_image, overlay, slugs
from realcustom.pictures.png import write_png
from realcustom.types import Result


def image_paths(out: Path, count: int) -> list[Path]:
    """out.png for one image; out-0.png, out-1.png ... for several."""
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(count)]


def save_result(result: Result, out: Path, save_masks: bool) -> list[Path]:
    """Write the images, and of each subject the mask of the last step (.mask.WORD.png, grey, and
    .mask.WORD.overlay.png); returns the paths in the order written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    written = []
    names = slugs(list(result.masks))
    for index, (path, image) in enumerate(zip(image_paths(out, len(result.images)), result.images, strict=True)):
        write_png(path, image, result.metadata[index])
        written.append(path)
        for word, name in names.items() if save_masks else ():
            mask = result.masks[word][-1, index]
            for suffix, picture in (("", mask_image(mask, image.size)), (".overlay", overlay(image, mask))):
                mask_path = path.with_name(f"{path.stem}.mask.{name}{suffix}.png")
                write_png(mask_path, picture)
                written.append(mask_path)
    return written

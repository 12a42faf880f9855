"""Contact sheets: pictures, references and masks of records beside each other, with their captions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from realcustom.data.records import Record


def contact_sheet(records: Sequence[Record], columns: int = 4, side: int = 128) -> Image.Image:
    """RGB sheet; each cell shows the picture, its references and its masks at `side` pixels, the caption below."""
    if not records:
        raise ValueError("A contact sheet needs at least one record.")
    width, height = side * 2 + side // 2 + 8, side + 18
    rows = (len(records) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, record in enumerate(records):
        x, y = number % columns * width, number // columns * height
        sheet.paste(_scaled(record.image, side), (x, y))
        share = side // max(1, len(record.words))
        for place, (reference, mask) in enumerate(zip(record.references, record.masks, strict=True)):
            sheet.paste(_scaled(reference, share), (x + side, y + place * share))
            small = _scaled(mask.astype(np.uint8) * 255, min(share, side // 2))
            sheet.paste(small, (x + 2 * side + 4, y + place * share))
        draw.text((x + 1, y + side + 2), record.caption, fill="black")
    return sheet


def _scaled(values: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(values).resize((side, side), Image.Resampling.LANCZOS)

"""Open landscapes: beach, desert, meadow, ocean, snow, mountains, sunset, volcano."""

import numpy as np
from PIL import Image

from realcustom.data.drawing import DRAWN, Pen, blend, glow, gradient, noise, peaks, ridge, shade, vary


def _clouds(picture: Image.Image, rng: np.random.Generator, amount: float, until: float) -> Image.Image:
    field = noise(rng, (4, 8))
    fade = np.clip((until - np.linspace(0, 1, DRAWN)) / until, 0, 1)[:, None]
    return blend(picture, (255, 255, 255), np.clip((field - 0.52) * 5, 0, 1) * amount * fade)


def beach(rng: np.random.Generator) -> Image.Image:
    sea, sand = rng.uniform(0.34, 0.42), rng.uniform(0.52, 0.6)
    sky = vary(rng, (120, 196, 240))
    picture = gradient((0, sky), (sea, (208, 236, 250)))
    picture = _clouds(picture, rng, 0.9, sea)
    pen = Pen(picture)
    if rng.random() < 0.6:
        pen.disc(rng.uniform(0.1, 0.9), rng.uniform(0.07, 0.16), 0.06, (255, 236, 130))
    water = vary(rng, (40, 150, 200))
    pen.box(0, sea, 1, 1, water)
    for k in range(5):
        y = sea + (sand - sea) * (k + 0.5) / 5
        x = rng.random()
        pen.line([(x - 0.18, y), (x + 0.12, y)], (120, 205, 228), 0.008)
    shore = ridge(rng, sand, 0.04, 0.8)
    pen.area([(x, y - 0.025) for x, y in shore], (240, 250, 250))
    pen.area(shore, vary(rng, (238, 210, 150), 10))
    for _ in range(12):
        pen.disc(rng.random(), rng.uniform(sand + 0.06, 1), rng.uniform(0.006, 0.014), (214, 180, 120), 0.6)
    picture = shade(pen.picture, noise(rng, (30, 60), 2), 0.06, sand + 0.03)
    if rng.random() < 0.65:
        _palm(Pen(picture), rng)
    return picture


def _palm(pen: Pen, rng: np.random.Generator) -> None:
    x = rng.choice([rng.uniform(0.1, 0.22), rng.uniform(0.78, 0.9)])
    lean = rng.uniform(-0.07, 0.07)
    top = (x + lean, rng.uniform(0.16, 0.28))
    pen.line([(x, 0.68), (x + lean * 0.3, 0.45), top], (146, 100, 58), 0.035)
    for angle in np.linspace(-2.8, -0.3, 6):
        tip = (top[0] + 0.17 * np.cos(angle), top[1] + 0.09 * np.sin(angle) + 0.07)
        middle = (top[0] + 0.1 * np.cos(angle), top[1] + 0.12 * np.sin(angle) - 0.01)
        pen.line([top, middle, tip], vary(rng, (44, 140, 62)), 0.026)


def desert(rng: np.random.Generator) -> Image.Image:
    picture = gradient((0, vary(rng, (112, 184, 232))), (0.5, (252, 228, 178)))
    pen = Pen(picture)
    pen.disc(rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.2), 0.06, (255, 240, 170))
    for level, colour in ((0.46, (226, 170, 92)), (0.58, (236, 184, 104)), (0.74, (218, 156, 76))):
        pen.area(ridge(rng, level, rng.uniform(0.06, 0.12), rng.uniform(0.5, 0.9)), vary(rng, colour, 9))
    picture = shade(pen.picture, noise(rng, (6, 40), 2), 0.07, 0.5)
    pen = Pen(picture)
    for _ in range(rng.integers(1, 4)):
        x, y, tall = rng.random(), rng.uniform(0.52, 0.66), rng.uniform(0.14, 0.26)
        green = vary(rng, (66, 134, 72))
        pen.line([(x, y), (x, y - tall)], green, 0.04)
        pen.disc(x, y - tall, 0.02, green)
        for side in (-1, 1):
            arm, low = x + side * 0.06, y - tall * rng.uniform(0.35, 0.55)
            pen.line([(x, low), (arm, low), (arm, low - tall * 0.3)], green, 0.026)
    return picture


def meadow(rng: np.random.Generator) -> Image.Image:
    horizon = rng.uniform(0.36, 0.46)
    picture = gradient((0, vary(rng, (110, 190, 245))), (horizon, (216, 240, 252)))
    picture = _clouds(picture, rng, 1.0, horizon)
    pen = Pen(picture)
    pen.area(ridge(rng, horizon, 0.08, 0.7), vary(rng, (120, 186, 92)))
    pen.area(ridge(rng, horizon + 0.14, 0.07, 0.6), vary(rng, (98, 178, 66)))
    picture = shade(pen.picture, noise(rng, (40, 20), 2), 0.12, horizon + 0.1)
    pen = Pen(picture)
    petals = [(255, 80, 110), (255, 220, 60), (250, 250, 250), (190, 120, 235)]
    for _ in range(46):
        y = rng.uniform(horizon + 0.12, 1.0)
        size = 0.007 + 0.016 * (y - horizon)
        x, colour = rng.random(), petals[rng.integers(4)]
        pen.line([(x, y), (x, y + size * 3)], (60, 130, 50), 0.005)
        pen.disc(x, y, size * 1.5, colour)
        pen.disc(x, y, size * 0.6, (255, 190, 40))
    return picture


def ocean(rng: np.random.Generator) -> Image.Image:
    horizon = rng.uniform(0.26, 0.36)
    picture = gradient((0, vary(rng, (118, 186, 236))), (horizon, (222, 238, 246)))
    picture = _clouds(picture, rng, 0.9, horizon)
    pen = Pen(picture)
    water = np.array(vary(rng, (24, 92, 168), 12))
    pen.box(0, horizon, 1, 1, water + 24)
    bands = 7
    for k in range(bands):
        y = horizon + 0.02 + (1 - horizon) * (k / bands) ** 1.3
        tone = water + (12 if k % 2 else -8) + 16 * (1 - k / bands)
        crest = ridge(rng, y, 0.02 + 0.035 * k / bands, 2.6 - 0.22 * k)
        pen.area([(x, v - 0.008 - 0.002 * k) for x, v in crest], np.clip(tone + 70, 0, 255))
        pen.area(crest, np.clip(tone, 0, 255))
    return pen.picture


def snow(rng: np.random.Generator) -> Image.Image:
    horizon = rng.uniform(0.42, 0.52)
    picture = gradient((0, vary(rng, (150, 176, 206))), (horizon, (214, 226, 238)))
    pen = Pen(picture)
    pen.area(ridge(rng, horizon, 0.08, 0.8), (222, 232, 244))
    for _ in range(rng.integers(3, 7)):
        x, base, tall = rng.random(), horizon + rng.uniform(0.02, 0.14), rng.uniform(0.2, 0.34)
        for k in range(3):
            low, half = base - tall * k * 0.28, tall * (0.3 - 0.07 * k)
            top = low - tall * 0.42
            pen.area([(x - half, low), (x + half, low), (x, top)], (66, 110, 106))
            pen.area([(x - half * 0.5, (low + top) / 2), (x + half * 0.5, (low + top) / 2), (x, top)], (246, 250, 255))
    pen.area(ridge(rng, horizon + 0.2, 0.06, 0.6), (240, 245, 252))
    picture = shade(pen.picture, noise(rng, (5, 10)), 0.04, horizon + 0.15)
    pen = Pen(picture)
    for _ in range(90):
        pen.disc(rng.random(), rng.random(), rng.uniform(0.004, 0.011), (255, 255, 255))
    return picture


def mountains(rng: np.random.Generator) -> Image.Image:
    picture = gradient((0, vary(rng, (96, 160, 224))), (0.6, (220, 234, 246)))
    pen = Pen(picture)
    pen.area(peaks(rng, 0.6, 0.3, 5), vary(rng, (150, 170, 200)))
    line = peaks(rng, 0.72, 0.52, int(rng.integers(2, 4)))
    rock = vary(rng, (104, 108, 124))
    pen.area(line, rock)
    values = [y for _, y in line[:-2]]
    cap = min(values) + 0.19
    knots = np.linspace(0, len(values), 22)
    teeth = np.interp(np.arange(len(values)), knots, cap + rng.uniform(-0.05, 0.05, len(knots)))
    snow_line = [(x, max(y, tooth)) for (x, y), tooth in zip(line[:-2], teeth, strict=True)]
    pen.area([*line[:-2], *snow_line[::-1]], (248, 250, 254))
    picture = shade(pen.picture, noise(rng, (8, 8)), 0.08, 0.2)
    pen = Pen(picture)
    pen.area(ridge(rng, 0.74, 0.07, 0.8), vary(rng, (84, 136, 88)))
    pen.area(ridge(rng, 0.86, 0.05, 0.6), vary(rng, (66, 120, 70)))
    return picture


def sunset(rng: np.random.Generator) -> Image.Image:
    horizon = rng.uniform(0.58, 0.68)
    top = vary(rng, (94, 52, 130))
    picture = gradient((0, top), (0.3, (216, 84, 110)), (0.5, (250, 150, 70)), (horizon, (255, 214, 110)))
    x = rng.uniform(0.2, 0.8)
    picture = glow(picture, x, horizon - 0.06, 0.28, (255, 226, 130))
    field = noise(rng, (2, 12))
    picture = blend(picture, (250, 120, 120), np.clip((field - 0.55) * 4, 0, 0.7))
    pen = Pen(picture)
    pen.disc(x, horizon - 0.05, 0.13, (255, 244, 190))
    if rng.random() < 0.5:
        pen.box(0, horizon, 1, 1, vary(rng, (120, 60, 100)))
        for k in range(12):
            y, half = horizon + 0.03 + 0.032 * k, rng.uniform(0.04, 0.14)
            pen.line([(x - half, y), (x + half, y)], (255, 196, 110), 0.012)
    else:
        pen.area(ridge(rng, horizon, 0.07, 0.8), (112, 48, 84))
        pen.area(ridge(rng, horizon + 0.14, 0.06, 0.7), (62, 30, 66))
    return picture


def volcano(rng: np.random.Generator) -> Image.Image:
    picture = gradient((0, vary(rng, (70, 44, 60))), (0.6, (190, 92, 66)))
    x, top, wide = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.28), rng.uniform(0.07, 0.1)
    picture = glow(picture, x, top, 0.2, (255, 150, 50))
    pen = Pen(picture)
    for k in range(7):
        smoke = (80 + 8 * k, 72 + 8 * k, 70 + 8 * k)
        pen.disc(x + rng.uniform(-0.1, 0.1), top - 0.04 - 0.03 * k, rng.uniform(0.05, 0.09), smoke)
    rock = vary(rng, (78, 62, 62))
    pen.area([(x - wide, top), (x + wide, top), (x + 0.46, 0.78), (x - 0.46, 0.78)], rock)
    for _ in range(4):
        start, end = x + rng.uniform(-wide, wide) * 0.8, x + rng.uniform(-0.3, 0.3)
        bend = (start * 0.6 + end * 0.4 + rng.uniform(-0.04, 0.04), 0.5)
        pen.line([(start, top), bend, (end, 0.8)], (255, int(rng.uniform(90, 150)), 30), rng.uniform(0.02, 0.04))
    pen.disc(x, top, wide, (255, 190, 70), 0.25)
    picture = shade(pen.picture, noise(rng, (10, 10)), 0.14, top)
    pen = Pen(picture)
    pen.area(ridge(rng, 0.76, 0.05, 0.9), vary(rng, (52, 42, 46)))
    for _ in range(5):
        y, left = rng.uniform(0.82, 0.98), rng.random()
        pen.line([(left, y), (left + 0.1, y + 0.02), (left + 0.22, y)], (255, 120, 30), 0.014)
    return picture


BEACH_TO_SUNSET = {
    "beach": beach,
    "desert": desert,
    "meadow": meadow,
    "ocean": ocean,
    "snow": snow,
    "mountains": mountains,
    "sunset": sunset,
    "volcano": volcano,
}

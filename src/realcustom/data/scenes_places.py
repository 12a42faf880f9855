"""Enclosed and night places: forest, city street, space, living room, night sky, underwater."""

import numpy as np
from PIL import Image

from realcustom.data.drawing import DRAWN, Pen, blend, glow, gradient, noise, ridge, shade, vary


def forest(rng: np.random.Generator) -> Image.Image:
    floor = rng.uniform(0.66, 0.74)
    picture = gradient((0, vary(rng, (150, 196, 130))), (floor, (206, 226, 168)))
    pen = Pen(picture)
    for depth, tone in enumerate((0.75, 0.5, 0.0)):
        for _ in range((6, 5, 4)[depth]):
            x, half = rng.random(), (0.012, 0.02, 0.034)[depth] * rng.uniform(0.8, 1.3)
            brown = np.array(vary(rng, (92, 62, 40), 8)) * (1 - tone) + np.array((164, 190, 140)) * tone
            base = floor + 0.03 + 0.06 * depth
            pen.area([(x - half * 0.8, 0), (x + half * 0.8, 0), (x + half * 1.3, base), (x - half * 1.3, base)], brown)
        green = np.array((52, 116, 52)) * (1 - tone) + np.array((150, 196, 120)) * tone
        for _ in range(26):
            x, y = rng.random(), rng.uniform(-0.05, 0.12 + 0.16 * tone)
            pen.disc(x, y, rng.uniform(0.05, 0.1), vary(rng, green, 12))
    pen.area(ridge(rng, floor + 0.05, 0.05, 0.9), vary(rng, (72, 118, 50)))
    picture = shade(pen.picture, noise(rng, (30, 30), 2), 0.16, floor)
    pen = Pen(picture)
    for _ in range(18):
        x, y = rng.random(), rng.uniform(floor + 0.08, 1)
        for lean in (-0.03, 0, 0.03):
            pen.line([(x, y), (x + lean, y - 0.06)], vary(rng, (96, 156, 62)), 0.008)
    return picture


def city_street(rng: np.random.Generator) -> Image.Image:
    ground = rng.uniform(0.6, 0.68)
    picture = gradient((0, vary(rng, (150, 190, 226))), (ground, (226, 232, 238)))
    pen = Pen(picture)
    left = -rng.uniform(0, 0.1)
    walls = [(186, 110, 86), (206, 186, 156), (150, 160, 176), (224, 200, 140), (120, 130, 150), (176, 140, 150)]
    while left < 1:
        wide, top = rng.uniform(0.18, 0.28), rng.uniform(0.04, 0.34)
        wall = np.array(vary(rng, walls[rng.integers(len(walls))]))
        pen.box(left, top, left + wide, ground, wall)
        pen.box(left, top, left + wide, top + 0.015, wall * 0.75)
        columns = int(wide / 0.07)
        glass = (250, 226, 140) if rng.random() < 0.4 else (92, 122, 156)
        for row in np.arange(top + 0.05, ground - 0.12, 0.085):
            for column in range(columns):
                x = left + (column + 0.5) * wide / columns
                pen.box(x - 0.02, row, x + 0.02, row + 0.05, glass)
        door = left + wide * 0.5
        pen.box(door - 0.025, ground - 0.09, door + 0.025, ground, wall * 0.5)
        left += wide + 0.005
    pen.box(0, ground, 1, ground + 0.06, (186, 184, 180))
    pen.box(0, ground + 0.06, 1, 1, vary(rng, (92, 94, 100), 8))
    middle = ground + 0.06 + (0.94 - ground) * 0.5
    start = rng.uniform(-0.2, 0)
    for x in np.arange(start, 1, 0.24):
        pen.box(x, middle - 0.012, x + 0.14, middle + 0.012, (244, 240, 220))
    return shade(pen.picture, noise(rng, (20, 20), 2), 0.05)


def space(rng: np.random.Generator) -> Image.Image:
    picture = gradient((0, (10, 8, 30)), (1, vary(rng, (20, 12, 44), 8)))
    worlds = [(220, 130, 80), (110, 150, 220), (200, 170, 110), (150, 190, 140)]
    tints = [(110, 40, 150), (40, 70, 170), (160, 50, 110), (30, 120, 140)]
    for _ in range(2):
        picture = blend(picture, tints[rng.integers(4)], np.clip((noise(rng, (3, 3)) - 0.5) * 3, 0, 0.6))
    pen = Pen(picture)
    for _ in range(110):
        level = rng.uniform(140, 255)
        pen.disc(rng.random(), rng.random(), rng.uniform(0.002, 0.007), (level, level, 255))
    for _ in range(rng.integers(1, 4)):
        x, y, radius = rng.random(), rng.random(), rng.uniform(0.06, 0.16)
        colour = np.array(vary(rng, worlds[rng.integers(4)]))
        ring = rng.random() < 0.5
        if ring:
            pen.disc(x, y, radius * 1.8, colour * 0.75 + 50, 0.3)
            pen.disc(x, y, radius * 1.4, (24, 16, 50), 0.28)
        pen.disc(x, y, radius, colour * 0.55)
        pen.disc(x - radius * 0.12, y - radius * 0.1, radius * 0.86, colour)
        for k in range(2):
            pen.disc(x - radius * (0.4 - 0.6 * k), y + radius * (0.2 - 0.5 * k), radius * 0.2, colour * 0.8)
        if ring:
            front = [(x - radius * 1.7, y + radius * 0.1), (x, y + radius * 0.46), (x + radius * 1.7, y + radius * 0.1)]
            pen.line(front, colour * 0.75 + 50, 0.016)
    return picture


def living_room(rng: np.random.Generator) -> Image.Image:
    floor = rng.uniform(0.62, 0.7)
    wall = np.array(vary(rng, [(236, 222, 196), (196, 214, 206), (226, 200, 190), (204, 208, 226)][rng.integers(4)], 8))
    picture = gradient((0, wall), (floor, wall * 0.94))
    pen = Pen(picture)
    wood = np.array(vary(rng, (176, 122, 76)))
    pen.box(0, floor, 1, 1, wood)
    for k in range(6):
        y = floor + (1 - floor) * (k / 6) ** 1.2
        pen.line([(0, y), (1, y)], wood * 0.85, 0.006)
    pen.box(0, floor - 0.02, 1, floor, (248, 246, 240))
    x = rng.uniform(0.08, 0.3)
    pen.box(x, 0.08, x + 0.28, 0.4, (250, 250, 250))
    for column in (0.015, 0.145):
        pen.box(x + column, 0.095, x + column + 0.12, 0.385, (160, 210, 244))
    curtain = vary(rng, (190, 80, 80), 40)
    pen.box(x - 0.06, 0.05, x + 0.02, 0.46, curtain)
    pen.box(x + 0.26, 0.05, x + 0.34, 0.46, curtain)
    frame = rng.uniform(0.6, 0.76)
    pen.box(frame, 0.1, frame + 0.18, 0.26, (110, 74, 44))
    pen.box(frame + 0.015, 0.115, frame + 0.165, 0.245, vary(rng, (120, 170, 130), 40))
    sofa, fabric = rng.uniform(0.36, 0.56), np.array(vary(rng, (90, 120, 170), 60))
    pen.box(sofa, floor - 0.2, sofa + 0.42, floor + 0.06, fabric)
    pen.box(sofa + 0.04, floor - 0.06, sofa + 0.38, floor + 0.03, np.clip(fabric * 1.18, 0, 255))
    for edge in (sofa - 0.03, sofa + 0.38):
        pen.box(edge, floor - 0.11, edge + 0.07, floor + 0.07, fabric * 0.85)
    lamp = x - 0.02 if x > 0.2 else 0.96
    pen.line([(lamp, 0.5), (lamp, floor + 0.04)], (90, 80, 70), 0.014)
    pen.area([(lamp - 0.05, 0.52), (lamp + 0.05, 0.52), (lamp + 0.03, 0.42), (lamp - 0.03, 0.42)], (255, 226, 150))
    pen.disc(rng.uniform(0.3, 0.7), 0.9, rng.uniform(0.3, 0.4), vary(rng, (190, 110, 110), 40), 0.22)
    return picture


def night_sky(rng: np.random.Generator) -> Image.Image:
    ground = rng.uniform(0.74, 0.82)
    picture = gradient((0, vary(rng, (12, 20, 62), 8)), (ground, (52, 76, 138)))
    picture = blend(picture, (96, 110, 180), np.clip((noise(rng, (4, 5)) - 0.56) * 2, 0, 0.4))
    x, y, radius = rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.28), rng.uniform(0.07, 0.11)
    picture = glow(picture, x, y, radius * 1.9, (150, 160, 205))
    pen = Pen(picture)
    for _ in range(60):
        size = rng.uniform(0.004, 0.009)
        sx, sy = rng.random(), rng.uniform(0, ground)
        pen.line([(sx - size * 1.6, sy), (sx + size * 1.6, sy)], (255, 255, 226), 0.004)
        pen.line([(sx, sy - size * 1.6), (sx, sy + size * 1.6)], (255, 255, 226), 0.004)
    moon = Image.new("L", picture.size)
    Pen(moon).disc(x, y, radius, (255,))
    if rng.random() < 0.6:
        Pen(moon).disc(x + radius * 0.5, y - radius * 0.2, radius * 0.85, (0,))
    picture.paste((255, 246, 200), mask=moon)
    pen.area(ridge(rng, ground, 0.07, 0.8), (22, 42, 52))
    pen.area(ridge(rng, ground + 0.1, 0.05, 0.7), (14, 28, 38))
    return picture


def underwater(rng: np.random.Generator) -> Image.Image:
    floor = rng.uniform(0.76, 0.84)
    picture = gradient((0, vary(rng, (70, 196, 214))), (1, (8, 62, 120)))
    yy, xx = np.mgrid[0:DRAWN, 0:DRAWN] / DRAWN
    rays = np.sin((xx + 0.35 * yy) * rng.uniform(16, 26) + rng.random() * 6) * np.clip(1 - 1.3 * yy, 0, 1)
    picture = blend(picture, (200, 245, 245), np.clip(rays, 0, 1) * 0.35)
    pen = Pen(picture)
    pen.area(ridge(rng, floor, 0.05, 0.9), vary(rng, (196, 182, 130)))
    for _ in range(rng.integers(4, 8)):
        x, tall = rng.random(), rng.uniform(0.15, 0.4)
        path = [(x + 0.025 * np.sin(9 * t + x * 40), floor + 0.1 - tall * t) for t in np.linspace(0, 1, 8)]
        pen.line(path, vary(rng, (36, 130, 78)), 0.026)
    for _ in range(rng.integers(2, 5)):
        x, colour = rng.random(), vary(rng, [(240, 110, 120), (250, 160, 80), (200, 110, 190)][rng.integers(3)])
        for lean in (-0.07, 0, 0.07):
            pen.line([(x, floor + 0.12), (x + lean * 0.6, floor + 0.03), (x + lean, floor - 0.05)], colour, 0.026)
    for _ in range(16):
        x, y, radius = rng.random(), rng.uniform(0, floor), rng.uniform(0.008, 0.02)
        pen.disc(x, y, radius, (206, 240, 246))
        pen.disc(x + radius * 0.15, y + radius * 0.15, radius * 0.72, (110, 200, 220))
    return picture


PLACES = {
    "forest": forest,
    "city street": city_street,
    "space": space,
    "living room": living_room,
    "night sky": night_sky,
    "underwater": underwater,
}

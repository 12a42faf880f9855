"""What the sticker world can show and say: words, scenes, accessories, colours, styles, and captions made of them."""

import random
from collections.abc import Iterator

_ALL_WORDS = """
    airplane, alarm clock, ambulance, apple, axe, backpack, balloon, banana, baseball, basketball, bee, bell, bicycle,
    bird, book, broom, butterfly, cactus, camel, camera, cap, car, carrot, cat, caterpillar, chair, cheese, cherries,
    baby chick, church, clock, coat, coffee cup, corn, cow, crab, croissant, crown, cupcake, deer, diamond, dinosaur,
    dog, dolphin, donut, door, dragon, dress, duck, eagle, elephant, factory, ferris wheel, fire truck, fish, flamingo,
    flying saucer, football, fountain, fox, french fries, ghost, gift box, glasses, gorilla, grapes, guitar, hamburger,
    hammer, hamster, handbag, headphones, hedgehog, helicopter, high heel, hippo, horse, hot dog, house, ice cream,
    jeans, kangaroo, key, kite, koala, ladybug, lantern, laptop, lemon, leopard, light bulb, lion, llama, lock,
    lollipop, mailbox, microphone, monkey, motorcycle, mouse, mushroom, octopus, orange, otter, owl, palm tree, panda,
    parrot, peacock, pear, pencil, penguin, pig, pine tree, pineapple, pizza, police car, poodle, popcorn, pumpkin,
    rabbit, raccoon, race car, rhinoceros, robot, rocket, rooster, rose, sandal, sandwich, saxophone, scarf, scissors,
    scooter, seashell, shark, sheep, ship, shoe, sloth, snail, snake, snowman, soccer ball, socks, spider, squirrel,
    strawberry, suitcase, sun hat, sunflower, sunglasses, swan, t-shirt, taco, taxi, teddy bear, telephone, television,
    tent, tomato, top hat, tractor, train, tram, tree, trophy, truck, trumpet, tulip, turtle, umbrella, unicorn, vase,
    violin, watch, watermelon, whale, wolf, zebra
"""
ALL_WORDS: tuple[str, ...] = tuple(word.strip() for word in _ALL_WORDS.split(","))
"""The 180 words of the shipped cut-out list; the tokenizer knows all of them."""

DEFAULT_WORDS: tuple[str, ...] = (
    "dog", "cat", "rabbit", "lion", "elephant", "penguin", "owl", "fish", "turtle", "butterfly", "dinosaur",
    "teddy bear", "robot", "snowman", "car", "rocket",
)  # fmt: skip
"""16 words whose drawings have distinct outlines that survive a 16 x 16 latent: the miniature's world."""

WITHOUT_ARTICLE = frozenset(
    {"cheese", "cherries", "corn", "french fries", "glasses", "grapes", "headphones", "jeans", "popcorn", "scissors",
     "socks", "sunglasses"}
)  # fmt: skip

SCENE_PHRASES: dict[str, str] = {
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "desert": "in the desert",
    "city street": "on a city street",
    "space": "in space",
    "living room": "in a living room",
    "meadow": "in a meadow",
    "ocean": "on the ocean",
    "mountains": "in the mountains",
    "night sky": "under the night sky",
    "sunset": "at sunset",
    "underwater": "underwater",
    "volcano": "in front of a volcano",
}

ACCESSORY_PHRASES: dict[str, str] = {
    "hat": "wearing a hat",
    "sunglasses": "wearing sunglasses",
    "scarf": "wearing a scarf",
    "crown": "wearing a crown",
    "bow tie": "wearing a bow tie",
}

_WEARERS = """
    bear, bird, camel, cat, baby chick, cow, deer, dinosaur, dog, dragon, duck, eagle, elephant, flamingo, fox, ghost,
    gorilla, hamster, hedgehog, hippo, horse, kangaroo, koala, leopard, lion, llama, monkey, mouse, octopus, otter, owl,
    panda, parrot, peacock, penguin, pig, poodle, rabbit, raccoon, rhinoceros, robot, rooster, sheep, sloth, squirrel,
   , swan, teddy bear, turtle, unicorn, wolf, zebra
"""
WEARERS: frozenset[str] = frozenset(word.strip() for word in _WEARERS.split(","))
"""Words whose drawings have a head, so that an accessory makes sense on them."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 42, 44),
    "orange": (243, 134, 32),
    "yellow": (247, 211, 50),
    "green": (58, 160, 70),
    "blue": (46, 104, 214),
    "purple": (134, 66, 180),
    "pink": (245, 136, 186),
    "brown": (128, 82, 48),
    "black": (44, 44, 50),
    "white": (240, 240, 238),
    "gray": (140, 144, 150),
}
"""Colour word -> sRGB of its typical shade."""

STYLES: tuple[str, ...] = ("pixel art", "pencil sketch", "watercolor", "neon", "sepia photo", "pop art")
COLOURLESS_STYLES = frozenset({"pencil sketch", "sepia photo"})
"""Styles in which no colour word would be true."""


def article_of(word: str) -> str:
    """ "a", "an", or "" for plural and mass nouns."""
    if word in WITHOUT_ARTICLE:
        return ""
    return "an" if word[0] in "aeio" or word == "umbrella" else "a"


def noun_phrase(word: str, colour: str | None = None, article: str | None = None) -> str:
    """The word with its article and colour: "an apple", "a red apple", "red cherries".

    article overrides the built-in rule for words that are not in ALL_WORDS; "" means plural or mass noun.
    """
    article = article_of(word) if article is None else article
    if colour is None:
        return f"{article} {word}".strip()
    if article:
        article = "an" if colour[0] in "aeio" else "a"
    return f"{article} {colour} {word}".strip()


def caption(
    subjects: list[str],
    *,
    accessory: str | None = None,
    companion: str | None = None,
    scene_phrase: str | None = None,
    style: str | None = None,
) -> str:
    """One line from noun phrases: "a red dog wearing a crown in the forest, pencil sketch".

    subjects and companion are noun phrases; the accessory (a key of ACCESSORY_PHRASES) belongs to the first subject.
    """
    first = subjects[0]
    if accessory is not None:
        first = f"{first} {ACCESSORY_PHRASES[accessory]}"
    text = " and ".join([first, *subjects[1:]])
    if companion is not None:
        text = f"{text} next to {companion}"
    if scene_phrase is not None:
        text = f"{text} {scene_phrase}"
    return text if style is None else f"{text}, {style}"


def caption_corpus(count: int, seed: int = 0) -> Iterator[str]:
    """`count` captions over every word, scene, accessory, colour and style, for training a tokenizer.

    The text does not depend on which words a world draws, so the tokenizer stays when the vocabulary grows.
    """
    rng = random.Random(f"corpus-{seed}")
    scenes = tuple(SCENE_PHRASES.values())
    for index in range(count):
        words = [ALL_WORDS[index % len(ALL_WORDS)], *rng.sample(ALL_WORDS, 2)]
        phrases = [noun_phrase(word, rng.choice((None, *COLOURS))) for word in words]
        yield caption(
            phrases[: rng.choice((1, 1, 2))],
            accessory=rng.choice((None, *ACCESSORY_PHRASES)),
            companion=phrases[2] if rng.random() < 0.2 else None,
            scene_phrase=rng.choice(scenes) if rng.random() < 0.9 else None,
            style=rng.choice(STYLES) if rng.random() < 0.3 else None,
        )

"""Training and evaluation data: the sticker world, preparation of real data, and streaming."""

from realcustom.data.records import Record, reconstruction
from realcustom.data.vocabulary import ALL_WORDS, DEFAULT_WORDS, caption_corpus
from realcustom.data.world import StickerWorld, WorldSettings

__all__ = ["ALL_WORDS", "DEFAULT_WORDS", "Record", "StickerWorld", "WorldSettings", "caption_corpus", "reconstruction"]

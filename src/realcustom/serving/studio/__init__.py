"""The studio: a page for those who make pictures."""

from realcustom.serving.studio.look import look as look
from realcustom.serving.studio.page import build_studio as build_studio

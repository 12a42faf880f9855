"""How the studio looks: fonts of the system, since nothing is fetched from elsewhere, and room on small windows."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; overflow-x: hidden; }
footer { display: none !important; }
.rc-title h1 { font-size: 1.5rem; margin: 0; letter-spacing: -0.02em; }
.rc-title p { color: var(--body-text-color-subdued); margin: 0.1rem 0 0; }
.rc-error p { color: #b3261e; background: #fdecea; border-left: 4px solid #b3261e; padding: 0.45rem 0.7rem;
  border-radius: 4px; margin: 0; font-size: 0.95rem; }
.dark .rc-error p { color: #ffb4ab; background: #3b1512; }
.rc-status progress { width: 100%; height: 0.6rem; accent-color: var(--color-accent); }
.rc-status p { margin: 0; color: var(--body-text-color-subdued); font-size: 0.9rem; }
.rc-subject { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 0.6rem; }
.rc-result img { image-rendering: auto; object-fit: contain; width: 100%; height: 100%; }
:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container { padding: 0.4rem !important; }
  .gradio-container .main.fillable { padding: 0.2rem !important; }
  .rc-title p { display: none; }
}
"""


def look() -> dict[str, Any]:
    """Theme and styles as `gr.mount_gradio_app` takes them."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.pink,
        secondary_hue=gr.themes.colors.rose,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=list(FONTS),
        font_mono=list(MONOSPACE),
    )
    # The lighter default is hard to read on white.
    theme = theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    # In the head, since gradio rewrites the selectors of its own css argument.
    return {"theme": theme, "head": f"<style>{CSS}</style>"}


def sentence_box() -> gr.HTML:
    """A place for one sentence beside a field, read out when it appears."""
    return gr.HTML(visible=False, elem_classes="rc-error", padding=False)


def sentence(text: str | None) -> Any:
    """What a `sentence_box` shows; None hides it."""
    return gr.HTML(f'<p role="alert">{html.escape(text)}</p>' if text else "", visible=bool(text))


def status(text: str, step: int = 0, steps: int = 0) -> str:
    """A line about a generation and, while it is made, a bar."""
    bar = f'<progress value="{step}" max="{steps}" aria-label="progress"></progress>' if steps else ""
    return f'<div aria-live="polite">{bar}<p>{html.escape(text)}</p></div>'

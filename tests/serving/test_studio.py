"""The studio in a real browser: from an upload to a character, and no request to any other machine.

Debian's Chromium is used (apt-get install chromium); the screenshots are written to outputs/.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import picture

from realcustom.hub.bundled import MODELS

from .servers import Server

pytestmark = pytest.mark.browser

OUTPUTS = Path(__file__).parents[2] / "outputs"
REX = Path(__file__).parents[2] / "examples" / "references" / "rex.png"
PATIENCE = 90_000  # ms; the machine may be busy with other tests
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def model(request) -> str:
    """The embedded default where its weights are installed, else a tiny random model."""
    if (MODELS["miniature"] / "model_index.json").is_file():
        return "miniature"
    return str(request.getfixturevalue("tiny_model"))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    server = Server(model, tmp_path_factory.mktemp("studio") / "data")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert path is not None, "the browser tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def refused() -> list[str]:
    """What the page asked its server for in vain."""
    return []


@pytest.fixture
def page(chromium, server, asked, refused):
    context = chromium.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: response.status >= 400 and refused.append(response.url))
    page.goto(server.url)
    page.locator("#generate").wait_for()
    yield page
    context.close()


def upload(page, field: str, path: Path, count: int = 1) -> None:
    page.locator(f"{field} input[type=file]").first.set_input_files(str(path))
    page.locator(f"{field} img").nth(count - 1).wait_for()


def generate(page) -> str:
    """Press the button, wait for the result, return where its image is."""
    page.locator("#generate").click()
    page.get_by_text("1 image in").wait_for()
    page.wait_for_function("!document.querySelector('#generate').disabled")
    return page.locator("#result img").first.get_attribute("src")


def reload(page) -> None:
    page.reload()
    page.locator("#generate").wait_for()


def test_from_a_reference_to_a_character(page, server, asked, refused, tmp_path):
    rex = tmp_path / "rex.png"
    if REX.is_file():
        rex.write_bytes(REX.read_bytes())
    else:
        picture(0).save(rex)
    upload(page, "#images-0", rex)
    page.locator("#words-0 input, #words-0 textarea").fill("dog")
    page.locator("#prompt textarea, #prompt input").fill("a dog on the beach")
    page.locator("#marked").get_by_text("subject").first.wait_for()

    first = generate(page)
    page.locator("#show-mask input").check()
    page.wait_for_function("old => document.querySelector('#result img').src !== old", arg=first)
    masked = page.locator("#result img").first.get_attribute("src")
    page.locator("#mask-step input[type=number]").fill("1")
    page.locator("#mask-step input[type=number]").press("Enter")
    page.wait_for_function("old => document.querySelector('#result img').src !== old", arg=masked)
    page.locator("#show-mask input").uncheck()
    page.wait_for_function("old => document.querySelector('#result img').src === old", arg=first)
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "made.png")

    page.locator("#reuse").click()
    page.get_by_text("This result is the reference now").wait_for()
    page.locator("#prompt textarea, #prompt input").fill("a dog in the snow")
    second = generate(page)
    assert second != first

    page.locator("#keep").click()
    page.locator("#character-name input, #character-name textarea").fill("Rex")
    page.locator("#character-description textarea").fill("a brown dog with a white chest")
    page.locator("#character-save").click()
    page.get_by_text("@rex is saved").wait_for()

    reload(page)
    page.get_by_role("tab", name="Characters").click()
    page.get_by_text("@rex - dog").wait_for()
    page.locator("#characters button img").first.click()
    page.wait_for_function("document.querySelector('#character-name input, #character-name textarea').value === 'rex'")
    page.locator("#character-use").click()
    page.locator("#prompt textarea, #prompt input").fill("@rex on the beach")
    page.locator("#marked").get_by_text("reads as dog").first.wait_for()
    generate(page)
    page.get_by_role("tab", name="Gallery").click()
    page.locator("#gallery img").nth(2).wait_for()

    reload(page)
    page.get_by_text("Restore the settings of an image").click()
    page.locator("#restore input[type=file]").set_input_files(str(tmp_path / "made.png"))
    prompt = "document.querySelector('#prompt textarea, #prompt input').value"
    page.wait_for_function(f"{prompt} === 'a dog on the beach'")
    page.locator("#images-0 img").first.wait_for()
    foreign = [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
    assert foreign == []
    assert refused == []


def test_mistakes_are_one_sentence_beside_their_field(page, tmp_path):
    alert = page.get_by_role("alert")
    page.locator("#generate").click()
    alert.filter(has_text="The prompt is empty.").wait_for()
    page.locator("#prompt textarea, #prompt input").fill("a dog on the beach")
    page.locator("#words-0 input, #words-0 textarea").fill("cat")
    alert.filter(has_text='"cat" does not stand in the prompt').wait_for()
    page.locator("#generate").click()
    alert.filter(has_text="A subject needs at least one reference image.").wait_for()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page.locator("#images-0 input[type=file]").first.set_input_files(str(broken))
    page.wait_for_timeout(1500)
    page.locator("#generate").click()
    alert.filter(has_text="the given image data is").wait_for()
    page.locator("#prompt textarea, #prompt input").fill("@nobody here")
    alert.filter(has_text="There is no character @nobody.").wait_for()


def test_the_keyboard_is_enough(page):
    page.locator("#prompt textarea, #prompt input").focus()
    page.keyboard.type("a dog on the beach")
    page.keyboard.press("Enter")
    page.get_by_text("1 image in").wait_for()
    names = set()
    page.locator("#prompt textarea, #prompt input").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.closest('[id]')?.id"))
    assert {"generate", "add-subject"} <= names


@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_screenshots(page, name, size, tmp_path):
    page.set_viewport_size(size)
    reload(page)
    if REX.is_file():
        page.locator("#examples button").filter(has_text="a dog on the beach").first.click()
        page.locator("#images-0 img").first.wait_for()
    else:
        path = tmp_path / "rex.png"
        picture(0).save(path)
        upload(page, "#images-0", path)
        page.locator("#words-0 input, #words-0 textarea").fill("dog")
        page.locator("#prompt textarea, #prompt input").fill("a dog on the beach")
    page.locator("#marked").get_by_text("subject").first.wait_for()
    image = generate(page)
    page.locator("#show-mask input").check()
    page.wait_for_function("old => document.querySelector('#result img').src !== old", arg=image)
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(800)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "nothing sticks out to the side"
    OUTPUTS.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUTS / f"studio-{name}.png", full_page=True)

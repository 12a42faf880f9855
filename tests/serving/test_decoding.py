"""Pictures made to take memory: refused by their header, and never many at once."""

from __future__ import annotations

import io
import struct
import threading
import time

import pytest
from conftest import picture
from PIL import EpsImagePlugin, IcnsImagePlugin, IcoImagePlugin, Image

from realcustom.pictures import opening
from realcustom.pictures.opening import DecodingRoom, open_image, picture_size

from .conftest import png


def saved(kind: str, size: int = 64, **options) -> bytes:
    stream = io.BytesIO()
    picture(0, size).save(stream, format=kind, **options)
    return stream.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file\n%%EOF\n"


@pytest.fixture
def _no_decoder(monkeypatch):
    """What decodes while it opens, or starts another program, fails."""

    def fail(*arguments, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail)
    for module, kind in ((IcoImagePlugin, "IcoImageFile"), (IcnsImagePlugin, "IcnsImageFile")):
        monkeypatch.setattr(getattr(module, kind), "_open", fail)


@pytest.mark.usefixtures("_no_decoder")
@pytest.mark.parametrize(
    ("kind", "data"),
    [(kind, saved(kind)) for kind in ("ICO", "ICNS", "PPM", "TGA", "PCX", "SGI", "DDS")] + [("EPS", EPS)],
)
def test_formats_that_are_not_on_the_list_are_not_opened(idle_client, kind, data):
    with pytest.raises(ValueError, match="is not an image that can be read"):
        open_image(data)
    assert idle_client.post("/v1/images", content=data[: 2**20]).status_code == 422


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_formats_on_the_list_are_sized_by_their_header_and_opened(idle_client, monkeypatch, kind):
    data = saved(kind)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
        assert picture_size(data) == (64, 64)
    assert open_image(data).size == (64, 64)
    assert idle_client.post("/v1/images", content=data).status_code == 201


def test_heic_is_said_to_be_no_picture_where_it_cannot_be_read():
    data = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(64)
    with pytest.raises(ValueError, match="image"):
        open_image(data)


def test_no_more_is_decoded_at_once_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(opening, "DECODING", DecodingRoom(2 * 64 * 64))
    now, most, lock, decode = [0], [0], threading.Lock(), opening._decoded

    def watched(image, name):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        try:
            return decode(image, name)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(opening, "_decoded", watched)
    threads = [threading.Thread(target=open_image, args=(saved("PNG"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2


def test_room_is_given_back_and_a_holder_takes_none_twice():
    room = DecodingRoom(100)
    with room.take(1000), room.take(50), pytest.raises(KeyError), room.take(5):
        raise KeyError
    taken = []

    def second() -> None:
        with room.take(60):
            taken.append(True)

    with room.take(60):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        assert taken == []
    thread.join(5)
    assert taken == [True]


def test_an_upload_holds_its_room_until_it_is_kept(service, monkeypatch):
    from realcustom.serving import store

    held = []
    encode = store.png_bytes

    def watched(*arguments):
        held.append(opening.DECODING._free < opening.DECODING.pixels)
        return encode(*arguments)

    monkeypatch.setattr(store, "png_bytes", watched)
    service.store.add_upload(png(), service.limits)
    assert held == [True]
    assert opening.DECODING._free == opening.DECODING.pixels

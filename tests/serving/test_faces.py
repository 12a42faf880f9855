"""The face of a character: found in a drawn portrait, absent elsewhere, cut by a box."""

import pytest
from PIL import Image, ImageDraw, ImageFilter

from realcustom.serving.faces import crop, find_face

pytest.importorskip("cv2")


def portrait() -> Image.Image:
    """A face of 160 x 200 pixels in the left third of 900 x 400."""
    image = Image.new("RGB", (900, 400), (200, 200, 210))
    draw = ImageDraw.Draw(image)
    draw.ellipse((120, 90, 280, 310), fill=(60, 40, 30))
    draw.ellipse((135, 110, 265, 305), fill=(224, 180, 150))
    for x in (165, 235):
        draw.rectangle((x - 20, 158, x + 20, 164), fill=(70, 45, 35))
        draw.ellipse((x - 16, 170, x + 16, 188), fill=(245, 245, 245))
        draw.ellipse((x - 8, 170, x + 8, 188), fill=(40, 30, 30))
    draw.polygon([(200, 185), (188, 230), (212, 230)], fill=(205, 155, 125))
    draw.ellipse((168, 255, 232, 275), fill=(170, 70, 70))
    draw.line((168, 264, 232, 264), fill=(90, 30, 30), width=3)
    return image.filter(ImageFilter.GaussianBlur(1.5))


def test_a_face_is_found_where_it_is():
    left, top, right, bottom = find_face(portrait())
    assert 0 <= left < 165 / 900
    assert 235 / 900 < right < 0.5
    assert top < 170 / 400
    assert bottom > 250 / 400


def test_without_a_face_there_is_none():
    assert find_face(Image.new("RGB", (300, 200), "teal")) is None


def test_a_crop_keeps_to_its_box():
    assert crop(portrait(), (0.0, 0.25, 0.5, 1.0)).size == (450, 300)
    with pytest.raises(ValueError, match="too small"):
        crop(portrait(), (0.5, 0.5, 0.501, 1.0))
    with pytest.raises(ValueError, match="face's box"):
        crop(portrait(), (0.0, 0.0, 1.5, 1.0))


def test_a_picture_that_is_larger_than_the_server_takes_is_not_decoded(service, idle_client):
    name = service.store.add_picture(portrait())["id"]
    assert idle_client.get(f"/v1/images/{name}/face").status_code == 200
    object.__setattr__(service.limits, "pixels", 1000)
    refused = idle_client.get(f"/v1/images/{name}/face")
    assert refused.status_code == 413
    assert "more than the" in refused.json()["detail"]

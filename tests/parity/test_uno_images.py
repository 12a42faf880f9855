"""Reference pictures as the release prepares them, where ours must agree and where it must not."""

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom.data.buckets import bucket_for, stretched
from realcustom.encoders.reference_latents import exact_fit, prepare_reference, reference_side, released_fit

ALIKE = ("RGB", "L")  # other modes lose colour or transparency in the release, since it converts after resizing


@pytest.fixture(scope="module")
def images(load_reference):
    return load_reference("uno/images")


def picture(images, case):
    array = images[f"{case}/in"].numpy()
    mode = images.meta["cases"][case]["mode"]
    if mode != "P":
        return Image.frombytes(mode, array.shape[1::-1], np.ascontiguousarray(array).tobytes())
    image = Image.frombytes("P", array.shape[1::-1], np.ascontiguousarray(array).tobytes())
    image.putpalette(images[f"{case}/palette"].numpy().tobytes())
    return image


def test_pixels_are_the_releases(images):
    compared = 0
    for case, info in images.meta["cases"].items():
        prepared = prepare_reference(picture(images, case), info["long_side"], released_fit)
        assert list(prepared.size) == info["output_wh"], case
        if info["mode"] in ALIKE:
            assert np.array_equal(np.array(prepared), images[f"{case}/out"].numpy()), case
            compared += 1
    assert compared


def test_other_modes_are_rgb_before_they_are_resized(images):
    """Transparency over white, palettes and CMYK through Lanczos, unlike the release."""
    for case in [case for case, info in images.meta["cases"].items() if info["mode"] not in ALIKE]:
        side = images.meta["cases"][case]["long_side"]
        image = picture(images, case)
        prepared = np.array(prepare_reference(image, side, released_fit))
        rgb = image.convert("RGB")
        if image.mode == "RGBA":
            rgb = Image.new("RGB", image.size, "white")
            rgb.paste(image, mask=image.getchannel("A"))
        assert np.abs(prepared.astype(int) - np.array(prepare_reference(rgb, side, released_fit))).max() <= 1, case
        if image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255:
            assert not np.array_equal(prepared, images[f"{case}/out"].numpy()), case


def test_sizes(images):
    columns = images.meta["size_table_columns"]
    corrected = 0
    for row in images.meta["size_table"]:
        entry = dict(zip(columns, row, strict=True))
        size, side = (entry["input_w"], entry["input_h"]), entry["long_side"]
        assert released_fit(size, side) == (entry["resized_w"], entry["resized_h"])
        output = (entry["output_w"], entry["output_h"])
        image = Image.new("RGB", size)
        assert prepare_reference(image, side, released_fit).size == tuple(max(16, s) for s in output)
        corrected += exact_fit(size, side) != released_fit(size, side)
    assert corrected == images.meta["size_rows_that_differ_from_exact_integer_arithmetic"]


def test_squares_lose_no_pixel(images):
    for name, count in images.meta["square_inputs_up_to_2048_px_that_lose_a_pixel"].items():
        side = int(name.removeprefix("long side "))
        sizes = [(pixels, pixels) for pixels in range(1, 2049)]
        assert sum(released_fit(size, side) != (side, side) for size in sizes) == count
        assert all(exact_fit(size, side) == (side, side) for size in sizes)


def test_pictures_of_one_row_are_padded_where_the_release_fails(images):
    for error in images.meta["size_errors"]:
        width, height = error["input_wh"]
        prepared = prepare_reference(Image.new("RGB", (width, height)), error["long_side"])
        assert sorted(prepared.size) == [16, error["long_side"]]


def test_long_sides(images):
    sides = images.meta["long_side_by_number_of_references"]["app (pipeline.py:225)"]
    assert {count: reference_side(int(count)) for count in sides} == sides


def test_buckets(images, max_difference):
    for sizes, resolution, bucket in images.meta["buckets"]:
        assert list(bucket_for(sizes, resolution)) == bucket
    pictures = [images[name] for name in sorted(images.tensors) if name.startswith("bucket/in")]
    out = images["bucket/out"]
    resolutions = [r for r in range(32, 1025, 16) if bucket_for([p.shape[-2:] for p in pictures], r) == out.shape[-2:]]
    assert resolutions
    assert max_difference(stretched(pictures, resolutions[0]), out) <= 1e-5


def test_exif_and_floor(tmp_path):
    image = Image.new("RGB", (64, 32), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert prepare_reference(tmp_path / "turned.jpg", 64).size == (32, 64)
    with pytest.raises(ValueError, match="16 is the least"):
        prepare_reference(image, 15)


def test_latents_of_a_picture_are_always_the_same(images):
    from diffusers import AutoencoderKL

    from realcustom.encoders.reference_latents import pixels, reference_latents

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ).eval()
    image = prepare_reference(Image.new("RGB", (70, 40), "red"), 64)
    first, again = (reference_latents(vae, [image])[0] for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (1, 16, image.height // 8, image.width // 8)
    with torch.no_grad():
        posterior = vae.encode(pixels(image)).latent_dist
        sample = posterior.mean + posterior.std * torch.randn(
            posterior.mean.shape, generator=torch.Generator().manual_seed(0)
        )
    assert torch.allclose(first, (posterior.mean - 0.1159) * 0.3611)
    assert not torch.allclose(first, (sample - 0.1159) * 0.3611)

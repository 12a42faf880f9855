"""The benchmark's plain rendition is what ours must equal, on small networks."""

import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def tiny_scene(subjects=1, images=1, size=(8, 8)):
    from conftest import build_adapter, build_reference_encoder, build_unet
    from scenes import Scene, random_features, random_text

    from realcustom.encoders.image import ReferenceFeatures
    from realcustom.pipelines.scheduler import RealCustomScheduler

    torch.manual_seed(2)
    unet, encoder = build_unet().eval(), build_reference_encoder()
    weights = torch.zeros(images, subjects, 77)
    for subject in range(subjects):
        weights[:, subject, 2 + subject] = 1
    zero = random_features(1, 16, encoder.feature_dim, {})
    repeat = [0] * subjects
    return Scene(
        unet=unet,
        adapter=build_adapter(unet, encoder).eval(),
        text=random_text(unet, images, {}),
        negative=random_text(unet, images, {}),
        token_weights=weights,
        features=random_features(subjects, 16, encoder.feature_dim, {}),
        zero_features=ReferenceFeatures(zero.deep[repeat], zero.local[repeat]),
        latents=torch.randn(images, 4, *size),
        make_scheduler=RealCustomScheduler,
        parts={},
    )


@pytest.mark.parametrize(
    "extent", [{}, {"subjects": 2}, {"images": 3}, {"subjects": 3, "images": 2, "size": (8, 12)}], ids=str
)
@torch.no_grad()
def test_exact_equals_plain(extent):
    from denoise import alternate, contenders_of, relative_difference

    scene = tiny_scene(**extent)
    contenders = contenders_of(scene, 5, ["plain", "exact"])
    before = dict(scene.unet.attn_processors)
    alternate(scene, contenders)
    assert relative_difference(contenders["exact"].latents, contenders["plain"].latents) <= 1e-3
    images = extent.get("images", 1)
    assert contenders["plain"].passes == contenders["exact"].passes == 15 * images
    assert (contenders["plain"].calls, contenders["exact"].calls) == (15, 10)
    assert scene.unet.attn_processors == before


def test_command_writes_its_numbers(tmp_path, monkeypatch):
    import denoise
    from scenes import SIZES

    scene = tiny_scene()
    monkeypatch.setattr(denoise, "build_scene", lambda *_: scene)
    target = tmp_path / "numbers.json"
    monkeypatch.setattr(
        sys, "argv", ["denoise.py", "--size", "miniature", "--steps", "2", "--device", "cpu", "--json", str(target)]
    )
    denoise.main()
    report = json.loads(target.read_text())
    assert report["max_rel_diff"] <= 1e-3
    assert report["ratio_exact"] == report["contenders"]["exact"]["ratio"] > 0
    assert set(report["contenders"]) == {"plain", "exact", "default", "fast", "turbo"}
    assert {"calls", "passes", "seconds_per_image", "ratio_low", "ratio_high", "peak_memory_mib"} <= set(
        report["contenders"]["exact"]
    )
    assert set(SIZES) == {"miniature", "medium", "sdxl"}

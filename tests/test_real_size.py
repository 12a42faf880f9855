"""The published size on the meta device: no weights, no memory, the published numbers."""

import importlib.util
import sys
from pathlib import Path

import pytest


def benchmark(name):
    file = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def real_size():
    yield from benchmark("real_size")


@pytest.fixture(scope="module")
def real_size_flux():
    yield from benchmark("real_size_flux")


PUBLISHED = {"deep": (59.6, 17, 729), "shallow": (114.8, 32, 1458), "cross-layer-cross-scale": (114.8, 32, 1458)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_numbers(real_size, kind):
    size = real_size.dry_run(kind)
    millions, tensors, tokens = PUBLISHED[kind]
    assert (size.layers, size.matrices) == (70, 140)
    assert round(size.matrix_parameters / 1e6, 1) == 340.8
    assert round(size.projector_parameters / 1e6, 1) == millions
    assert size.projector_tensors == tensors
    assert size.tokens == (tokens, 2048)
    assert set(size.keys) == {(1, tokens, 640), (1, tokens, 1280)}
    assert sum(width == 640 for _, _, width in size.keys) == 10
    if kind == "deep":
        assert round(size.release_parameters / 1e9, 3) == 2.968
    assert f"({tensors} tensors)" in real_size.report(size)


@pytest.mark.slow
def test_flux_and_uno(real_size_flux):
    size = real_size_flux.dry_run()
    assert size.parameters["transformer"] == 11_901_408_320
    assert size.parameters["lora"] == 956_301_312
    assert size.bf16["transformer"] == 2 * size.parameters["transformer"]
    assert 1.0 < size.fp8["transformer"] / size.parameters["transformer"] < 1.5  # modulations and norms stay bf16
    table = real_size_flux.report(size)
    documented = (Path(__file__).parents[1] / "docs" / "uno.md").read_text()
    assert all(line in documented for line in table.splitlines())

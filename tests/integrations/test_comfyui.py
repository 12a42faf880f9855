"""The ComfyUI nodes in a stand-in for ComfyUI: packages loaded from a folder, graphs in its API format."""

import importlib.util
import json
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import picture
from diffusers import ControlNetModel

from realcustom import Engine, Request, Subject
from realcustom.types import ControlImage

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
PRIMITIVES = {"STRING": str, "INT": int, "FLOAT": float, "BOOLEAN": bool}


def load_pack() -> ModuleType:
    """As ComfyUI loads a folder of custom_nodes."""
    name = "custom_nodes_realcustom"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class LoadImage:
    """Stand-in for ComfyUI's node: a picture by its number."""

    RETURN_TYPES, FUNCTION = ("IMAGE", "MASK"), "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("INT", {})}}

    def load(self, image):
        pixels = torch.from_numpy(np.asarray(picture(image), dtype=np.float32) / 255)[None]
        region = torch.zeros(1, *pixels.shape[1:3])
        region[:, :, : pixels.shape[2] // 2] = 1.0
        return pixels, region


NODES = {**load_pack().NODE_CLASS_MAPPINGS, "LoadImage": LoadImage}


def check_value(where: str, kind, options: dict, value) -> None:
    """What ComfyUI checks of a value typed into a node."""
    if isinstance(kind, list):
        assert value in kind, where
        return
    assert kind in PRIMITIVES, f"{where} takes a connection of type {kind}"
    number = PRIMITIVES[kind](value)
    if kind not in ("STRING", "BOOLEAN"):
        assert options.get("min", number) <= number <= options.get("max", number), where


def execute(graph: dict[str, dict], wanted: str, done: dict | None = None) -> tuple:
    """The outputs of a node of a graph in ComfyUI's API format, with its checks of values and of connections."""
    done = {} if done is None else done
    if wanted in done:
        return done[wanted]
    node = NODES[graph[wanted]["class_type"]]
    declared = node.INPUT_TYPES()
    types = {**declared["required"], **declared.get("optional", {})}
    given = graph[wanted]["inputs"]
    assert set(declared["required"]) <= set(given) <= set(types)
    values = {}
    for name, value in given.items():
        kind, options = types[name][0], types[name][1] if len(types[name]) > 1 else {}
        if isinstance(value, list):
            source, slot = value
            assert NODES[graph[source]["class_type"]].RETURN_TYPES[slot] == kind, f"{wanted}.{name}"
            values[name] = execute(graph, source, done)[slot]
        else:
            check_value(f"{wanted}.{name}", kind, options, value)
            values[name] = value
    outputs = getattr(node(), node.FUNCTION)(**values)
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(node.RETURN_TYPES)
    done[wanted] = outputs
    return outputs


def defaults(node: type) -> dict:
    """The values that a node starts with in the page."""
    entries = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}
    return {name: entry[1]["default"] for name, entry in entries.items() if len(entry) > 1 and "default" in entry[1]}


@pytest.fixture
def graph(tiny_model) -> dict[str, dict]:
    """Two subjects, one of them in the left half, two images."""
    generate = {**defaults(NODES["RealCustomGenerate"]), "model": ["1", 0], "subjects": ["5", 0]}
    generate |= {"prompt": "a dog and a robot", "num_images": 2, "steps": 2, "width": 96, "seed": 7}
    subject = {"strength": 0.8, "word": "dog", "image": ["2", 0], "region": ["2", 1]}
    load = {**defaults(NODES["RealCustomLoadModel"]), "model": str(tiny_model), "device": "cpu"}
    return {
        "1": {"class_type": "RealCustomLoadModel", "inputs": load},
        "2": {"class_type": "LoadImage", "inputs": {"image": 0}},
        "3": {"class_type": "LoadImage", "inputs": {"image": 1}},
        "4": {"class_type": "RealCustomSubject", "inputs": subject},
        "5": {
            "class_type": "RealCustomSubject",
            "inputs": {"word": "robot", "image": ["3", 0], "strength": 1.0, "subjects": ["4", 0]},
        },
        "6": {"class_type": "RealCustomGenerate", "inputs": generate},
    }


def test_every_node_is_complete():
    pack = load_pack()
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    for node in pack.NODE_CLASS_MAPPINGS.values():
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert callable(getattr(node, node.FUNCTION))
        assert node.CATEGORY


def test_a_graph_makes_the_engines_images(graph, tiny_model):
    images, masks, settings = execute(graph, "6")
    assert [entry["request"]["seed"] for entry in json.loads(settings)] == [7, 8]
    assert (images.shape, images.dtype) == ((2, 64, 96, 3), torch.float32)
    assert (masks.shape, masks.dtype) == ((2, 64, 96), torch.float32)
    region = np.zeros((48, 48), dtype=np.float32)
    region[:, :24] = 1.0
    subjects = {"dog": Subject(picture(0), strength=0.8, region=region), "robot": picture(1)}
    request = Request(prompt="a dog and a robot", subjects=subjects, num_images=2, steps=2, width=96, seed=7)
    expected = Engine.load(str(tiny_model), device="cpu").run(request)
    for image, tensor in zip(expected.images, images, strict=True):
        assert np.array_equal(np.asarray(image), np.rint(tensor.numpy() * 255).astype(np.uint8))
    graph["6"]["inputs"]["mask_word"] = "dog"
    of_dog = execute(graph, "6")[1]
    assert of_dog[:, :, :40].max() > 0
    assert of_dog[:, :, 56:].max() == 0, "the dog may stand in the left half only"
    assert (masks >= of_dog).all()


def test_a_batch_of_images_is_one_subject(graph):
    batch = torch.cat([LoadImage().load(0)[0], LoadImage().load(1)[0]])
    (subjects,) = NODES["RealCustomSubject"]().add(word=" dog ", image=batch, strength=1)
    assert len(subjects["dog"].images) == 2
    with pytest.raises(ValueError, match='"dog" is a subject already'):
        NODES["RealCustomSubject"]().add(word="dog", image=batch, strength=1, subjects=subjects)


def test_without_subjects_it_is_plain_text_to_image(graph):
    del graph["6"]["inputs"]["subjects"]
    images, masks, _ = execute(graph, "6")
    assert images.shape == (2, 64, 96, 3)
    assert masks.max() == 0


def test_a_picture_with_a_hole_under_control(graph, tiny_model, tmp_path):
    torch.manual_seed(4)
    network = ControlNetModel.from_unet(Engine.load(str(tiny_model), device="cpu").pipeline.unet)
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.2)
    network.save_pretrained(tmp_path / "net")
    graph["1"]["inputs"]["controlnet"] = f"outline={tmp_path / 'net'}\n"
    graph["7"] = {
        "class_type": "RealCustomPicture",
        "inputs": {**defaults(NODES["RealCustomPicture"]), "image": ["2", 0], "hole": ["2", 1], "feather": 2},
    }
    control = {**defaults(NODES["RealCustomControl"]), "image": ["3", 0], "name": "outline", "scale": 0.5}
    graph["8"] = {"class_type": "RealCustomControl", "inputs": control}
    graph["6"]["inputs"] |= {"picture": ["7", 0], "controls": ["8", 0], "width": 0, "num_images": 1}
    images, _, settings = execute(graph, "6")
    record = json.loads(settings)[0]["request"]
    assert (record["denoising"], record["feather"], record["padding"]) == (1.0, 2, None)
    assert [(one["name"], one["scale"]) for one in record["controls"]] == [("outline", 0.5)]
    made, old = np.rint(images[0].numpy() * 255).astype(np.uint8), np.asarray(picture(0))
    assert made.shape == old.shape
    assert np.array_equal(made[:, 24:], old[:, 24:])
    assert not np.array_equal(made[:, :24], old[:, :24])
    del graph["6"]["inputs"]["controls"]
    assert not torch.equal(execute(graph, "6")[0], images)


def test_a_batch_is_no_picture_to_start_from():
    batch = torch.cat([LoadImage().load(0)[0], LoadImage().load(1)[0]])
    with pytest.raises(ValueError, match="from one picture"):
        NODES["RealCustomPicture"]().take(image=batch, denoising=0.5)


def test_the_seed_minus_one_is_drawn_at_every_run(graph):
    graph["6"]["inputs"] |= {"seed": -1, "num_images": 1}
    first, second = (json.loads(execute(graph, "6")[2])[0]["request"]["seed"] for _ in range(2))
    assert first != second
    assert min(first, second) >= 0
    node = NODES["RealCustomGenerate"]
    assert node.IS_CHANGED(seed=3, prompt="a dog") == node.IS_CHANGED(seed=3, prompt="a dog")
    assert node.IS_CHANGED(seed=-1) != node.IS_CHANGED(seed=-1), "ComfyUI makes it again"


def test_a_black_image_says_why(graph, black_model, caplog):
    graph["1"]["inputs"]["model"] = str(black_model)
    images, _, settings = execute(graph, "6")
    assert images.max() == 0
    assert [entry["flagged"] for entry in json.loads(settings)] == [True, True]
    assert "Image 1 is black: the model's safety checker refused it." in caplog.text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "a cat"}, "does not stand in the prompt"),
        ({"prompt": ""}, "The prompt is empty"),
        ({"width": 60}, "multiple of 8"),
        ({"mask_word": "cat"}, 'There is no subject "cat"'),
    ],
)
def test_bad_input_is_one_sentence(graph, changes, sentence):
    graph["6"]["inputs"].update(changes)
    with pytest.raises(ValueError, match=sentence):
        execute(graph, "6")


def test_progress_and_the_cancel_button_are_comfyuis(graph, monkeypatch):
    seen = []

    class ProgressBar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value, total):
            seen.append((value, total))

    class Interrupted(Exception):
        pass

    def interrupt():
        if len(seen) == 3:
            raise Interrupted

    monkeypatch.setitem(sys.modules, "comfy.utils", SimpleNamespace(ProgressBar=ProgressBar))
    monkeypatch.setitem(
        sys.modules, "comfy.model_management", SimpleNamespace(throw_exception_if_processing_interrupted=interrupt)
    )
    with pytest.raises(Interrupted):
        execute(graph, "6")
    assert seen == [(1, 4), (2, 4), (3, 4)]


def test_the_example_fits_the_nodes():
    example = json.loads((FOLDER / "example.json").read_text())
    for name, entry in example.items():
        node = NODES[entry["class_type"]] if entry["class_type"].startswith("RealCustom") else None
        for field, value in entry["inputs"].items() if node else ():
            types = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}
            if not isinstance(value, list):
                check_value(f"{name}.{field}", types[field][0], types[field][1], value)


def test_every_field_of_a_request_has_an_input():
    elsewhere = {"subjects", "image", "denoising", "hole", "feather", "padding", "controls"}
    inputs = NODES["RealCustomGenerate"].INPUT_TYPES()
    names = {*inputs["required"], *inputs["optional"]}
    assert {entry.name for entry in fields(Request)} - elsewhere <= names
    taken = NODES["RealCustomPicture"].INPUT_TYPES()
    assert elsewhere - {"subjects", "controls"} <= {*taken["required"], *taken["optional"]}
    control = NODES["RealCustomControl"].INPUT_TYPES()
    assert {entry.name for entry in fields(ControlImage)} <= set(control["required"])


def test_weights_of_a_subjects_images():
    node = NODES["RealCustomSubject"]()
    images = torch.zeros(2, 8, 8, 3)
    (subjects,) = node.add("dog", images, 1.0, weights="1, 0.5")
    assert subjects["dog"].weights == (1.0, 0.5)
    with pytest.raises(ValueError, match="numbers with commas"):
        node.add("dog", images, 1.0, weights="much")

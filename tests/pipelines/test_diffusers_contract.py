"""What users of diffusers expect of a pipeline, with and without a subject: offload, schedulers, storage, callbacks."""

import inspect
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import is_torchsde_available
from torch import nn

from realcustom import MaskSettings, RealCustomPipeline, RealCustomXLPipeline, Subject

PROMPT = "a robot and a dog with the pink hat in the snow"
FAMILIES = {
    "sd": (RealCustomPipeline, StableDiffusionPipeline, SDCFGCutoffCallback),
    "sdxl": (RealCustomXLPipeline, StableDiffusionXLPipeline, SDXLCFGCutoffCallback),
}
SCHEDULERS = [member.name for member in KarrasDiffusionSchedulers]
COMPONENTS = ("text_encoder", "text_encoder_2", "reference_encoder", "adapter", "unet", "vae")


@pytest.fixture(params=["sd", "sdxl"])
def family(request):
    return request.param


@pytest.fixture
def pipe(family, request):
    return request.getfixturevalue("tiny_pipeline" if family == "sd" else "tiny_xl_pipeline")


@pytest.fixture(params=["text", "subject"])
def subjects(request, reference_image):
    return {"dog": reference_image} if request.param == "subject" else None


def run(pipe, subjects, prompt=PROMPT, **call):
    generator = call.pop("generator", torch.Generator().manual_seed(1))
    return pipe(prompt, subjects, generator=generator, num_inference_steps=3, output_type="pt", **call).images


def parts_of(pipe):
    return [part for name in COMPONENTS if (part := getattr(pipe, name, None)) is not None]


# Offload


@contextmanager
def trapped(component: nn.Module, units: list[nn.Module]):
    """A layer of the component runs only while the unit that holds it runs: its weights lie elsewhere otherwise."""
    active = set()
    with ExitStack() as stack:

        def watch(unit):
            hooks = (
                unit.register_forward_pre_hook(lambda *_: active.add(unit)),
                unit.register_forward_hook(lambda *_: active.discard(unit), always_call=True),
            )
            for hook in hooks:
                stack.callback(hook.remove)

        def trap(layer, unit):
            def check(*_):
                assert unit in active, f"{type(layer).__name__} runs while its weights are offloaded"

            stack.callback(layer.register_forward_pre_hook(check).remove)

        for unit in units:
            watch(unit)
            for layer in unit.modules():
                if next(layer.parameters(recurse=False), None) is not None and layer is not unit:
                    trap(layer, unit)
        yield


def blocks_of(component):
    return [block for child in component.children() for block in (child if isinstance(child, nn.ModuleList) else [])]


@pytest.mark.parametrize("unit", ["model", "block"])
def test_no_layer_runs_while_its_weights_are_offloaded(pipe, subjects, unit):
    expected = run(pipe, subjects)
    with ExitStack() as stack:
        for part in (pipe.unet, pipe.adapter, pipe.reference_encoder):
            stack.enter_context(trapped(part, [part] if unit == "model" else blocks_of(part)))
        pipe.feature_cache.clear()
        assert torch.equal(run(pipe, subjects), expected)


def test_sequential_offload_is_the_same_image(pipe, subjects, reference_image, monkeypatch):
    """Weights on the meta device until their layer runs, as diffusers does it on a GPU; weighted images, too."""
    subjects = subjects and {"dog": Subject((reference_image, reference_image), weights=(1.0, 0.5))}
    expected = run(pipe, subjects)
    pipe.feature_cache.clear()
    for part in parts_of(pipe):
        cpu_offload(part, torch.device("cpu"), offload_buffers=False)
    assert pipe.unet.device.type == "meta"
    assert torch.equal(run(pipe, subjects), expected)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offload_is_the_same_image(pipe, subjects, offload_type):
    expected = run(pipe, subjects)
    options = {"onload_device": torch.device("cpu"), "offload_type": offload_type}
    if offload_type == "block_level":
        options["num_blocks_per_group"] = 1
    for part in (pipe.unet, pipe.adapter):
        part.enable_group_offload(**options)
    assert torch.equal(run(pipe, subjects), expected)


# Storage


def test_float8_storage_equals_dequantised_weights(pipe, subjects):
    quantised = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    pipe.unet.enable_layerwise_casting(**quantised)
    stored = run(pipe, subjects)
    assert stored.isfinite().all()
    family = type(pipe)
    weights = {name: value.float() for name, value in pipe.unet.state_dict().items()}
    fresh = type(pipe.unet).from_config(pipe.unet.config)
    fresh.load_state_dict(weights)
    parts = {**pipe.components, "unet": fresh.eval()}
    plain = family(**parts)
    plain.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(plain, subjects), stored, rtol=0, atol=1e-5)


class StoredLinear(nn.Module):
    """A linear layer whose weight is stored in 8 bits, as quantisation libraries do it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.scale = linear.weight.abs().amax() / 127
        stored = (linear.weight / self.scale).round().to(torch.int8).view(torch.uint8)
        self.weight = nn.Parameter(stored, requires_grad=False)

    def dequantised(self) -> torch.Tensor:
        return self.weight.view(torch.int8).float() * self.scale

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values, self.dequantised(), self.bias)


def test_integer_storage_equals_dequantised_weights(pipe, subjects):
    layers = [(module, name) for module in pipe.unet.modules() for name in ("to_q", "to_k", "to_v")]
    layers = [(module, name) for module, name in layers if isinstance(getattr(module, name, None), nn.Linear)]
    for module, name in layers:
        setattr(module, name, StoredLinear(getattr(module, name)))
    stored = run(pipe, subjects)
    for module, name in layers:
        layer = getattr(module, name)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data, plain.bias = layer.dequantised(), layer.bias
        setattr(module, name, plain)
    torch.testing.assert_close(run(pipe, subjects), stored, rtol=0, atol=1e-5)


# Schedulers


# Its noise is drawn by a library of its own, without which diffusers itself refuses it.
LACKING = {"DPMSolverSDEScheduler"} if not is_torchsde_available() else set()


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name not in LACKING])
def test_every_scheduler_of_diffusers(tiny_pipeline, reference_image, scheduler):
    pipe = tiny_pipeline
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    seen = []

    def callback(pipeline, evaluation, timestep, tensors):
        seen.append(evaluation)
        return {}

    bars = []
    pipe.progress_bar = lambda total: _Bar(total, bars)
    out = pipe(
        PROMPT, {"dog": reference_image}, num_inference_steps=4, generator=torch.Generator().manual_seed(1),
        output_type="pt", callback_on_step_end=callback,
    )  # fmt: skip
    assert out.images.isfinite().all()
    assert seen == list(range(pipe.num_timesteps))
    assert bars[0].count == bars[0].total == 4


class _Bar:
    """A progress bar that counts."""

    def __init__(self, total, bars):
        self.total, self.count = total, 0
        bars.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self):
        self.count += 1


def test_the_early_stop_counts_steps_not_evaluations(tiny_pipeline, reference_image):
    from realcustom.guidance.mask import Updates

    pipe = tiny_pipeline
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    settings = MaskSettings(updates=Updates(until=2))
    masks = pipe(PROMPT, {"dog": reference_image}, num_inference_steps=4, mask=settings).masks["dog"]
    changes = [not torch.equal(before, after) for before, after in pairwise(masks)]
    assert len(masks) == 7
    assert changes == [True, True, True, False, False, False]


# Guidance


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_no_guidance_up_to_one(pipe, reference_image, scale):
    batches = []
    pipe.unet.register_forward_pre_hook(lambda module, arguments: batches.append(arguments[0].shape[0]))
    images = run(pipe, {"dog": reference_image}, guidance_scale=scale)
    assert set(batches) == {1}
    assert torch.equal(images, run(pipe, {"dog": reference_image}, guidance_scale=1.0))
    off = Subject((reference_image,), strength=0.0)
    assert not torch.equal(images, run(pipe, {"dog": off}, guidance_scale=scale))


def test_a_guidance_distilled_unet_is_guided_once(tiny_components, reference_image):
    unet = tiny_components["unet"]
    torch.manual_seed(0)
    tiny_components["unet"] = type(unet).from_config(unet.config, time_cond_proj_dim=8).eval()
    pipe = RealCustomPipeline(**tiny_components)
    pipe.set_progress_bar_config(disable=True)
    batches = []
    pipe.unet.register_forward_pre_hook(lambda module, arguments: batches.append(arguments[0].shape[0]))
    high = run(pipe, {"dog": reference_image}, guidance_scale=8.0)
    assert set(batches) == {1}
    assert not torch.equal(high, run(pipe, {"dog": reference_image}, guidance_scale=4.0))


def test_guidance_rescale_changes_the_image_and_needs_guidance(pipe, reference_image):
    subjects = {"dog": reference_image}
    plain = run(pipe, subjects, guidance_scale=5.0)
    assert not torch.equal(run(pipe, subjects, guidance_scale=5.0, guidance_rescale=0.7), plain)
    unguided = run(pipe, subjects, guidance_scale=1.0)
    assert torch.equal(run(pipe, subjects, guidance_scale=1.0, guidance_rescale=0.7), unguided)


# Callbacks


def test_a_callback_sees_every_tensor_it_may_ask_for(pipe, reference_image):
    names = [name for name in pipe._callback_tensor_inputs if name != "negative_prompt_embeds"]
    seen = {}

    def callback(pipeline, step, timestep, tensors):
        seen.update(tensors)
        return {}

    run(
        pipe, {"dog": reference_image}, guidance_scale=4.0,
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names,
    )  # fmt: skip
    assert set(seen) == set(names)
    assert all(isinstance(value, torch.Tensor) for value in seen.values())
    assert seen["prompt_embeds"].shape[0] == 2


def test_the_official_cutoff_callback_ends_guidance(family, pipe, subjects):
    batches = []
    pipe.unet.register_forward_pre_hook(lambda module, arguments: batches.append(arguments[0].shape[0]))
    cutoff = FAMILIES[family][2](cutoff_step_ratio=None, cutoff_step_index=0)
    run(pipe, subjects, guidance_scale=4.0, callback_on_step_end=cutoff)
    generation = batches[1::2] if subjects else batches
    assert generation == [2, 1, 1]


@pytest.mark.parametrize("name", ["prompt_embeds", "guidance"])
def test_what_a_callback_returns_changes_the_image(pipe, reference_image, name):
    def callback(pipeline, step, timestep, tensors):
        if name == "guidance":
            pipeline._guidance_scale = 9.0
            return {}
        return {"prompt_embeds": torch.zeros_like(tensors["prompt_embeds"])}

    plain = run(pipe, {"dog": reference_image}, guidance_scale=3.0)
    changed = run(
        pipe, {"dog": reference_image}, guidance_scale=3.0,
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )  # fmt: skip
    assert not torch.equal(changed, plain)


def test_unknown_callback_tensors_are_refused_before_the_run(pipe, reference_image):
    with pytest.raises(ValueError, match="noise_pred"):
        run(
            pipe, {"dog": reference_image},
            callback_on_step_end=lambda *_: {}, callback_on_step_end_tensor_inputs=["noise_pred"],
        )  # fmt: skip


# Construction and signature


def test_from_pipe_there_and_back(family, pipe, reference_image):
    ours, stock = FAMILIES[family][:2]
    expected = run(pipe, {"dog": reference_image})
    plain = stock.from_pipe(pipe)
    again = ours.from_pipe(plain, adapter=pipe.adapter, reference_encoder=pipe.reference_encoder)
    again.set_progress_bar_config(disable=True)
    assert again.unet is pipe.unet
    assert torch.equal(run(again, {"dog": reference_image}), expected)


def test_the_signature_is_stocks_and_ours(family):
    ours, stock = (inspect.signature(cls.__call__).parameters for cls in FAMILIES[family][:2])
    missing = [name for name, each in stock.items() if name not in ours and each.kind is not each.VAR_KEYWORD]
    assert missing == []
    assert all(ours[name].default == each.default for name, each in stock.items() if name in ours and name != "self")
    assert {"subjects", "mask", "image_guidance_scale", "guidance_interval", "keep_share"} <= set(ours)


def test_unknown_arguments_and_those_that_exclude_subjects_are_refused(pipe, reference_image):
    with pytest.raises(TypeError, match="strengh"):
        run(pipe, {"dog": reference_image}, strengh=1.0)
    with pytest.raises(ValueError, match="prompt_embeds"):
        run(pipe, {"dog": reference_image}, prompt_embeds=torch.zeros(1, 77, 32))


def test_a_bare_call_is_stocks(family, pipe):
    ours = (*COMPONENTS[2:4], "controlnet")
    stock = FAMILIES[family][1](**{name: part for name, part in pipe.components.items() if name not in ours})
    stock.set_progress_bar_config(disable=True)
    call = {"generator": torch.Generator().manual_seed(1), "output_type": "np"}
    ours = pipe("a dog", **call).images
    call["generator"] = torch.Generator().manual_seed(1)
    assert np.array_equal(ours, stock("a dog", **call).images)


def test_a_second_use_at_the_same_time_is_refused(pipe, reference_image):
    before = dict(pipe.unet.attn_processors)

    def again(pipeline, step, timestep, tensors):
        run(pipeline, {"dog": reference_image})

    with pytest.raises(ValueError, match="another call"):
        run(pipe, {"dog": reference_image}, callback_on_step_end=again)
    assert pipe.unet.attn_processors == before
    assert run(pipe, {"dog": reference_image}).isfinite().all()


def test_a_ragged_batch_is_its_single_calls(pipe, reference_image):
    prompts = ["a dog on the beach", "a robot and a dog in the snow"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = run(pipe, {"dog": reference_image}, prompts, generator=generators)
    for row, prompt in enumerate(prompts):
        alone = run(pipe, {"dog": reference_image}, prompt, generator=torch.Generator().manual_seed(row + 1))
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-4)

"""What the SD v1.5 and SDXL pipelines share: loading, and the call from encoded prompt to images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import TextualInversionLoaderMixin

from realcustom.encoders.cache import FeatureCache
from realcustom.encoders.image import ClipReferenceEncoder, ReferenceEncoder
from realcustom.encoders.target_word import check_prompt_length
from realcustom.guidance.guidance_scale import EVERYWHERE, Guidance, Interval, SingleScale, TextAndImageScale
from realcustom.guidance.mask import MaskSettings
from realcustom.hub.bundled import model_folder
from realcustom.models.adapter import GUIDANCE, RealCustomAdapter
from realcustom.models.attention import installed
from realcustom.models.compiled import compile_blocks
from realcustom.pipelines.branches import Conditions, Text, denoise, mask_grid
from realcustom.pipelines.output import RealCustomOutput, decode_latents
from realcustom.pipelines.subjects import reference_functions, regions_of
from realcustom.types import Subject

OWN_COMPONENTS = {"adapter": RealCustomAdapter, "reference_encoder": ReferenceEncoder}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One generation, prompt already encoded.

    Attributes:
        rows: word -> subject, at least one of each, for every prompt of the batch, or one entry for all.
        text, negative: encoded prompts, B rows each.
        token_weights: (B, S, T).
        height, width: of the images in pixels.
        steps: number of denoising steps.
        guidance: which formula combines the predictions.
        mask: settings of the guidance mask.
        keep_share: gamma_num of RealCustom's scoring module.
        generator, latents, eta, output_type: as in diffusers' pipelines.
        unet_kwargs: passed to every U-Net call.
        on_step, on_step_tensors: diffusers' callback_on_step_end and the names it wants.
    """

    rows: list[dict[str, Subject]]
    text: Text
    negative: Text | None
    token_weights: torch.Tensor
    height: int
    width: int
    steps: int
    guidance: Guidance
    mask: MaskSettings
    keep_share: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: torch.Tensor | None
    eta: float
    output_type: str
    unet_kwargs: dict
    on_step: Callable | None
    on_step_tensors: list[str]


class RealCustomMixin:
    """Adds subjects to a stock diffusers text-to-image pipeline."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a pipeline from a folder, a hub id, or a bundled model's name.

        Args:
            pretrained_model_name_or_path: a saved RealCustom pipeline, or any stock base model of the family
                together with `adapter` and `reference_encoder`.
            kwargs: as diffusers' `from_pretrained`; `adapter` and `reference_encoder` may be folders or hub ids.

        Raises:
            ValueError: the adapter does not fit the base model.
        """
        pipe = super().from_pretrained(model_folder(pretrained_model_name_or_path), **_loaded_components(kwargs))
        return _checked(pipe)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path, **kwargs):
        """Load the base from one checkpoint file; `adapter` and `reference_encoder` as in `from_pretrained`."""
        return _checked(super().from_single_file(pretrained_model_link_or_path, **_loaded_components(kwargs)))

    @property
    def feature_cache(self) -> FeatureCache:
        """Features of the references used last."""
        cache = self.__dict__.get("_feature_cache")
        if cache is None or cache.encoder is not self.reference_encoder:
            cache = self.__dict__["_feature_cache"] = FeatureCache(self.reference_encoder)
        return cache

    def guidance_scales(
        self, guidance_scale: float | None, image_guidance_scale: float | None
    ) -> tuple[float, float | None]:
        """Both scales of a call: as given, or the adapter's own where neither is; an image scale given alone comes with
        the adapter's text scale, a guidance scale given alone is the only one."""
        own = GUIDANCE if self.adapter is None else self.adapter.config.guidance
        if guidance_scale is None and image_guidance_scale is None:
            return tuple(own)
        return own[0] if guidance_scale is None else guidance_scale, image_guidance_scale

    @property
    def default_mask(self) -> MaskSettings:
        """The mask of calls that give none: everything by default but the scope, which is the adapter's own."""
        return MaskSettings() if self.adapter is None else MaskSettings(scope=self.adapter.config.scope)

    def compile_blocks(self, **options) -> None:
        """Run the U-Net's transformer blocks through `torch.compile`; see `realcustom.models.compiled`."""
        compile_blocks(self.unet, **options)

    def texts_for(self, prompt, tokenizer, what: str = "prompt") -> list[str]:
        """The prompts as the tokenizer sees them: a list, multi-vector textual inversion tokens spelled out. `what`
        names them in an error.

        Raises:
            ValueError: a prompt is longer than the model reads.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if isinstance(self, TextualInversionLoaderMixin):
            prompts = [self.maybe_convert_prompt(text, tokenizer) for text in prompts]
        for text in prompts:
            check_prompt_length(tokenizer, text, what)
        return prompts

    def check_ready(self, subjects: Mapping, guidance_scale: float, image_guidance_scale: float | None) -> None:
        """Refuse what cannot run with subjects.

        Raises:
            ValueError: the adapter or the encoder is missing, or the numbers make no sense.
        """
        if not subjects:
            return
        for name in OWN_COMPONENTS:
            if getattr(self, name) is None:
                raise ValueError(f"The pipeline has no {name}, which subjects need: load it with {name}=FOLDER.")
        self.adapter.check_unet(self.unet)
        if self.adapter.scoring is not None and len(subjects) > 1:
            counts = {len(subject.images) for subject in subjects.values()}
            if len(counts) > 1:
                raise ValueError("With a RealCustom scoring adapter every subject needs the same number of images.")
        for name, scale in (("guidance_scale", guidance_scale), ("image_guidance_scale", image_guidance_scale)):
            if scale is not None and not (scale == scale and 0 <= scale < float("inf")):
                raise ValueError(f"{name} is {scale}; it is a finite number from 0 on.")

    def _unet_kwargs(self, guidance_scale: float, embeds: torch.Tensor) -> dict:
        """What every U-Net call gets besides its input: LoRA scale, and the guidance scale of distilled U-Nets."""
        kwargs = {"cross_attention_kwargs": self.cross_attention_kwargs}
        if self.unet.config.time_cond_proj_dim is not None:
            scale = torch.tensor([guidance_scale - 1.0])
            embedding = self.get_guidance_scale_embedding(scale, embedding_dim=self.unet.config.time_cond_proj_dim)
            kwargs["timestep_cond"] = embedding.to(embeds)
        return kwargs

    def generate(self, call: Call) -> RealCustomOutput:
        """Reference features -> guidance branch -> mask -> generation branch -> images."""
        device = self._execution_device
        batch, dtype = call.text.embeds.shape[0], call.text.embeds.dtype
        self.scheduler.set_timesteps(call.steps, device=device)
        timesteps = self.scheduler.timesteps
        latents = self.prepare_latents(
            batch, self.unet.config.in_channels, call.height, call.width, dtype, device, call.generator, call.latents
        )
        latent_size = tuple(latents.shape[-2:])
        rows = [list(row.values()) for row in call.rows for _ in range(batch // len(call.rows))]
        rows = rows if len(call.rows) > 1 else rows[:1]
        regions = regions_of(rows, mask_grid(self.unet, latent_size))
        reference, negative_reference, keep = reference_functions(
            self.adapter, self.feature_cache, rows, call.text.embeds, call.keep_share
        )
        conditions = Conditions(
            text=call.text,
            negative=call.negative,
            token_weights=call.token_weights.to(device),
            strengths=torch.tensor([[subject.strength for subject in row] for row in rows], device=device),
            regions=None if regions is None else regions.to(device),
            reference=reference,
            negative_reference=negative_reference,
            reference_keep=keep,
            unet_kwargs=call.unet_kwargs,
        )
        step_kwargs = self.prepare_extra_step_kwargs(call.generator, call.eta)
        masks = []
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as bar, torch.no_grad():
            with installed(self.unet, latent_size) as attention:
                loop = denoise(
                    self.unet,
                    self.scheduler,
                    attention,
                    latents,
                    timesteps,
                    conditions,
                    call.guidance,
                    call.mask,
                    step_kwargs,
                )
                for step in loop:
                    latents = self._after_step(step, call)
                    masks.append(step.masks)
                    bar.update()
                    if self.interrupt:
                        break
            stacked = torch.stack(masks).float().cpu()
            return self._finish(latents, _named(stacked, call.rows), call)

    def _after_step(self, step, call: Call) -> torch.Tensor:
        if call.on_step is not None:
            offered = {"latents": step.latents, "masks": step.masks}
            wanted = {name: offered[name] for name in call.on_step_tensors if name in offered}
            returned = call.on_step(self, step.index, step.timestep, wanted) or {}
            step.latents = returned.get("latents", step.latents)
        return step.latents

    def _finish(self, latents: torch.Tensor, masks: dict | list[dict], call: Call) -> RealCustomOutput:
        flagged = None
        if call.output_type == "latent":
            images = latents
        else:
            images = decode_latents(self.vae, latents)
            if getattr(self, "safety_checker", None) is not None:
                images, flagged = self.run_safety_checker(images, images.device, call.text.embeds.dtype)
            if getattr(self, "watermark", None) is not None:
                images = self.watermark.apply_watermark(images)
            normalise = [True] * len(images) if flagged is None else [not flag for flag in flagged]
            images = self.image_processor.postprocess(
                images.detach(), output_type=call.output_type, do_denormalize=normalise
            )
        self.maybe_free_model_hooks()
        return RealCustomOutput(images=images, masks=masks, nsfw_content_detected=flagged)


def _named(masks: torch.Tensor, rows: list[dict]) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
    """Masks (steps, B, S, G, g) by target word: for the whole batch, or for each image where words differ."""
    if len(rows) == 1:
        return {word: masks[:, :, index] for index, word in enumerate(rows[0])}
    each = masks.shape[1] // len(rows)
    return [
        {word: masks[:, image : image + 1, index] for index, word in enumerate(rows[image // each])}
        for image in range(masks.shape[1])
    ]


def choose_guidance(
    guidance_scale: float, image_guidance_scale: float | None, interval: Interval = EVERYWHERE
) -> Guidance:
    """RealCustom Eq. 13 when an image scale is given, else the release's single scale.

    Raises:
        ValueError: the interval is empty or not within 0 and 1.
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"The guidance interval is {low} to {high}; it lies within 0 and 1, the lower end first.")
    if image_guidance_scale is None:
        return SingleScale(guidance_scale, (low, high))
    return TextAndImageScale(guidance_scale, image_guidance_scale, (low, high))


def callback_tensors(callback, names: Sequence[str]) -> list[str]:
    """The tensors a callback wants: a `PipelineCallback` says so itself."""
    return list(callback.tensor_inputs if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)) else names)


def _loaded_components(kwargs: dict) -> dict:
    """Replace folders and hub ids of our own components by the loaded objects."""
    kwargs = dict(kwargs)
    for name, kind in OWN_COMPONENTS.items():
        source = kwargs.get(name)
        if source is not None and not isinstance(source, torch.nn.Module):
            dtype = {"torch_dtype": kwargs["torch_dtype"]} if "torch_dtype" in kwargs else {}
            dtype = {"dtype": kwargs["dtype"]} if "dtype" in kwargs else dtype
            kwargs[name] = _component_class(kind, source).from_pretrained(source, **dtype)
    return kwargs


def _component_class(kind: type, source) -> type:
    """RealCustom's CLIP encoder says so in its configuration."""
    if kind is ReferenceEncoder and ClipReferenceEncoder.load_config(source)["_class_name"] == "ClipReferenceEncoder":
        return ClipReferenceEncoder
    return kind


def _checked(pipe):
    if pipe.adapter is not None and pipe.unet is not None:
        pipe.adapter.check_unet(pipe.unet)
    return pipe

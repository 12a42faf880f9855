"""What the SD v1.5 and SDXL pipelines share: loading, and one way from a call to its images.

A family (`realcustom.pipelines.sd15`, `.sdxl`) says how its text is encoded; everything else is `RealCustomMixin.draw`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

from realcustom.encoders.cache import FeatureCache
from realcustom.encoders.prompts import PromptStyle, plain_text
from realcustom.encoders.target_word import check_prompt_length
from realcustom.guidance.guidance_scale import choose_guidance
from realcustom.guidance.mask import MaskSettings
from realcustom.guidance.records import mask_settings
from realcustom.hub.settings import CallDefaults
from realcustom.models.adapter import GUIDANCE
from realcustom.models.backbone import Text
from realcustom.models.compiled import compile_blocks
from realcustom.models.unet import UNetBackbone
from realcustom.pipelines.callbacks import StepTensors
from realcustom.pipelines.canvas import Canvas, Start, canvas_of, shortened, start_of, start_size, within
from realcustom.pipelines.controls import control_of
from realcustom.pipelines.denoise import Conditions, References, Sampling, denoise, unmasked
from realcustom.pipelines.loading import OWN_COMPONENTS, LoadingMixin
from realcustom.pipelines.output import RealCustomOutput, decode_latents, named_masks
from realcustom.pipelines.reading import style_of
from realcustom.pipelines.references import fixed_references, scored_references
from realcustom.pipelines.signature import OF_OUR_LOOP, OWN_ARGUMENTS, says
from realcustom.pipelines.subjects import as_rows, regions_of, token_weights
from realcustom.types import Subject

PLAIN = PromptStyle()
STEPS = 25  # of a call with subjects that names none; the papers' and the release's number


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a call reads.

    Attributes:
        texts: per prompt of the batch what each tokenizer reads, textual inversions spelled out.
        rows: word -> subject, at least one of each, for every prompt, or one entry for all.
        images: number of images of each prompt.
        chunked: whether the texts are read in chunks.
    """

    texts: list[tuple[str, ...]]
    rows: list[dict[str, Subject]]
    images: int
    chunked: bool = False


class RealCustomMixin(LoadingMixin):
    """Adds subjects, start pictures and controls to a stock diffusers text-to-image pipeline."""

    starts_from_pictures = True

    @property
    def call_defaults(self) -> CallDefaults:
        """What calls take that say nothing themselves: the settings that came with the adapter."""
        return CallDefaults.from_dict(self.config.get("defaults"))

    @property
    def default_steps(self) -> int:
        """Denoising steps of calls with subjects that name none."""
        return self.call_defaults.steps or STEPS

    @property
    def feature_cache(self) -> FeatureCache:
        """Features of the references used last."""
        cache = self.__dict__.get("_feature_cache")
        if cache is None or cache.encoder is not self.reference_encoder:
            cache = self.__dict__["_feature_cache"] = FeatureCache(self.reference_encoder)
        return cache

    @property
    def tokenizers(self) -> list:
        """The tokenizers that read the prompt: one, or SDXL's two."""
        both = (self.tokenizer, getattr(self, "tokenizer_2", None))
        return [tokenizer for tokenizer in both if tokenizer is not None]

    def guidance_scales(
        self, guidance_scale: float | None, image_guidance_scale: float | None
    ) -> tuple[float, float | None]:
        """Both scales of a call with subjects: as given, or the adapter's own where neither is; an image scale given
        alone comes with the adapter's text scale, a guidance scale given alone is the only one."""
        own = GUIDANCE if self.adapter is None else self.adapter.config.guidance
        if self.call_defaults.guidance_scale is not None:
            own = (self.call_defaults.guidance_scale, self.call_defaults.image_guidance_scale)
        if guidance_scale is None and image_guidance_scale is None:
            return tuple(own)
        return own[0] if guidance_scale is None else guidance_scale, image_guidance_scale

    @property
    def default_mask(self) -> MaskSettings:
        """The mask of calls that give none: everything by default but the adapter's own scope and what the settings
        that came with it change.

        Raises:
            ValueError: they cannot be used.
        """
        scope = {} if self.adapter is None else {"scope": self.adapter.config.scope}
        return mask_settings(self.call_defaults.mask or {}, **scope)

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained at."""
        side = self.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def backbone(self, options: Mapping[str, Any] | None = None) -> UNetBackbone:
        """The network behind the seam; `options` are passed to every call of it."""
        return UNetBackbone(self.unet, options)

    def compile_blocks(self, **options) -> None:
        """Run the U-Net's transformer blocks through `torch.compile`; see `realcustom.models.compiled`."""
        compile_blocks(self.unet, **options)

    def texts_for(self, prompt, tokenizer, name: str = "prompt", style: PromptStyle = PLAIN) -> list[str]:
        """The prompts as the tokenizer sees them: a list, multi-vector textual inversion tokens spelled out, without
        the marks of weights.

        Raises:
            ValueError: a prompt is longer than the model reads, or its weights do not close; the sentence says which by
                `name`.
        """
        prompts = [plain_text(text, style) for text in self._spelled(prompt, tokenizer)]
        for text in prompts if not style.long else ():
            check_prompt_length(tokenizer, text, name)
        return prompts

    def _spelled(self, prompt, tokenizer) -> list[str]:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if isinstance(self, TextualInversionLoaderMixin):
            prompts = [self.maybe_convert_prompt(text, tokenizer) for text in prompts]
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
        if not self.tokenizers:
            raise ValueError("The pipeline has no tokenizer, without which a subject's word cannot be found.")
        self.adapter.check(self.backbone())
        choose_guidance(guidance_scale, image_guidance_scale)

    def draw(self, prompt, subjects, arguments: Mapping[str, Any]) -> RealCustomOutput | tuple:
        """The whole of a call: stock without a subject, guidance branch -> mask -> generation branch with one.

        Args:
            arguments: as given, by the names of the call's signature.

        Raises:
            ValueError, TypeError: in one sentence, what cannot be used and why.
        """
        inspect.signature(type(self).__call__).bind(self, prompt, subjects, **arguments)
        rows = as_rows(subjects, prompt)
        if not rows[0] and not any(says(arguments.get(name)) for name in OF_OUR_LOOP):
            return self._stock(prompt, arguments)
        call = self._completed(prompt, arguments, with_subjects=bool(rows[0]))
        scales = call["guidance_scale"], call["image_guidance_scale"]
        if rows[0]:
            scales = self.guidance_scales(*scales)
        for row in rows:
            self.check_ready(row, *scales)
        canvas = canvas_of(call, self.vae_scale_factor)
        self._check_call(prompt, call)
        tensors = StepTensors.of(call["callback_on_step_end"], call["callback_on_step_end_tensor_inputs"], self)
        guidance = choose_guidance(*self._network_scales(scales), call["guidance_interval"], call["guidance_rescale"])
        prompts = Prompts(
            texts=self._texts(prompt, call),
            rows=rows,
            images=call["num_images_per_prompt"] or 1,
            chunked=style_of(call).long,
        )
        self._guidance_scale, self._guidance_rescale = scales[0], call["guidance_rescale"]
        self._clip_skip, self._interrupt = call["clip_skip"], False
        self._cross_attention_kwargs = call["cross_attention_kwargs"]
        text, negative = self._encode(prompt, call, guidance.needs_negative)
        sampling, latents = self._start(call, text, canvas)
        control = control_of(call, self.controlnet, self, canvas)
        backbone = self.backbone(self._network_options(scales[0], text.embeds))
        if rows[0]:
            conditions = self._conditions(prompts, (text, negative), backbone, latents, call["keep_share"], canvas)
            conditions = replace(conditions, control=control)
            loop = denoise(backbone, sampling, latents, conditions, guidance, call["mask"] or self.default_mask)
        else:
            loop = unmasked(backbone, sampling, latents, (text, negative), None, guidance, control)
        with backbone.installed(), torch.no_grad():
            latents, masks = self._walk(loop, sampling, tensors)
        if masks is not None and canvas is not None:
            masks = canvas.placed(masks)
        by_word = {} if masks is None else named_masks(masks, rows)
        return self._finished(latents, by_word, text.embeds.dtype, call, canvas)

    def _stock(self, prompt, arguments: Mapping[str, Any]) -> RealCustomOutput | tuple:
        """The stock pipeline's own call; what only subjects use is left out."""
        stock = {name: value for name, value in arguments.items() if name not in OWN_ARGUMENTS}
        for name in ("guidance_scale", "num_inference_steps"):
            if name in stock and stock[name] is None:
                del stock[name]
        if "callback_on_step_end_tensor_inputs" in stock:
            names = stock["callback_on_step_end_tensor_inputs"]
            stock["callback_on_step_end_tensor_inputs"] = [name for name in names if name != "masks"]
        out = super().__call__(prompt, **{**stock, "return_dict": True})
        result = RealCustomOutput(images=out.images, nsfw_content_detected=getattr(out, "nsfw_content_detected", None))
        return result if arguments.get("return_dict", True) else (result.images, result.masks)

    def _completed(self, prompt, arguments: Mapping[str, Any], with_subjects: bool = True) -> dict[str, Any]:
        """All arguments of a call that runs our loop: the signature's defaults, with subjects ours where the adapter
        has its own.

        Raises:
            ValueError: an argument that cannot be used together with subjects is given.
        """
        call = type(self).__call__
        parameters = inspect.signature(call).parameters
        for name in sorted(call.refused & arguments.keys()):
            if arguments[name] is not None and arguments[name] != parameters[name].default:
                raise ValueError(f"{name} cannot be used together with {'subjects' if with_subjects else 'a picture'}.")
        if prompt is None:
            raise ValueError("Subjects need a prompt in which their words stand; prompt_embeds alone do not tell.")
        values = {name: parameter.default for name, parameter in list(parameters.items())[3:]}
        if with_subjects:
            values |= {"guidance_scale": None, "num_inference_steps": self.default_steps}
            values |= self._own_defaults(prompt)
        values |= {name: value for name, value in arguments.items() if value is not None}
        height, width = start_size(values, self.vae_scale_factor) or self.native_size
        return {**values, "height": values["height"] or height, "width": values["width"] or width}

    def _own_defaults(self, prompt: str | Sequence[str]) -> dict[str, Any]:
        """What the settings that came with the adapter put in the place of the stock pipeline's defaults."""
        settings = self.call_defaults
        negative = settings.negative_prompt
        if negative is not None and not isinstance(prompt, str):
            negative = [negative] * len(prompt)
        own = {"height": settings.height, "width": settings.width, "negative_prompt": negative}
        return {name: value for name, value in own.items() if value is not None}

    def _network_scales(self, scales: tuple[float, float | None]) -> tuple[float, float | None]:
        """A guidance-distilled U-Net is told its scale and is not guided a second time, as in diffusers."""
        return scales if self.unet.config.time_cond_proj_dim is None else (1.0, None)

    def _network_options(self, guidance_scale: float, embeds: torch.Tensor) -> dict:
        """What every U-Net call gets besides its input: LoRA scale, and the guidance scale of distilled U-Nets."""
        options = {"cross_attention_kwargs": self.cross_attention_kwargs}
        if self.unet.config.time_cond_proj_dim is not None:
            scale = torch.tensor([guidance_scale - 1.0])
            embedding = self.get_guidance_scale_embedding(scale, embedding_dim=self.unet.config.time_cond_proj_dim)
            options["timestep_cond"] = embedding.to(embeds)
        return options

    def _start(self, call: Mapping[str, Any], text: Text, canvas: Canvas | None) -> tuple[Sampling, torch.Tensor]:
        """The scheduler with its timesteps set, and the latents (B, C, h, w) that the run starts from."""
        device, generator = self._execution_device, call["generator"]
        timesteps, steps = retrieve_timesteps(
            self.scheduler, call["num_inference_steps"], device, call["timesteps"], call["sigmas"]
        )
        count, channels = text.embeds.shape[0], self.vae.config.latent_channels
        if canvas is None and self.unet.config.in_channels > channels:
            raise ValueError("This base model fills holes: give image and mask_image.")
        if canvas is None:
            latents = self.prepare_latents(
                count, channels, call["height"], call["width"], text.embeds.dtype, device, generator, call["latents"]
            )
            start = Start(latents=latents)
        else:
            timesteps, steps = shortened(self.scheduler, timesteps, steps, canvas.strength)
            start = start_of(canvas, self, timesteps[:1], count, generator, call["latents"])
        sampling = Sampling(
            scheduler=self.scheduler,
            steps=steps,
            timesteps=timesteps,
            step_kwargs=self.prepare_extra_step_kwargs(generator, call["eta"]),
            beside=start.beside,
            rest=start.rest,
        )
        return sampling, start.latents

    def _conditions(
        self,
        prompts: Prompts,
        texts: tuple[Text, Text | None],
        backbone: UNetBackbone,
        latents: torch.Tensor,
        keep_share: float,
        canvas: Canvas | None,
    ) -> Conditions:
        """Everything the loop is conditioned on, on the device that computes."""
        device, (text, negative) = latents.device, texts
        words = [list(row) for row in prompts.rows]
        weights = token_weights(self.tokenizers, prompts.texts, words, text.embeds.shape[1], prompts.chunked)
        rows = [list(row.values()) for row in prompts.rows]
        if len(rows) > 1:
            rows = [row for row in rows for _ in range(prompts.images)]
        if canvas is not None:
            rows = within(rows, canvas)
        regions = regions_of(rows, backbone.mask_grid(latents))
        return Conditions(
            text=text,
            negative=negative,
            token_weights=weights.repeat_interleave(prompts.images, dim=0).to(device),
            strengths=torch.tensor([[subject.strength for subject in row] for row in rows], device=device),
            regions=None if regions is None else regions.to(device),
            references=self._references(rows, text.embeds, keep_share),
        )

    def _references(self, rows: Sequence[Sequence[Subject]], embeds: torch.Tensor, keep_share: float) -> References:
        if self.adapter.scoring is None:
            return fixed_references(self.adapter, self.feature_cache, rows, embeds.device)
        return scored_references(self.adapter, self.feature_cache, rows, embeds, keep_share, self.scheduler)

    def _walk(self, loop, sampling: Sampling, tensors: StepTensors) -> tuple[torch.Tensor, torch.Tensor]:
        """All steps: the last latents and the masks (steps, B, S, G, g) float32 on the CPU."""
        evaluations, order = len(sampling.timesteps), getattr(sampling.scheduler, "order", 1)
        self._num_timesteps = evaluations
        masks = []
        with self.progress_bar(total=sampling.steps) as bar:
            for step in loop:
                tensors.tell(self, step)
                masks.append(step.masks)
                done = step.index + 1
                if done == evaluations or (done > evaluations - sampling.steps * order and done % order == 0):
                    bar.update()
                if self.interrupt:
                    break
        return step.latents, None if masks[0] is None else torch.stack(masks).float().cpu()

    def _finished(self, latents: torch.Tensor, masks, dtype: torch.dtype, call: Mapping[str, Any], canvas=None):
        """Latents (B, C, h, w) to what the call returns."""
        flagged = None
        if call["output_type"] == "latent":
            images = latents
        else:
            images, flagged = self.pictures(latents, call["output_type"], dtype)
            if canvas is not None and canvas.paste is not None:
                images = [canvas.paste(image) for image in images]
        self.maybe_free_model_hooks()
        result = RealCustomOutput(images=images, masks=masks, nsfw_content_detected=flagged)
        return result if call["return_dict"] else (result.images, result.masks)

    @torch.no_grad()
    def pictures(
        self, latents: torch.Tensor, output_type: str = "pil", dtype: torch.dtype | None = None
    ) -> tuple[Any, list[bool] | None]:
        """Latents (B, C, h, w) to images, through the safety checker and the watermark where there are any.

        Returns:
            the images as `output_type` says, and the safety checker's verdicts: a picture that it refuses is black.
        """
        flagged = None
        images = decode_latents(self.vae, latents)
        if getattr(self, "safety_checker", None) is not None:
            images, flagged = self.run_safety_checker(images, images.device, dtype or latents.dtype)
        if getattr(self, "watermark", None) is not None:
            images = self.watermark.apply_watermark(images)
        normalise = [True] * len(images) if flagged is None else [not flag for flag in flagged]
        images = self.image_processor.postprocess(images.detach(), output_type=output_type, do_denormalize=normalise)
        return images, flagged

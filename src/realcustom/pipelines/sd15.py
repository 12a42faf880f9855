"""RealCustom on the SD v1.5 shape: one text encoder, `UNet2DConditionModel`, any diffusers scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import StableDiffusionPipeline

from realcustom.guidance.guidance_scale import EVERYWHERE
from realcustom.guidance.mask import MaskSettings
from realcustom.pipelines.base import Call, RealCustomMixin, callback_tensors, choose_guidance
from realcustom.pipelines.branches import Text
from realcustom.pipelines.output import RealCustomOutput
from realcustom.pipelines.subjects import as_rows, token_weights


class RealCustomPipeline(RealCustomMixin, StableDiffusionPipeline):
    """diffusers' StableDiffusionPipeline with subjects; without subjects it is that pipeline, pixel for pixel."""

    model_cpu_offload_seq = "text_encoder->reference_encoder->adapter->unet->vae"
    _optional_components = [*StableDiffusionPipeline._optional_components, "reference_encoder", "adapter"]
    _callback_tensor_inputs = [*StableDiffusionPipeline._callback_tensor_inputs, "masks"]

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        reference_encoder=None,
        adapter=None,
        requires_safety_checker: bool = False,
    ):
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        self.register_modules(reference_encoder=reference_encoder, adapter=adapter)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        subjects: Mapping | Sequence[Mapping] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = EVERYWHERE,
        mask: MaskSettings | None = None,
        keep_share: float = 0.8,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **stock,
    ) -> RealCustomOutput | tuple:
        """Make images.

        Args:
            prompt: the sentence; every word of `subjects` stands in it.
            subjects: word -> image, list of images, or `Subject`; None or empty is plain text-to-image. With a list
                of prompts also a list of such mappings, one a prompt, each with as many words.
            negative_prompt, height, width, num_images_per_prompt, eta, generator, latents, output_type, return_dict,
                cross_attention_kwargs, clip_skip, callback_on_step_end, callback_on_step_end_tensor_inputs: as in
                diffusers. A list of generators makes each image independent of its batch. With subjects the callback
                may ask for "latents" and "masks" and may return new "latents".
            num_inference_steps: denoising steps.
            guidance_scale: w (RealCustom++), or w_t when `image_guidance_scale` is given.
            image_guidance_scale: w_i of RealCustom Eq. 13. With neither of the two the adapter's own are taken.
            guidance_interval: shares (low, high) of the steps between which the negative pass is made and guides; only
                with subjects.
            mask: how the guidance mask is made.
            keep_share: gamma_num in (0, 1], only for adapters with a scoring module.
            stock: further arguments of StableDiffusionPipeline, only without subjects.

        Returns:
            `RealCustomOutput`, or the tuple (images, masks).

        Raises:
            ValueError: in one sentence, what cannot be used and why.
        """
        rows = as_rows(subjects, prompt)
        guidance_scale, image_guidance_scale = self.guidance_scales(guidance_scale, image_guidance_scale)
        for row in rows:
            self.check_ready(row, guidance_scale, image_guidance_scale)
        names = callback_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs)
        texts = self.texts_for(prompt, self.tokenizer) if prompt is not None else []
        if not rows[0]:
            out = super().__call__(
                prompt,
                height,
                width,
                num_inference_steps,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                num_images_per_prompt=num_images_per_prompt,
                eta=eta,
                generator=generator,
                latents=latents,
                output_type=output_type,
                cross_attention_kwargs=cross_attention_kwargs,
                clip_skip=clip_skip,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=[name for name in names if name != "masks"],
                **stock,
            )
            result = RealCustomOutput(images=out.images, nsfw_content_detected=out.nsfw_content_detected)
            return result if return_dict else (result.images, result.masks)
        if stock:
            raise ValueError(f"{', '.join(stock)}: not available together with subjects.")
        if prompt is None:
            raise ValueError("Subjects need a prompt in which their words stand; prompt_embeds alone do not tell.")
        if negative_prompt is not None:
            self.texts_for(negative_prompt, self.tokenizer, "negative prompt")
        side = self.unet.config.sample_size
        default = (side, side) if isinstance(side, int) else side
        height = height or default[0] * self.vae_scale_factor
        width = width or default[1] * self.vae_scale_factor
        self.check_inputs(prompt, height, width, None, negative_prompt, callback_on_step_end_tensor_inputs=names)
        self._guidance_scale, self._clip_skip, self._interrupt = guidance_scale, clip_skip, False
        self._cross_attention_kwargs, self._guidance_rescale = cross_attention_kwargs, 0.0
        guidance = choose_guidance(guidance_scale, image_guidance_scale, guidance_interval)
        embeds, negative_embeds = self.encode_prompt(
            prompt,
            self._execution_device,
            num_images_per_prompt,
            guidance.needs_negative,
            negative_prompt,
            lora_scale=(cross_attention_kwargs or {}).get("scale"),
            clip_skip=clip_skip,
        )
        weights = token_weights(
            [self.tokenizer], [[text] for text in texts], [list(row) for row in rows], embeds.shape[1]
        )
        result = self.generate(
            Call(
                rows=rows,
                text=Text(embeds=embeds),
                negative=Text(embeds=negative_embeds) if guidance.needs_negative else None,
                token_weights=weights.repeat_interleave(num_images_per_prompt, dim=0),
                height=height,
                width=width,
                steps=num_inference_steps,
                guidance=guidance,
                mask=mask or self.default_mask,
                keep_share=keep_share,
                generator=generator,
                latents=latents,
                eta=eta,
                output_type=output_type,
                unet_kwargs=self._unet_kwargs(guidance_scale, embeds),
                on_step=callback_on_step_end,
                on_step_tensors=names,
            )
        )
        return result if return_dict else (result.images, result.masks)

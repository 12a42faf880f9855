"""RealCustom on SDXL: two text encoders, pooled text and size conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import StableDiffusionXLPipeline

from realcustom.guidance.guidance_scale import EVERYWHERE
from realcustom.guidance.mask import MaskSettings
from realcustom.pipelines.base import Call, RealCustomMixin, callback_tensors, choose_guidance
from realcustom.pipelines.branches import Text
from realcustom.pipelines.output import RealCustomOutput
from realcustom.pipelines.subjects import as_rows, token_weights


class RealCustomXLPipeline(RealCustomMixin, StableDiffusionXLPipeline):
    """diffusers' StableDiffusionXLPipeline with subjects; without subjects it is that pipeline, pixel for pixel.

    `released_conditioning` (saved with the pipeline) feeds the U-Net what the authors' release fed it when subjects
    are given: the pooled text before its projection, and sizes with the width first. Stock SDXL projects the pooled
    text and puts the height first; adapters converted from the release want the former. A missing negative prompt is
    then the empty one; stock SDXL puts zeros in the place of its embeddings.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->reference_encoder->adapter->unet->vae"
    _optional_components = [*StableDiffusionXLPipeline._optional_components, "reference_encoder", "adapter"]
    _callback_tensor_inputs = [*StableDiffusionXLPipeline._callback_tensor_inputs, "masks"]

    def __init__(
        self,
        vae,
        text_encoder,
        text_encoder_2,
        tokenizer,
        tokenizer_2,
        unet,
        scheduler,
        image_encoder=None,
        feature_extractor=None,
        reference_encoder=None,
        adapter=None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        released_conditioning: bool = False,
        defaults: dict | None = None,
    ):
        super().__init__(
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            scheduler,
            image_encoder,
            feature_extractor,
            force_zeros_for_empty_prompt,
            add_watermarker,
        )
        self.register_modules(reference_encoder=reference_encoder, adapter=adapter)
        self.register_to_config(released_conditioning=released_conditioning, defaults=defaults)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        subjects: Mapping | Sequence[Mapping] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
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
        """Make images; arguments as `RealCustomPipeline.__call__`, with SDXL's second prompts.

        Raises:
            ValueError: in one sentence, what cannot be used and why.
        """
        rows = as_rows(subjects, prompt)
        num_inference_steps = num_inference_steps or self.default_steps
        height, width = height or self.call_defaults.height, width or self.call_defaults.width
        guidance_scale, image_guidance_scale = self.guidance_scales(guidance_scale, image_guidance_scale)
        for row in rows:
            self.check_ready(row, guidance_scale, image_guidance_scale)
        names = callback_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs)
        texts = self._texts(prompt, prompt_2)
        if not rows[0]:
            out = super().__call__(
                prompt,
                prompt_2,
                height,
                width,
                num_inference_steps,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                negative_prompt_2=negative_prompt_2,
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
            return RealCustomOutput(images=out.images) if return_dict else (out.images, {})
        if stock:
            raise ValueError(f"{', '.join(stock)}: not available together with subjects.")
        if prompt is None:
            raise ValueError("Subjects need a prompt in which their words stand; prompt_embeds alone do not tell.")
        negative_prompt = self.negative_or_default(prompt, negative_prompt)
        self._texts(negative_prompt, negative_prompt_2)
        height = height or self.default_sample_size * self.vae_scale_factor
        width = width or self.default_sample_size * self.vae_scale_factor
        self.check_inputs(
            prompt,
            prompt_2,
            height,
            width,
            None,
            negative_prompt,
            negative_prompt_2,
            callback_on_step_end_tensor_inputs=names,
        )
        self._guidance_scale, self._clip_skip, self._interrupt = guidance_scale, clip_skip, False
        self._cross_attention_kwargs, self._guidance_rescale, self._denoising_end = cross_attention_kwargs, 0.0, None
        guidance = choose_guidance(guidance_scale, image_guidance_scale, guidance_interval)
        embeds, negative_embeds, pooled, negative_pooled = self.encode_prompt(
            prompt,
            prompt_2,
            self._execution_device,
            num_images_per_prompt,
            guidance.needs_negative,
            negative_prompt,
            negative_prompt_2,
            lora_scale=(cross_attention_kwargs or {}).get("scale"),
            clip_skip=clip_skip,
        )
        if self.config.released_conditioning:
            count = num_images_per_prompt
            pooled = self._unprojected([text[-1] for text in texts], count)
            if guidance.needs_negative:
                negatives = self._negatives(negative_prompt, negative_prompt_2, len(texts))
                negative_pooled = self._unprojected(negatives, count)
        weights = token_weights(self._tokenizers(), texts, [list(row) for row in rows], embeds.shape[1])
        ids = self._size_ids(height, width, embeds)
        result = self.generate(
            Call(
                rows=rows,
                text=Text(embeds=embeds, added={"text_embeds": pooled, "time_ids": ids}),
                negative=Text(embeds=negative_embeds, added={"text_embeds": negative_pooled, "time_ids": ids})
                if guidance.needs_negative
                else None,
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

    def _tokenizers(self) -> list:
        return [tokenizer for tokenizer in (self.tokenizer, self.tokenizer_2) if tokenizer is not None]

    def _texts(self, prompt, prompt_2) -> list[tuple[str, ...]]:
        """Per prompt of the batch what each tokenizer reads."""
        if prompt is None:
            return []
        both = [prompt, prompt_2 or prompt][-len(self._tokenizers()) :]
        columns = [self.texts_for(text, tokenizer) for text, tokenizer in zip(both, self._tokenizers(), strict=True)]
        if len({len(column) for column in columns}) > 1:
            raise ValueError("prompt and prompt_2 have different lengths: give one of each for every image.")
        return list(zip(*columns, strict=True))

    def _negatives(self, negative_prompt, negative_prompt_2, count: int) -> list[str]:
        chosen = negative_prompt_2 or negative_prompt or ""
        return [chosen] * count if isinstance(chosen, str) else list(chosen)

    def _unprojected(self, texts: list[str], repeats: int) -> torch.Tensor:
        """(B, c) pooled text of the second encoder after its final norm, before the projection."""
        encoder, tokenizer = self.text_encoder_2, self.tokenizer_2
        ids = tokenizer(
            texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        pooled = encoder.text_model(ids.to(self._execution_device)).pooler_output
        return pooled.repeat_interleave(repeats, dim=0)

    def _size_ids(self, height: int, width: int, embeds: torch.Tensor) -> torch.Tensor:
        """(B, 6) size conditions: original size, crop corner, target size."""
        size = (width, height) if self.config.released_conditioning else (height, width)
        return torch.tensor([[*size, 0, 0, *size]]).to(embeds).expand(embeds.shape[0], -1)

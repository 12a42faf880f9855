"""RealCustom on SDXL: two text encoders, pooled text and size conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from realcustom.encoders.clip_image import ClipImageEncoder
from realcustom.encoders.image import ClipReferenceEncoder, ReferenceEncoder
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.backbone import Text
from realcustom.pipelines.base import RealCustomMixin
from realcustom.pipelines.controls import joined_nets
from realcustom.pipelines.output import RealCustomOutput
from realcustom.pipelines.reading import embed_prompts, lora_scaled, penultimate_reader, style_of
from realcustom.pipelines.signature import stock_arguments

REFUSED = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "ip_adapter_image",
    "ip_adapter_image_embeds",
    "denoising_end",
)


class RealCustomXLPipeline(RealCustomMixin, StableDiffusionXLPipeline):
    """diffusers' StableDiffusionXLPipeline with subjects; without subjects it is that pipeline, pixel for pixel.

    `released_conditioning` (saved with the pipeline) feeds the U-Net what the authors' release fed it when subjects
    are given: the pooled text before its projection, sizes with the width first, and "" where no negative prompt is
    given. Stock SDXL projects the pooled text, puts the height first and takes zeros for a missing negative prompt;
    adapters converted from the release want the former.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->reference_encoder->adapter->unet->vae"
    _optional_components = [
        *StableDiffusionXLPipeline._optional_components,
        "reference_encoder",
        "adapter",
        "controlnet",
    ]
    _callback_tensor_inputs = [*StableDiffusionXLPipeline._callback_tensor_inputs, "masks"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        reference_encoder: ReferenceEncoder | ClipReferenceEncoder | ClipImageEncoder | None = None,
        adapter: RealCustomAdapter | None = None,
        controlnet: ControlNetModel | MultiControlNetModel | None = None,
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
        self.register_modules(reference_encoder=reference_encoder, adapter=adapter, controlnet=joined_nets(controlnet))
        self.register_to_config(released_conditioning=released_conditioning, defaults=defaults)

    @torch.no_grad()
    @stock_arguments(StableDiffusionXLPipeline.__call__, REFUSED)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        subjects: Mapping | Sequence[Mapping] | None = None,
        **arguments: Any,
    ) -> RealCustomOutput | tuple:
        """Make images; as `RealCustomPipeline.__call__`, and besides:

        Args:
            arguments: all of StableDiffusionXLPipeline. A subject's word stands at the same tokens of prompt and
                prompt_2 (the same text by default). Together with subjects, prompt_embeds, denoising_end and
                diffusers' own IP-Adapter are not available.
        """
        return self.draw(prompt, subjects, arguments)

    def _check_call(self, prompt, call: Mapping[str, Any]) -> None:
        negatives = call["negative_prompt"], call["negative_prompt_2"]
        self.check_inputs(prompt, call["prompt_2"], call["height"], call["width"], None, *negatives)

    def _texts(self, prompt, call: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Per prompt of the batch what each tokenizer reads."""
        style = style_of(call)
        for negative in (call["negative_prompt"], call["negative_prompt_2"]):
            for tokenizer in self.tokenizers if negative is not None else ():
                self.texts_for(negative, tokenizer, "negative prompt", style)
        both = [prompt, call["prompt_2"] or prompt][-len(self.tokenizers) :]
        pairs = zip(both, self.tokenizers, strict=True)
        columns = [self.texts_for(text, tokenizer, style=style) for text, tokenizer in pairs]
        if len({len(column) for column in columns}) > 1:
            raise ValueError("prompt and prompt_2 have different lengths: give one of each for every image.")
        return list(zip(*columns, strict=True))

    def _encode(self, prompt, call: Mapping[str, Any], needs_negative: bool) -> tuple[Text, Text | None]:
        released, images = self.config.released_conditioning, call["num_images_per_prompt"]
        negative_prompt = call["negative_prompt"]
        if released and negative_prompt is None and call["negative_prompt_2"] is None:
            negative_prompt = ""
        ready = self._styled(prompt, (negative_prompt, call["negative_prompt_2"]), call, needs_negative)
        texts = (None, None) if ready else (prompt, call["prompt_2"])
        negatives = (None, None) if ready else (negative_prompt, call["negative_prompt_2"])
        embeds, negative_embeds, pooled, negative_pooled = self.encode_prompt(
            *texts,
            self._execution_device,
            images,
            needs_negative,
            *negatives,
            **ready,
            lora_scale=(call["cross_attention_kwargs"] or {}).get("scale"),
            clip_skip=call["clip_skip"],
        )
        if released:
            texts = self._texts(prompt, call)
            pooled = self._unprojected([text[-1] for text in texts], images)
            negatives = call["negative_prompt_2"] or negative_prompt
            negatives = [negatives] * len(texts) if isinstance(negatives, str) else list(negatives)
            negative_pooled = self._unprojected(negatives, images) if needs_negative else None
        positive_sizes, negative_sizes = self._sizes(call, embeds)
        positive = Text(embeds=embeds, added={"text_embeds": pooled, "time_ids": positive_sizes})
        if not needs_negative:
            return positive, None
        added = {"text_embeds": negative_pooled, "time_ids": negative_sizes}
        return positive, Text(embeds=negative_embeds, added=added)

    def _styled(self, prompt, negatives: tuple, call: Mapping[str, Any], needs_negative: bool) -> dict[str, Any]:
        """Embeddings for `encode_prompt` of prompts that are read otherwise than by the stock pipeline; else nothing.

        No negative prompt at all stays none, which SDXL reads as zeros.
        """
        style = style_of(call)
        if style.plain:
            return {}
        encoders = [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]
        device, skip = self._execution_device, call["clip_skip"]
        pairs = zip(self.tokenizers, encoders, strict=True)
        readers = [(tokenizer, penultimate_reader(encoder, device, skip)) for tokenizer, encoder in pairs]
        both = [prompt, call["prompt_2"] or prompt][-len(readers) :]
        texts = [self._spelled(text, tokenizer) for text, (tokenizer, _) in zip(both, readers, strict=True)]
        columns = None
        if needs_negative and (negatives != (None, None) or not self.config.force_zeros_for_empty_prompt):
            first = negatives[0] or ""
            pair = [first, negatives[1] or first][-len(readers) :]
            columns = [self._spelled(text, tokenizer) for text, (tokenizer, _) in zip(pair, readers, strict=True)]
            columns = [column * (len(texts[0]) if len(column) == 1 else 1) for column in columns]
        with lora_scaled(encoders, (call["cross_attention_kwargs"] or {}).get("scale")):
            read = embed_prompts(readers, texts, columns, style)
        ready = {"prompt_embeds": read.embeds, "pooled_prompt_embeds": read.pooled}
        if columns is not None:
            ready |= {"negative_prompt_embeds": read.negative, "negative_pooled_prompt_embeds": read.negative_pooled}
        return ready

    def _unprojected(self, texts: list[str], repeats: int) -> torch.Tensor:
        """(B, c) pooled text of the second encoder after its final norm, before the projection."""
        encoder, tokenizer = self.text_encoder_2, self.tokenizer_2
        ids = tokenizer(
            texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        pooled = encoder.text_model(ids.to(self._execution_device)).pooler_output
        return pooled.repeat_interleave(repeats, dim=0)

    def _sizes(self, call: Mapping[str, Any], embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Size conditions (B, 6) of the prompt and of the negative one: original size, crop corner, target size."""
        size = (call["height"], call["width"])
        original, target = call["original_size"] or size, call["target_size"] or size
        if self.config.released_conditioning:
            original, target = original[::-1], target[::-1]
        positive = [*original, *call["crops_coords_top_left"], *target]
        negative = positive
        if call["negative_original_size"] is not None and call["negative_target_size"] is not None:
            corner = call["negative_crops_coords_top_left"]
            negative = [*call["negative_original_size"], *corner, *call["negative_target_size"]]
        return tuple(torch.tensor([ids]).to(embeds).expand(embeds.shape[0], -1) for ids in (positive, negative))

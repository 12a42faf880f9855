"""RealCustom on the SD v1.5 shape: one text encoder, `UNet2DConditionModel`, any diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from realcustom.encoders.clip_image import ClipImageEncoder
from realcustom.encoders.image import ClipReferenceEncoder, ReferenceEncoder
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.backbone import Text
from realcustom.pipelines.base import RealCustomMixin
from realcustom.pipelines.controls import joined_nets
from realcustom.pipelines.output import RealCustomOutput
from realcustom.pipelines.reading import clip_reader, embed_prompts, lora_scaled, style_of
from realcustom.pipelines.signature import stock_arguments

REFUSED = ("prompt_embeds", "negative_prompt_embeds", "ip_adapter_image", "ip_adapter_image_embeds")


class RealCustomPipeline(RealCustomMixin, StableDiffusionPipeline):
    """diffusers' StableDiffusionPipeline with subjects; without subjects it is that pipeline, pixel for pixel."""

    model_cpu_offload_seq = "text_encoder->reference_encoder->adapter->unet->vae"
    _optional_components = [*StableDiffusionPipeline._optional_components, "reference_encoder", "adapter", "controlnet"]
    _callback_tensor_inputs = [*StableDiffusionPipeline._callback_tensor_inputs, "masks"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        reference_encoder: ReferenceEncoder | ClipReferenceEncoder | ClipImageEncoder | None = None,
        adapter: RealCustomAdapter | None = None,
        controlnet: ControlNetModel | MultiControlNetModel | None = None,
        requires_safety_checker: bool = False,
        defaults: dict | None = None,
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
        self.register_modules(reference_encoder=reference_encoder, adapter=adapter, controlnet=joined_nets(controlnet))
        self.register_to_config(defaults=defaults)

    @torch.no_grad()
    @stock_arguments(StableDiffusionPipeline.__call__, REFUSED)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        subjects: Mapping | Sequence[Mapping] | None = None,
        **arguments: Any,
    ) -> RealCustomOutput | tuple:
        """Make images.

        Args:
            prompt: the sentence; every word of `subjects` stands in it.
            subjects: word -> image, list of images, or `Subject`; None or empty is plain text-to-image, with the stock
                pipeline's defaults. With a list of prompts also a list of such mappings, one a prompt, each with as
                many words.
            image_guidance_scale: w_i of RealCustom Eq. 13, with guidance_scale as w_t; without it guidance_scale is
                the single w of RealCustom++. With neither of the two the adapter's own are taken. As in diffusers, a
                guidance_scale <= 1 means no guidance.
            guidance_interval: shares (low, high) of the steps between which the negative pass is made and guides.
            mask: `MaskSettings`, how the guidance mask is made; None is the adapter's own.
            keep_share: gamma_num in (0, 1], only for adapters with a scoring module.
            image: a start picture; `strength` above 0 to 1 is the share of the steps that are run on it (0.8, with a
                hole 1). With `mask_image`, white where the picture is drawn anew, the rest stays, and the hole is the
                region of the subjects that have none; `padding_mask_crop` works on the hole and as many pixels around
                it at full resolution. A path, PIL image, or what diffusers' pipelines take.
            long_prompts: read prompts of any length, in chunks of 75 tokens; a word in any of them can be a target.
            prompt_weights: (word:1.3), (word) and [word] weigh words (`realcustom.encoders.prompts.read_weights`);
                otherwise parentheses and brackets are text.
            control_image: a picture for the pipeline's `controlnet`, one for each where there are several, with
                controlnet_conditioning_scale, control_guidance_start and control_guidance_end as in diffusers.
            arguments: all others of StableDiffusionPipeline. Together with subjects, num_inference_steps is 25 where it
                is not given, a callback may also have "masks", a prompt longer than the model reads is refused, and
                prompt_embeds and diffusers' own IP-Adapter are not available. A list of generators makes each image
                independent of its batch.

        Returns:
            `RealCustomOutput`, or with return_dict=False the tuple (images, masks).

        Raises:
            ValueError: in one sentence, what cannot be used and why.
        """
        return self.draw(prompt, subjects, arguments)

    def _check_call(self, prompt, call: Mapping[str, Any]) -> None:
        self.check_inputs(prompt, call["height"], call["width"], None, call["negative_prompt"])

    def _texts(self, prompt, call: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Per prompt of the batch what the tokenizer reads."""
        style = style_of(call)
        if call["negative_prompt"] is not None:
            self.texts_for(call["negative_prompt"], self.tokenizer, "negative prompt", style)
        return [(text,) for text in self.texts_for(prompt, self.tokenizer, style=style)]

    def _encode(self, prompt, call: Mapping[str, Any], needs_negative: bool) -> tuple[Text, Text | None]:
        style, lora_scale = style_of(call), (call["cross_attention_kwargs"] or {}).get("scale")
        ready: dict[str, Any] = {}
        if not style.plain:
            reader = (self.tokenizer, clip_reader(self.text_encoder, self._execution_device, call["clip_skip"]))
            texts, negatives = self._spelled(prompt, self.tokenizer), None
            if needs_negative:
                negatives = self._spelled(call["negative_prompt"] or "", self.tokenizer)
                negatives = [negatives * (len(texts) if len(negatives) == 1 else 1)]
            with lora_scaled([self.text_encoder], lora_scale):
                read = embed_prompts([reader], [texts], negatives, style)
            ready = {"prompt_embeds": read.embeds, "negative_prompt_embeds": read.negative}
        embeds, negative = self.encode_prompt(
            None if ready else prompt,
            self._execution_device,
            call["num_images_per_prompt"],
            needs_negative,
            None if ready else call["negative_prompt"],
            **ready,
            lora_scale=lora_scale,
            clip_skip=call["clip_skip"],
        )
        return Text(embeds=embeds), Text(embeds=negative) if needs_negative else None

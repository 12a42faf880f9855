"""UNO, and RealCustom on UNO: diffusers' FluxPipeline with references (arXiv 2504.02160) and with subjects.

Shapes: B images, S subjects, R references, T text tokens, N = r * c image tokens, (r, c) also the mask's grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

from realcustom.convert.uno import checked_lora, is_uno_lora, load_flux
from realcustom.guidance.attention_maps import Size
from realcustom.guidance.guidance_scale import EVERYWHERE, EmbeddedScale
from realcustom.guidance.mask import MaskSettings
from realcustom.hub.settings import CallDefaults
from realcustom.models.backbone import Text
from realcustom.models.flow import shift_exponent
from realcustom.models.flux import FluxBackbone
from realcustom.models.uno import unpack
from realcustom.pictures.opening import open_image
from realcustom.pipelines.callbacks import StepTensors
from realcustom.pipelines.denoise import Conditions, Sampling, Step, denoise, unmasked
from realcustom.pipelines.output import RealCustomOutput, decode_latents, named_masks
from realcustom.pipelines.signature import stock_arguments
from realcustom.pipelines.sources import Sources
from realcustom.pipelines.subjects import as_rows, regions_of, token_weights
from realcustom.pipelines.uno_references import (
    SameReferences,
    UnoSettings,
    encode_references,
    shown_subjects,
    shown_to_all,
)
from realcustom.types import Subject

STEPS, GUIDANCE, SIDE = 25, 4.0, 512  # of a call with references that names none: the release's
TOKEN_SIDE = 16  # pixels

REFUSED = ("ip_adapter_image", "ip_adapter_image_embeds", "negative_ip_adapter_image")
REFUSED += ("negative_ip_adapter_image_embeds", "sigmas")


OWN_ARGUMENTS: dict[str, Any] = {
    "references": (),
    "mask": None,
    "uno": UnoSettings(),
    "image_guidance_scale": None,
    "guidance_interval": EVERYWHERE,
}


class UNOPipeline(FluxPipeline):
    """diffusers' FluxPipeline that reads references; without any it is that pipeline, pixel for pixel.

    `references` act on the whole image, as UNO was published. `subjects` act where their word is: a text-only pass
    gives each word's mask, and the word's references are seen there alone (RealCustom).
    """

    _callback_tensor_inputs = [*FluxPipeline._callback_tensor_inputs, "masks"]

    # What the engine asks of a pipeline.
    size_grid = TOKEN_SIDE
    default_steps = STEPS
    call_defaults = CallDefaults()
    reads_negative = False  # with true_cfg_scale it does, which requests do not have
    subjects_share_sequence = True

    @classmethod
    def from_sources(cls, sources: Sources, **kwargs) -> UNOPipeline:
        """Load a pipeline whose files `realcustom.pipelines.sources.resolve` has found; `kwargs` as diffusers'.

        Raises:
            ValueError: they hold an adapter that is no LoRA of UNO's, or a single file whose keys do not fit.
        """
        if sources.parts:
            raise ValueError("FLUX takes no adapter but UNO's LoRA: a folder or repository with dit_lora.safetensors.")
        if sources.base_file is not None:
            config = FluxTransformer2DModel.load_config(sources.base, subfolder="transformer")
            dtype = kwargs.get("torch_dtype", kwargs.get("dtype"))
            kwargs = {"transformer": load_flux(sources.base_file, config, dtype), **kwargs}
        pipe = cls.from_pretrained(str(sources.base), variant=sources.variant, **kwargs)
        if sources.lora is not None:
            pipe.load_uno(sources.lora)
        return pipe

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict, adapter_name: str | None = None, **kwargs):
        """As FluxPipeline's; a file of this machine in UNO's layout is held against the transformer first."""
        source, name = pretrained_model_name_or_path_or_dict, kwargs.get("weight_name")
        file = None if isinstance(source, Mapping) else Path(source, *([name] if name else []))
        if file is not None and file.is_file() and is_uno_lora(file):
            source = checked_lora(file, self.transformer)
            kwargs.pop("weight_name", None)
        super().load_lora_weights(source, adapter_name=adapter_name, **kwargs)

    @torch.no_grad()
    @stock_arguments(FluxPipeline.__call__, REFUSED, OWN_ARGUMENTS)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        subjects: Mapping | Sequence[Mapping] | None = None,
        **arguments: Any,
    ) -> RealCustomOutput | tuple:
        """Make images.

        Args:
            prompt: the sentence; every word of `subjects` stands in it (in prompt_2 where that is given).
            subjects: word -> image, list of images, or `Subject`; with a list of prompts also a list of such mappings,
                whose references are then of the same sizes.
            references: pictures for the whole image, any number, instead of subjects.
            mask: `MaskSettings`; its levels are the double blocks, counted from the input. None is `default_mask`.
            uno: `UnoSettings`.
            guidance_interval: shares of the steps between which a negative prompt guides.
            image_guidance_scale: not for this model.
            arguments: all others of FluxPipeline. With references or subjects guidance_scale is 4, the steps 25, the
                size 512 x 512 where they are not given, the times follow `uno`, and `sigmas` and diffusers' own
                IP-Adapter are not available.

        Returns:
            `RealCustomOutput`, or with return_dict=False the tuple (images, masks).

        Raises:
            ValueError, TypeError: in one sentence, what cannot be used and why.
        """
        inspect.signature(type(self).__call__).bind(self, prompt, subjects, **arguments)
        rows = as_rows(subjects, arguments.get("prompt_2") or prompt)
        if not rows[0] and not arguments.get("references"):
            return self._stock(prompt, arguments)
        call = self._completed(prompt, rows, arguments)
        tensors = StepTensors.of(call["callback_on_step_end"], call["callback_on_step_end_tensor_inputs"], self)
        self._guidance_scale, self._joint_attention_kwargs = call["guidance_scale"], call["joint_attention_kwargs"]
        self._interrupt, self._current_timestep = False, None
        text, negative = self._encode(prompt, call)
        sampling, latents = self._start(call, text)
        self._grid = grid = (call["height"] // TOKEN_SIDE, call["width"] // TOKEN_SIDE)
        backbone = FluxBackbone(
            self.transformer, grid, {"joint_attention_kwargs": dict(call["joint_attention_kwargs"] or {})}
        )
        guidance = EmbeddedScale(call["true_cfg_scale"] if negative is not None else 1.0, call["guidance_interval"])
        if rows[0]:
            conditions = self._conditions(prompt, rows, (text, negative), grid, call)
            mask = call["mask"] or self.default_mask
            loop = denoise(backbone, sampling, latents, conditions, guidance, mask)
        else:
            shown = shown_to_all([open_image(image) for image in call["references"]])
            references = encode_references(self.vae, [shown], grid, call["uno"], self._execution_device)
            loop = unmasked(backbone, sampling, latents, (text, negative), references, guidance)
        with backbone.installed():
            latents, masks = self._walk(loop, sampling, tensors)
        return self._finished(latents, named_masks(masks, rows) if rows[0] else {}, call)

    def load_uno(self, source: str | Path | Mapping[str, torch.Tensor], adapter_name: str = "uno") -> None:
        """Load UNO's LoRA from a release file (`dit_lora.safetensors`) or its state dict, at strength 1.

        Through diffusers' own loader, unmerged; `set_adapters`, `fuse_lora` and `unload_lora_weights` work on it.

        Raises:
            ValueError: keys are unknown, missing or misshapen; all are listed.
        """
        self.load_lora_weights(checked_lora(source, self.transformer), adapter_name=adapter_name)

    def texts_for(self, prompt, tokenizer, name: str = "prompt", most: int = 512) -> list[str]:
        """The prompts as a list.

        Raises:
            ValueError: a prompt has more than `most` tokens; the sentence says which by `name`.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        for text in prompts:
            tokens = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
            if tokens > most:
                raise ValueError(f"The {name} has {tokens} tokens and the model reads {most}: shorten it.")
        return prompts

    @property
    def tokenizers(self) -> list:
        """The tokenizer whose tokens the image attends to: T5's."""
        return [self.tokenizer_2]

    def guidance_scales(
        self, guidance_scale: float | None, image_guidance_scale: float | None
    ) -> tuple[float, float | None]:
        """The embedded scale of a call, 4 where none is given, and the other one as it is."""
        return GUIDANCE if guidance_scale is None else guidance_scale, image_guidance_scale

    def check_ready(self, subjects: Mapping, guidance_scale: float, image_guidance_scale: float | None) -> None:
        """Refuse what cannot run.

        Raises:
            ValueError: an image_guidance_scale is given.
        """
        if image_guidance_scale is not None:
            raise ValueError("This model has no image_guidance_scale: give a subject's strength.")

    def compile_blocks(self, **options) -> None:
        """Run the transformer's blocks through `torch.compile`."""
        self.transformer.compile_repeated_blocks(**options)

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels that UNO was trained at."""
        return SIDE, SIDE

    @property
    def default_mask(self) -> MaskSettings:
        """The mask of calls that give none: the later half of the double blocks, spread by the last one's attention."""
        count = len(self.transformer.transformer_blocks)
        return MaskSettings(word_levels=tuple(range(count // 2, count)), spread_levels=(count - 1,))

    @torch.no_grad()
    def pictures(self, latents: torch.Tensor, output_type: str = "pil") -> tuple[Any, None]:
        """Latents (B, C, h, w), or tokens of the call under way, to images as `output_type` says."""
        if latents.dim() == 3:  # tokens, as a step callback has them
            latents = unpack(latents, self._grid)
        images = decode_latents(self.vae, latents.to(self._execution_device))
        return self.image_processor.postprocess(images, output_type=output_type), None

    def _stock(self, prompt, arguments: Mapping[str, Any]) -> RealCustomOutput | tuple:
        """FluxPipeline's own call; what only references use is left out."""
        stock = {name: value for name, value in arguments.items() if name not in OWN_ARGUMENTS}
        if "callback_on_step_end_tensor_inputs" in stock:
            names = stock["callback_on_step_end_tensor_inputs"]
            stock["callback_on_step_end_tensor_inputs"] = [name for name in names if name != "masks"]
        side = self.default_sample_size * self.vae_scale_factor
        self._grid = tuple((stock.get(name) or side) // TOKEN_SIDE for name in ("height", "width"))
        result = RealCustomOutput(images=super().__call__(prompt, **{**stock, "return_dict": True}).images)
        return result if arguments.get("return_dict", True) else (result.images, result.masks)

    def _completed(self, prompt, rows: Sequence[Mapping], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call with references: the signature's defaults, and the release's where it has its own.

        Raises:
            ValueError: an argument cannot be used.
        """
        call = type(self).__call__
        parameters = inspect.signature(call).parameters
        for name in sorted(call.refused & arguments.keys()):
            if arguments[name] is not None:
                raise ValueError(f"{name} cannot be used together with references.")
        self.check_ready(rows[0], GUIDANCE, arguments.get("image_guidance_scale"))
        if rows[0] and arguments.get("references"):
            raise ValueError("Give subjects or references, not both: references are subjects without a word.")
        if rows[0] and prompt is None:
            raise ValueError("Subjects need a prompt in which their words stand; prompt_embeds alone do not tell.")
        values = {name: parameter.default for name, parameter in list(parameters.items())[3:]}
        values |= {"guidance_scale": GUIDANCE, "num_inference_steps": STEPS, "height": SIDE, "width": SIDE}
        values |= {name: value for name, value in arguments.items() if value is not None}
        for name in ("height", "width"):
            if values[name] % TOKEN_SIDE or values[name] < TOKEN_SIDE:
                raise ValueError(f"The {name} is {values[name]}; it must be a multiple of {TOKEN_SIDE}.")
        self.check_inputs(
            prompt, values["prompt_2"], values["height"], values["width"],
            negative_prompt=values["negative_prompt"], negative_prompt_2=values["negative_prompt_2"],
            prompt_embeds=values["prompt_embeds"], negative_prompt_embeds=values["negative_prompt_embeds"],
            pooled_prompt_embeds=values["pooled_prompt_embeds"],
            negative_pooled_prompt_embeds=values["negative_pooled_prompt_embeds"],
            max_sequence_length=values["max_sequence_length"],
        )  # fmt: skip
        return values

    def _encode(self, prompt, call: Mapping[str, Any]) -> tuple[Text, Text | None]:
        """The prompt, and the negative one where it guides."""
        shared = {
            "device": self._execution_device,
            "num_images_per_prompt": call["num_images_per_prompt"] or 1,
            "max_sequence_length": call["max_sequence_length"],
            "lora_scale": (call["joint_attention_kwargs"] or {}).get("scale"),
        }

        def encoded(prefix: str, first) -> Text:
            embeds, pooled, _ = self.encode_prompt(
                first,
                call[f"{prefix}prompt_2"],
                prompt_embeds=call[f"{prefix}prompt_embeds"],
                pooled_prompt_embeds=call[f"{prefix}pooled_prompt_embeds"],
                **shared,
            )
            added = {"pooled_projections": pooled}
            if self.transformer.config.guidance_embeds:
                added["guidance"] = torch.full((len(embeds),), float(call["guidance_scale"]), device=embeds.device)
            return Text(embeds=embeds, added=added)

        text = encoded("", prompt)
        wanted = call["negative_prompt"] is not None or call["negative_prompt_embeds"] is not None
        if call["true_cfg_scale"] <= 1 or not wanted:
            return text, None
        negative = call["negative_prompt"]
        if isinstance(negative, str) and isinstance(prompt, list):
            negative = [negative] * len(prompt)
        return text, encoded("negative_", negative)

    def _start(self, call: Mapping[str, Any], text: Text) -> tuple[Sampling, torch.Tensor]:
        """The scheduler with its timesteps set, and the initial noise (B, N, D)."""
        device, steps = self._execution_device, call["num_inference_steps"]
        latents, _ = self.prepare_latents(
            len(text.embeds), self.transformer.config.in_channels // 4, call["height"], call["width"],
            text.embeds.dtype, device, call["generator"], call["latents"],
        )  # fmt: skip
        config = self.scheduler.config
        mu = shift_exponent(
            call["uno"].token_count(call["height"], call["width"]),
            (config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)),
            (config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)),
        )
        timesteps, steps = retrieve_timesteps(
            self.scheduler, steps, device, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu
        )
        self.scheduler.set_begin_index(0)
        return Sampling(scheduler=self.scheduler, steps=steps, timesteps=timesteps, step_kwargs={}), latents

    def _conditions(
        self, prompt, rows: Sequence[Mapping[str, Subject]], texts: tuple[Text, Text | None], grid: Size, call: Mapping
    ) -> Conditions:
        """Everything the masked loop is conditioned on."""
        text, negative = texts
        device, images = text.embeds.device, call["num_images_per_prompt"] or 1
        prompts = self.texts_for(call["prompt_2"] or prompt, self.tokenizer_2, most=call["max_sequence_length"])
        words = [list(row) for row in rows]
        weights = token_weights([self.tokenizer_2], [(each,) for each in prompts], words, text.embeds.shape[1])
        subjects = [list(row.values()) for row in rows]
        if len(subjects) > 1:
            subjects = [row for row in subjects for _ in range(images)]
        regions = regions_of(subjects, grid)
        shown = [shown_subjects(row) for row in subjects]
        references = encode_references(self.vae, shown, grid, call["uno"], self._execution_device)
        return Conditions(
            text=text,
            negative=negative,
            token_weights=weights.repeat_interleave(images, dim=0).to(device),
            strengths=torch.tensor([[subject.strength for subject in row] for row in subjects], device=device),
            regions=None if regions is None else regions.to(device),
            references=SameReferences(references),
        )

    def _walk(
        self, loop: Iterator[Step], sampling: Sampling, tensors: StepTensors
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All steps: the last latents (B, N, D), and the masks (steps, B, S, r, c) float32 on the CPU."""
        self._num_timesteps = len(sampling.timesteps)
        masks = []
        with self.progress_bar(total=sampling.steps) as bar:
            for step in loop:
                self._current_timestep = step.timestep
                tensors.tell(self, step)
                masks.append(step.masks)
                bar.update()
                if self.interrupt:
                    break
        self._current_timestep = None
        return step.latents, None if masks[0] is None else torch.stack(masks).float().cpu()

    def _finished(self, latents: torch.Tensor, masks, call: Mapping[str, Any]):
        """Tokens (B, N, D) to what the call returns; as latents they stay packed, as FluxPipeline's do."""
        images = latents
        if call["output_type"] != "latent":
            images, _ = self.pictures(latents, call["output_type"])
        self.maybe_free_model_hooks()
        result = RealCustomOutput(images=images, masks=masks)
        return result if call["return_dict"] else (result.images, result.masks)

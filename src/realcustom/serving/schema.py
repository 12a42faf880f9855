"""What travels over HTTP, for the OpenAPI document. Requests are checked by `realcustom.types`, not by these models,
so that this door refuses with the same sentences as all others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from realcustom.checks import MAX_PROMPT_CHARACTERS
from realcustom.types import MAX_SEED, MAX_SIDE, MAX_STEPS, RANDOM_SEED

PICTURE = (
    "id of an uploaded picture or the SHA-256 of what it shows, a data: URL or plain base64, or in multipart the name "
    "of a part that holds the file"
)


class SubjectBody(BaseModel):
    """What one word of the prompt stands for."""

    model_config = ConfigDict(extra="forbid")

    images: str | list[str] = Field(description=f"One or more references: {PICTURE}.")
    strength: float | None = Field(
        None, ge=0, le=2, description="How much the references act, 1 by default; 0 leaves the word to the text."
    )
    region: list[float] | str | None = Field(
        None, description="Box left, top, right, bottom in fractions of the image, or a mask picture; null: everywhere."
    )
    weights: list[float] | None = Field(None, description="How much each image counts among them, 0 to 1 each.")


class ControlBody(BaseModel):
    """A picture for a ControlNet of the server."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description=PICTURE)
    name: str | None = Field(None, description="Of the ControlNet, where there are several.")
    scale: float | None = Field(None, ge=0, le=2, description="How much it acts, 1 by default.")
    start: float | None = Field(None, ge=0, le=1, description="Share of the run at which it begins, 0 by default.")
    end: float | None = Field(None, ge=0, le=1, description="Share of the run at which it ends, 1 by default.")


class GenerationBody(BaseModel):
    """What to make; null or absent is the model's own default."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description="May mention characters as @name.",
        examples=["a dog on the beach"],
    )
    subjects: dict[str, SubjectBody | str | list[str]] | None = Field(
        None,
        description='Word of the prompt, or one place of it ("dog#2") -> what it looks like; a picture is a subject.',
    )
    negative_prompt: str | None = None
    height: int | None = Field(None, ge=8, le=MAX_SIDE, description="Pixels.")
    width: int | None = Field(None, ge=8, le=MAX_SIDE, description="Pixels.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    seed: int | None = Field(
        None,
        ge=RANDOM_SEED,
        le=MAX_SEED,
        description="Image i is drawn from seed + i; 0 by default; -1 draws a seed, which the answer tells.",
    )
    num_images: int | None = Field(None, ge=1, description="1 by default.")
    guidance_scale: float | None = Field(None, ge=0, le=100)
    image_guidance_scale: float | None = Field(None, ge=0, le=100)
    mask_scope: float | None = Field(None, gt=0, le=1, description="Share of the image that the mask keeps.")
    preset: str | None = Field(None, description="Name of settings that fill in what the request leaves open.")
    image: str | None = Field(None, description=f"A picture to start from: {PICTURE}.")
    denoising: float | None = Field(
        None, gt=0, le=1, description="Share of the steps that are run on it; 0.8 by default, in a hole 1."
    )
    hole: list[float] | list[list[float]] | str | None = Field(
        None,
        description="Where it is drawn anew: left, top, right, bottom, corners [[x, y], ...], or a mask picture.",
    )
    feather: int | None = Field(None, ge=0, description="Pixels over which the new passes into the old in the hole.")
    padding: int | None = Field(None, ge=0, description="Draw the hole and so many pixels around it only, full size.")
    controls: list[ControlBody] | None = Field(None, description="Pictures for the server's ControlNets.")
    long_prompt: bool | None = Field(None, description="Read longer prompts than the model reads at once, in chunks.")
    prompt_weights: bool | None = Field(None, description="(word:1.3), (word) and [word] weigh words.")
    describe_characters: bool | None = Field(
        None, description="Add the descriptions of mentioned characters to the prompt; false by default."
    )
    model: str | None = Field(None, description="Refused unless it is the model that is served.")
    priority: int | None = Field(
        None, ge=0, le=9, description="Goes before what has less; one more is worth a minute of waiting; 0 by default."
    )
    webhook: str | None = Field(None, description="Address, on a host that the server allows, that is told of the end.")


class JobView(BaseModel):
    """A generation."""

    id: str
    state: str = Field(description="queued, running, done, failed, cancelled or interrupted.")
    step: int = Field(description="Denoising steps done, over all images.")
    steps: int
    position: int | None = Field(description="How many wait before it; null when it does not wait.")
    error: str | None
    prompt: str = Field(description="As it is run: characters read as their words.")
    request: dict[str, Any]
    images: list[str] = Field(description="Paths of the finished images.")
    image_ids: list[str] = Field(description="Their ids, usable as references.")
    flagged: list[bool] = Field(
        description="Of each finished image whether the model's safety checker refused it: it is black then."
    )
    warnings: list[str] = Field(description="What should be known about it: words that the model does not know.")
    masks: list[str] = Field(description="Words that have a guidance mask.")
    favourites: list[int] = Field(description="Indices of the images that are marked.")
    trashed: float | None = Field(description="When it was put into the trash; null when it is not there.")
    attempts: int
    priority: int
    created: float
    started: float | None
    finished: float | None


class ProgressEvent(BaseModel):
    """Data of an event "progress"."""

    step: int
    steps: int
    position: int | None = Field(description="How many wait before it; null when it does not wait.")
    preview: str | None = Field(None, description="The image as it is now, a data: URL.")
    masks: dict[str, str] | None = Field(None, description="Word -> its mask as it is now, a data: URL.")


class NewsEvent(BaseModel):
    """Data of an event "progress" about all generations."""

    id: str
    step: int
    steps: int
    position: int | None


class Nothing(BaseModel):
    """Data of an event "stopping" about all generations."""


class StepMasks(BaseModel):
    """The guidance masks of a word over the steps."""

    word: str
    width: int = Field(description="Of a mask, in pixels of its own.")
    height: int
    masks: list[str] = Field(description="One for each step in order: 8-bit grey PNG as data: URL.")


class JobList(BaseModel):
    """Generations, newest first."""

    generations: list[JobView]
    before: int | None = Field(description="Give this as `before` to see older ones; null at the end.")


class PictureView(BaseModel):
    """A picture in the store."""

    id: str
    width: int
    height: int


class MissingPicture(BaseModel):
    """A picture of a request that is not on this server."""

    place: list[str | int] = Field(description='Where it stands in the request: ["subjects", "dog", "images", 0].')
    name: str | None = Field(description="Of the file it was read from.")
    sha256: str = Field(description="Hash of what it shows, which stands in its place.")
    size: tuple[int, int] | None = Field(description="Width and height in pixels.")
    sentence: str


class RestoredView(BaseModel):
    """What a picture was made of."""

    request: dict[str, Any] = Field(
        description="A GenerationBody: pictures by id, missing ones by the hash of what they show; it is right as it "
        "is once those are uploaded."
    )
    missing: list[MissingPicture]
    notes: list[str] = Field(description="What else is not as it was: another model, unknown settings.")


class FaceView(BaseModel):
    """Where a face is: left, top, right, bottom in fractions; null when none was found."""

    box: list[float] | None


class CharacterBody(BaseModel):
    """A named subject."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="1 to 40 letters, digits, - and _.", examples=["rex"])
    word: str = Field(description="What @name reads as.", examples=["dog"])
    images: list[str] = Field(min_length=1, description=f"References of the whole subject: {PICTURE}.")
    faces: list[str] = Field(default_factory=list, description="References of the face alone.")
    description: str = ""
    strength: float = Field(1.0, ge=0, le=2)
    face_strength: float = Field(1.0, ge=0, le=2)


class CharacterList(BaseModel):
    """All characters by name."""

    characters: list[CharacterBody]


class ModelView(BaseModel):
    """A model that is served: its own size, grid and defaults."""

    model_config = ConfigDict(extra="allow")

    name: str


class OpenAIModel(BaseModel):
    """A model as OpenAI's interface tells of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models of this server."""

    object: Literal["list"]
    data: list[OpenAIModel]
    models: list[ModelView]


class ImageBody(BaseModel):
    """OpenAI's parameters; every field of a GenerationBody may stand beside them."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, examples=["a dog on the beach"])
    model: str | None = None
    n: int | None = Field(None, ge=1, description="How many images; 1 by default.")
    size: str | None = Field(None, description="WIDTHxHEIGHT, or auto: the model's own.", examples=["64x64"])
    quality: Literal["auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"] | None = Field(
        None, description="low and medium are the presets turbo and fast; any other is exact."
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json by default.")
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    seed: int | None = Field(None, ge=RANDOM_SEED, le=MAX_SEED, description="Drawn at random by default.")
    guidance_scale: float | None = Field(None, ge=0, le=100)


class EditBody(ImageBody):
    """OpenAI's parameters of an edit."""

    image: str | list[str] = Field(description=f"1 to 16 references: {PICTURE}.")
    words: list[str] | None = Field(
        None, description="The word of the prompt that each image shows; absent where the prompt names one thing alone."
    )
    mask: str | None = Field(None, description="Picture, transparent where the subject of the first image may stand.")


class ImageView(BaseModel):
    """One image: its PNG file, or its address, which needs the token, too."""

    model_config = ConfigDict(extra="allow")

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = Field(None, description="As it was run, where characters were mentioned.")
    flagged: bool | None = Field(None, description="True where the model's safety checker made it black.")


class ImagesView(BaseModel):
    """What OpenAI's interface answers."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="Of the generation.")
    created: int
    data: list[ImageView]
    output_format: str
    size: str


class Health(BaseModel):
    """Whether the server works."""

    status: str = Field(description="ok or troubled.")
    problems: list[str] = Field(description="Why no generation can be made now; empty where all is well.")
    version: str
    queued: int


class OpenAIError(BaseModel):
    """The same sentence as clients of OpenAI's interface read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    detail: str
    error: OpenAIError | None = Field(None, description="On the paths of OpenAI's interface.")


def body(model: type[BaseModel], multipart: bool = False) -> dict[str, Any]:
    """`openapi_extra` of an endpoint that reads its body itself; `realcustom.serving.document` adds the schema."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": reference}}
    if multipart:
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "properties": {"request": {"type": "string", "description": "The same as JSON text."}},
                "additionalProperties": {"type": "string", "format": "binary"},
                "required": ["request"],
            }
        }
    return {"requestBody": {"required": True, "content": content}}


def edit_body() -> dict[str, Any]:
    """`requestBody` of an edit: multipart, as OpenAI's clients send it, or JSON."""
    binary = {"type": "string", "format": "binary"}
    parts = {"prompt": {"type": "string"}, "mask": binary, "words[]": {"type": "array", "items": {"type": "string"}}}
    parts["image[]"] = {"type": "array", "items": binary}
    form = {"type": "object", "properties": parts, "required": ["prompt"], "additionalProperties": {"type": "string"}}
    reference = {"$ref": f"#/components/schemas/{EditBody.__name__}"}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": reference}}
    return {"required": True, "content": content}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of an endpoint for these status codes."""
    texts = {
        400: "The body cannot be read.",
        401: "The token is missing or wrong.",
        404: "There is no such thing.",
        409: "Not in this state.",
        413: "Too many bytes or pixels.",
        422: "Something in the request is wrong; the sentence says what.",
        429: "The queue is full; Retry-After says when to try again.",
        500: "It could not be made.",
    }
    return {code: {"model": Problem, "description": texts[code]} for code in codes}

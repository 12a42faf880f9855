"""The gallery over REST: search, marks, a trash to take things out of again, and ZIP files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import StringConstraints

from realcustom.serving import schema
from realcustom.serving.blobs import NotHere
from realcustom.serving.gallery import Wanted, file_name, search, zip_chunks
from realcustom.serving.records import Job
from realcustom.serving.schema import problems
from realcustom.serving.service import Service

MOST_PICTURES = 200  # of one ZIP file
ZIP = {200: {"content": {"application/zip": {}}, "description": "The pictures, with their settings in them."}}

Id = Annotated[str, Path(max_length=200)]
Index = Annotated[int, Path(ge=0, le=1000)]
Place = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}/(0|[1-9][0-9]{0,2})$")]


def gallery_router(service: Service) -> APIRouter:
    """What belongs to /v1/gallery, and the marks of generations."""
    api = APIRouter(prefix="/v1")

    @api.get("/gallery", response_model=schema.JobList, responses=problems(422))
    def list_gallery(
        text: Annotated[str | None, Query(max_length=200, description="Parts of the prompt or of its words.")] = None,
        word: Annotated[str | None, Query(max_length=200, description="A subject of the prompt.")] = None,
        character: Annotated[str | None, Query(max_length=200, description="That the prompt mentions.")] = None,
        favourites: Annotated[bool, Query(description="Only what has a marked image.")] = False,
        trashed: Annotated[bool, Query(description="What lies in the trash, instead of what does not.")] = False,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    ):
        """Finished generations that are as asked for, newest first. A page may hold fewer than `limit` while `before`
        tells that there are older ones."""
        wanted = Wanted(text=text or "", word=word, character=character, favourites=favourites, trashed=trashed)
        found, older = search(service.jobs, wanted, limit, before)
        return {"generations": [service.describe_job(job) for job in found], "before": older}

    @api.get("/gallery/zip", response_class=StreamingResponse, responses={**ZIP, **problems(404, 422)})
    def get_zip(
        picture: Annotated[
            list[Place], Query(min_length=1, max_length=MOST_PICTURES, description="Generation/number of the image.")
        ],
    ):
        """Many images as one ZIP file."""
        places = [_place(service, one) for one in dict.fromkeys(picture)]
        pictures = service.store.pictures
        files = ((file_name(job, index), job.finished, pictures.get(job.images[index])) for job, index in places)
        return StreamingResponse(
            zip_chunks(files),
            media_type="application/zip",
            headers={"content-disposition": 'attachment; filename="realcustom.zip"', "cache-control": "no-store"},
        )

    @api.put("/generations/{id}/images/{index}/favourite", status_code=204, responses=problems(404))
    def mark_favourite(id: Id, index: Index):
        """Mark an image."""
        service.jobs.mark_favourite(id, index, True)

    @api.delete("/generations/{id}/images/{index}/favourite", status_code=204, responses=problems(404))
    def unmark_favourite(id: Id, index: Index):
        """Take the mark of an image away."""
        service.jobs.mark_favourite(id, index, False)

    @api.put("/generations/{id}/trash", status_code=204, responses=problems(404, 409))
    def trash_generation(id: Id):
        """Put a finished generation into the trash: it is listed no more, and removed a day later."""
        try:
            service.jobs.trash(id)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error

    @api.delete("/generations/{id}/trash", status_code=204, responses=problems(404))
    def take_out_generation(id: Id):
        """Take a generation out of the trash."""
        service.jobs.take_out(id)

    return api


def _place(service: Service, place: str) -> tuple[Job, int]:
    """The generation and the number of an image "ID/NUMBER", whose file is there."""
    name, _, index = place.partition("/")
    job = service.jobs.get(name)
    if int(index) >= len(job.images):
        raise NotHere(f"This generation has {len(job.images)} images; there is no image {index}.")
    service.store.pictures.path(job.images[int(index)])
    return job, int(index)

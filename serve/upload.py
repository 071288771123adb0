"""A request's form, read as it arrives: small fields into memory, the audio onto disk.

Starlette's parser does the reading and moves a file out of memory at 1 MiB; here are the limits. The body is
counted before it is parsed, so that one without a length is stopped at the limit, too.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO, cast

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve.protocol import SpeechForm
from serve.settings import MIB, ServeSettings
from speech.errors import RequestError

# Of the form besides its file: enough for the most keywords that a prompt takes.
MAX_FIELDS = 300
MAX_FIELD_BYTES = 16 << 10
# What the fields and the boundaries of a form may add to the audio.
FORM_BYTES = MIB
# The longest file name that is repeated in a message.
MAX_NAME_CHARS = 100


@asynccontextmanager
async def receive_form(request: Request, settings: ServeSettings) -> AsyncIterator[tuple[SpeechForm, str, BinaryIO]]:
    """Reads a form; gives its fields, the audio's name and the audio, which lies on disk and is dropped on leaving.

    Raises:
        RequestError: ``not_multipart``, ``bad_form``, ``bad_field``, ``too_large`` or ``upload_timeout``.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError("not_multipart", "the body must be multipart/form-data with the audio in the field 'file'")
    limit = settings.max_upload_bytes + FORM_BYTES
    parser = MultiPartParser(
        request.headers,
        _counted(request, limit, settings.max_upload_mib),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        async with asyncio.timeout(settings.upload_timeout_s):
            form = await parser.parse()
    except MultiPartException as error:
        raise RequestError("bad_form", f"the form cannot be read: {error.message}") from error
    except TimeoutError as error:
        raise RequestError("upload_timeout", f"the upload took over {settings.upload_timeout_s:g} s") from error
    try:
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise RequestError("bad_form", "the form has no file in its field 'file'")
        if (upload.size or 0) > settings.max_upload_bytes:
            raise _too_large(settings.max_upload_mib)
        name = "".join(char for char in upload.filename or "" if char.isprintable())[-MAX_NAME_CHARS:]
        yield SpeechForm.from_fields(fields), name or "the audio", cast(BinaryIO, upload.file)
    finally:
        await form.close()


async def _counted(request: Request, limit: int, limit_mib: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes, up to ``limit`` bytes; refused at once where its length is announced."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit_mib)
    taken = 0
    async for chunk in request.stream():
        taken += len(chunk)
        if taken > limit:
            raise _too_large(limit_mib)
        yield chunk


def _too_large(limit_mib: int) -> RequestError:
    return RequestError("too_large", f"the upload has over {limit_mib} MiB, the most that is taken here")

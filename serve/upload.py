"""Reads a request's form as it arrives: fields into memory, the audio onto disk.

Starlette's parser moves a file from memory to disk at 1 MiB; this module enforces the limits. Bytes are counted
before they are parsed, so that a body without a Content-Length is stopped at the limit as well.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO, cast

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve.form import SpeechForm
from serve.settings import MIB, ServeSettings
from speech.errors import RequestError
from speech.recording import Task

# Fields besides the file: enough for MAX_KEYWORDS of speech.recording.
MAX_FIELDS = 300
MAX_FIELD_BYTES = 16 << 10
# Bytes of a form besides its audio: fields and boundaries.
FORM_BYTES = MIB
# Characters of a file name that messages quote.
MAX_NAME_CHARS = 100


@asynccontextmanager
async def receive_form(
    request: Request, settings: ServeSettings, task: Task
) -> AsyncIterator[tuple[SpeechForm, str, BinaryIO]]:
    """Reads a form; yields its fields, the file's name and the audio, a file that is deleted on exit.

    Raises:
        RequestError: ``not_multipart``, ``bad_form``, ``too_large``, ``upload_timeout``, or a code of
            ``SpeechForm.from_fields``.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError("not_multipart", "the body must be multipart/form-data with the audio in the field 'file'")
    limit = settings.max_upload_bytes + FORM_BYTES
    parser = _FormParser(
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
        yield SpeechForm.from_fields(fields, task), name or "the audio", cast(BinaryIO, upload.file)
    finally:
        await form.close()


class _FormParser(MultiPartParser):
    """Starlette's parser, for which a part is a file only if it has a file name; here the part ``file`` always is."""

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, parameters = parse_options_header(part.content_disposition)
        if parameters.get(b"name") == b"file" and b"filename" not in parameters:
            part.content_disposition = (part.content_disposition or b"") + b'; filename=""'
        super().on_headers_finished()


async def _counted(request: Request, limit: int, limit_mib: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, up to ``limit`` bytes; refused before the first where Content-Length exceeds it."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit_mib)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(limit_mib)
        yield chunk


def _too_large(limit_mib: int) -> RequestError:
    return RequestError("too_large", f"the upload is larger than {limit_mib} MiB, the maximum")

"""Reads a request's form as it arrives: fields into memory, the audio onto disk.

Starlette's parser moves a file from memory to disk at 1 MiB; this module enforces the limits. Bytes are counted
before they are parsed, so that a body without a Content-Length is stopped at the limit as well.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO, cast

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve.form import SpeechForm
from serve.limits import ByteBudget
from serve.settings import MIB, ServeSettings
from speech.errors import RequestError
from speech.recording import Task

# Fields besides the file: enough for MAX_KEYWORDS of speech.recording.
MAX_FIELDS = 300
MAX_FIELD_BYTES = 16 << 10
# Bytes of a form besides its audio: fields and boundaries.
FORM_BYTES = MIB
# A body may be this many seconds behind the lowest rate, of bytes a second.
GRACE_S = 30.0
MIN_BYTES_PER_S = 8 << 10
# Characters of a file name that messages quote.
MAX_NAME_CHARS = 100


@asynccontextmanager
async def receive_form(
    request: Request, settings: ServeSettings, task: Task, budget: ByteBudget
) -> AsyncIterator[tuple[SpeechForm, str, BinaryIO]]:
    """Reads a form; yields its fields, the file's name and the audio, a file that is deleted on exit.

    Bytes count against ``budget`` until then.

    Raises:
        RequestError: ``not_multipart``, ``bad_form``, ``too_large``, ``upload_timeout``, ``overloaded``, or a code
            of ``SpeechForm.from_fields``.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError("not_multipart", "the body must be multipart/form-data with the audio in the field 'file'")
    with budget.upload() as take:
        form = await _parse(request, settings, take)
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


async def _parse(request: Request, settings: ServeSettings, take: Callable[[int], None]) -> FormData:
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(start + min(GRACE_S, settings.upload_timeout_s)) as deadline:

            def extend(received: int) -> None:
                """Gives a slow body as long as it has at the lowest rate."""
                deadline.reschedule(start + min(GRACE_S + received / MIN_BYTES_PER_S, settings.upload_timeout_s))

            parser = _FormParser(
                request.headers,
                _counted(request, settings.max_upload_mib, take, extend),
                max_files=1,
                max_fields=MAX_FIELDS,
                max_part_size=MAX_FIELD_BYTES,
            )
            return await parser.parse()
    except MultiPartException as error:
        raise RequestError("bad_form", f"the form cannot be read: {error.message}") from error
    except TimeoutError as error:
        seconds = asyncio.get_running_loop().time() - start
        raise RequestError(
            "upload_timeout",
            f"the upload was not complete after {seconds:.0f} s: it may take {settings.upload_timeout_s:g} s, "
            f"and needs {MIN_BYTES_PER_S >> 10} KiB a second",
        ) from error


class _FormParser(MultiPartParser):
    """Starlette's parser, for which a part is a file only if it has a file name; here the part ``file`` always is."""

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, parameters = parse_options_header(part.content_disposition)
        if parameters.get(b"name") == b"file" and b"filename" not in parameters:
            part.content_disposition = (part.content_disposition or b"") + b'; filename=""'
        super().on_headers_finished()


async def _counted(
    request: Request, limit_mib: int, take: Callable[[int], None], extend: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """The body's chunks, up to a limit; refused before the first where Content-Length exceeds it."""
    limit = limit_mib * MIB + FORM_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit_mib)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(limit_mib)
        take(len(chunk))
        extend(received)
        yield chunk


def _too_large(limit_mib: int) -> RequestError:
    return RequestError("too_large", f"the upload is larger than {limit_mib} MiB, the maximum")

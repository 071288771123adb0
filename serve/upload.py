"""Reads a request's form as it arrives: fields into memory, the audio onto disk.

Starlette's parser moves a file from memory to disk at 1 MiB; this module enforces the limits. Bytes are counted
before they are parsed, so that a body without a Content-Length is stopped at the limit as well.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
# Of a file that is listened to while it arrives: bytes that must be there, and seconds in which the rest must come at
# the rate so far, since a Listener is held meanwhile.
EARLY_BYTES = MIB
SOON_S = 10.0
# Of a form's fields. Python knows a hundred more, some of which fail otherwise than by a UnicodeDecodeError, or decode
# to text that UTF-8 has not.
CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1")
# Characters of a file name that messages quote.
MAX_NAME_CHARS = 100


@dataclass(frozen=True)
class Form:
    """A form that is complete, or is once its file is.

    Attributes:
        fields: of the request.
        name: of the file.
        audio: the file; deleted when ``receive_form`` exits.
        size: bytes that it has, those that are to come included.
    """

    fields: SpeechForm
    name: str
    audio: BinaryIO
    size: int


@asynccontextmanager
async def receive_form(
    request: Request, settings: ServeSettings, task: Task, budget: ByteBudget
) -> AsyncIterator["Upload"]:
    """Begins to read a form. Its bytes count against ``budget`` until exit.

    Raises:
        RequestError: ``not_multipart``; ``bad_form`` for another encoding than UTF-8.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind.lower() != b"multipart/form-data":
        raise RequestError("not_multipart", "the body must be multipart/form-data with the audio in the field 'file'")
    if parameters.get(b"charset", b"utf-8").lower() not in CHARSETS:
        raise RequestError("bad_form", "the form must be in UTF-8")
    with budget.upload() as take:
        upload = Upload(request, settings, task, take)
        try:
            yield upload
        finally:
            await upload.close()


class Upload:
    """A form that is arriving."""

    def __init__(self, request: Request, settings: ServeSettings, task: Task, take: Callable[[int], None]) -> None:
        self._settings = settings
        self._task = task
        self._parser = _FormParser(request, settings, take)
        self._parsing = asyncio.create_task(self._parser.parse_in_time())

    async def early(self) -> Form | None:
        """The form before it is complete: when its file has a part that is worth a start, and the rest comes soon.

        Fields may follow the file. None once the form is complete, or has failed.
        """
        soon = asyncio.create_task(self._parser.soon.wait())
        try:
            await asyncio.wait({self._parsing, soon}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            soon.cancel()
        file, size = self._parser.arriving_file, self._parser.expected_size
        if self._parsing.done() or file is None or size is None:
            return None
        with contextlib.suppress(RequestError):  # that the complete form will tell
            return self._form(self._parser.items, file, size)
        return None

    async def complete(self) -> Form:
        """The form when it is complete.

        Raises:
            RequestError: ``bad_form``, ``too_large``, ``upload_timeout``, ``overloaded``, or a code of
                ``SpeechForm.from_fields``.
        """
        items = (await asyncio.shield(self._parsing)).multi_items()
        file = dict(items).get("file")
        if not isinstance(file, UploadFile):
            raise RequestError("bad_form", "the form has no file in its field 'file'")
        if (file.size or 0) > self._settings.max_upload_bytes:
            raise _too_large(self._settings.max_upload_mib)
        file.file.flush()  # for a Listener that is reading it
        return self._form(items, file, file.size or 0)

    async def close(self) -> None:
        """Stops reading, and deletes the file."""
        self._parsing.cancel()
        with contextlib.suppress(asyncio.CancelledError, RequestError):
            await (await self._parsing).close()

    def _form(self, items: Sequence[tuple[str, str | UploadFile]], file: UploadFile, size: int) -> Form:
        fields = [(name, value) for name, value in items if isinstance(value, str)]
        name = "".join(char for char in file.filename or "" if char.isprintable())[-MAX_NAME_CHARS:]
        return Form(SpeechForm.from_fields(fields, self._task), name or "the audio", cast(BinaryIO, file.file), size)


class _FormParser(MultiPartParser):
    """Starlette's parser, for which a part is a file only if it has a file name; here the part ``file`` always is.

    Attributes:
        soon: set when EARLY_BYTES of the file are there and, at the rate so far, the rest is within SOON_S.
    """

    def __init__(self, request: Request, settings: ServeSettings, take: Callable[[int], None]) -> None:
        super().__init__(
            request.headers,
            self._counted(request, settings.max_upload_mib, take),
            max_files=1,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        )
        self.soon = asyncio.Event()
        self._timeout_s = settings.upload_timeout_s
        self._start = asyncio.get_running_loop().time()
        self._received = self._parsed = 0  # bytes of the body
        self._file_starts: int | None = None  # offset in the body

    @property
    def arriving_file(self) -> UploadFile | None:
        """The file whose bytes are arriving now."""
        return self._current_part.file

    @property
    def expected_size(self) -> int | None:
        """Bytes of the file if it is the form's last part, by the length of the body."""
        length = self.headers.get("content-length", "")
        if self._file_starts is None or not length.isdecimal():
            return None
        _, parameters = parse_options_header(self.headers["content-type"])
        return int(length) - self._file_starts - len(b"\r\n--" + parameters[b"boundary"] + b"--\r\n")

    async def parse_in_time(self) -> FormData:
        """
        Raises:
            RequestError: as of ``Upload.complete``, but for codes of fields.
        """
        try:
            async with asyncio.timeout_at(self._start + min(GRACE_S, self._timeout_s)) as self._deadline:
                return await self.parse()
        except MultiPartException as error:
            raise RequestError("bad_form", f"the form cannot be read: {error.message}") from error
        except TimeoutError as error:
            seconds = asyncio.get_running_loop().time() - self._start
            raise RequestError(
                "upload_timeout",
                f"the upload was not complete after {seconds:.0f} s: it may take {self._timeout_s:g} s, "
                f"and needs {MIN_BYTES_PER_S >> 10} KiB a second",
            ) from error

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, parameters = parse_options_header(part.content_disposition)
        if parameters.get(b"name") == b"file" and b"filename" not in parameters:
            part.content_disposition = (part.content_disposition or b"") + b'; filename=""'
        super().on_headers_finished()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is not None and self._file_starts is None:
            self._file_starts = self._parsed + start
        super().on_part_data(data, start, end)

    async def _counted(
        self, request: Request, limit_mib: int, take: Callable[[int], None]
    ) -> AsyncGenerator[bytes, None]:
        """The body's chunks, up to a limit; refused before the first where Content-Length exceeds it."""
        limit = limit_mib * MIB + FORM_BYTES
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit_mib)
        async for chunk in request.stream():
            self._received += len(chunk)
            if self._received > limit:
                raise _too_large(limit_mib)
            take(len(chunk))
            self._extend_deadline()
            yield chunk
            self._parsed += len(chunk)
            self._look_ahead()

    def _extend_deadline(self) -> None:
        """Gives a slow body as long as it has at the lowest rate."""
        self._deadline.reschedule(self._start + min(GRACE_S + self._received / MIN_BYTES_PER_S, self._timeout_s))

    def _look_ahead(self) -> None:
        if self.soon.is_set() or self._file_starts is None or self._parsed < self._file_starts + EARLY_BYTES:
            return
        size = self.expected_size
        if size is None:
            return
        rest = size - (self._parsed - self._file_starts)
        if rest * (asyncio.get_running_loop().time() - self._start) <= SOON_S * self._parsed:
            self.soon.set()


def _too_large(limit_mib: int) -> RequestError:
    return RequestError("too_large", f"the upload is larger than {limit_mib} MiB, the maximum")

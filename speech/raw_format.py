"""Audio without a header, as telephone systems write it: its format is in the file's name, or nowhere.

The names are Asterisk's, sox's and FFmpeg's. Where a name is not enough (``.raw``, another rate, two channels), the
option ``raw_format`` says what it is.
"""

import re
from dataclasses import dataclass, replace

from speech.errors import RequestError
from speech.redaction import redact_uri


@dataclass(frozen=True)
class RawFormat:
    """How samples are coded.

    Attributes:
        subtype: libsndfile's name of the coding; None: FFmpeg decodes it.
        rate: Hz.
        channels: interleaved.
        demuxer: FFmpeg's name of the format.
        options: of the demuxer.
    """

    subtype: str | None
    rate: int = 8000
    channels: int = 1
    demuxer: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def _g726(demuxer: str, bits: int) -> RawFormat:
    options = (("code_size", str(bits)), ("sample_rate", "8000"))
    return RawFormat(None, demuxer=demuxer, options=options)


_SLN_RATES = (8000, 12000, 16000, 24000, 32000, 44100, 48000, 96000, 192000)
_FORMATS: dict[str, RawFormat] = {
    "ulaw": RawFormat("ULAW"),
    "alaw": RawFormat("ALAW"),
    "sln": RawFormat("PCM_16"),
    **{f"sln{rate // 1000}": RawFormat("PCM_16", rate) for rate in _SLN_RATES},
    "gsm": RawFormat("GSM610"),
    "vox": RawFormat("VOX_ADPCM"),
    "g722": RawFormat(None, 16000, demuxer="g722"),
    # Asterisk packs G.726 as RFC 3551 says, the first sample in the low bits; ITU's and FFmpeg's order is the other.
    "g726": _g726("g726", 4),
    "g726le": _g726("g726le", 4),
    **{f"g726-{bits * 8}": _g726("g726le", bits) for bits in (2, 3, 4, 5)},
    "g729": RawFormat(None, demuxer="g729"),
}
# Other suffixes of the same formats.
_SUFFIXES = {"ul": "ulaw", "mu": "ulaw", "mulaw": "ulaw", "ulw": "ulaw", "al": "alaw", "alw": "alaw", "slin": "sln"}
_NAMES = {**{name: name for name in _FORMATS}, **_SUFFIXES}
# Names of files that are read as raw audio, without the dot.
RAW_SUFFIXES = frozenset(_NAMES)
_LAYOUT = re.compile(r"(?P<name>[a-z0-9-]+)(?::(?P<rate>\d{4,6})(?::(?P<channels>\d{1,2}))?)?")


def parse_raw_format(text: str) -> RawFormat:
    """The format of ``NAME``, ``NAME:RATE`` or ``NAME:RATE:CHANNELS``, as in ``sln:16000:2``.

    Raises:
        RequestError: ``unsupported_option`` for another name, or a rate or channels that the format does not have.
    """
    match = _LAYOUT.fullmatch(text.strip().lower())
    format = _FORMATS.get(_NAMES.get(match["name"], "")) if match else None
    if match is None or format is None:
        raise RequestError(
            "unsupported_option",
            f"raw_format {text!r} is not NAME, NAME:RATE or NAME:RATE:CHANNELS; names: {', '.join(sorted(_FORMATS))}",
        )
    if match["rate"] is None:
        return format
    if format.subtype in (None, "GSM610"):
        raise RequestError("unsupported_option", f"raw_format {text!r}: {match['name']} has one rate and one channel")
    return replace(format, rate=int(match["rate"]), channels=int(match["channels"] or 1))


def raw_format_of(name: str, raw_format: str | None) -> RawFormat | None:
    """The format of a file without a header: that of the option, else that of the name's suffix, else None."""
    if raw_format is not None:
        return parse_raw_format(raw_format)
    suffix = redact_uri(name).rpartition(".")[2].lower()  # a path may hold # and ?
    return _FORMATS.get(_NAMES.get(suffix, ""))

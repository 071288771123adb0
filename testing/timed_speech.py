"""Synthetic speech whose word times are known exactly: espeak-ng reports them while it synthesises.

A word begins at its first phoneme and ends where the next word, or a pause, begins. Uses the C library of Debian's
espeak-ng (``espeak-ng/speak_lib.h``), whose program does not print times.
"""

import ctypes
import ctypes.util
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import soxr

from speech.audio import SAMPLE_RATE
from speech.transcript import Word

# Of speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 1
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _PITCH = 1, 3
_LIST_TERMINATED, _WORD, _END, _PHONEME = 0, 1, 5, 7


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class TimedSpeech:
    """Speech and the words in it."""

    samples: np.ndarray  # float32 at 16 kHz
    words: list[Word]


@dataclass
class _Output:
    """What the library has reported of one text."""

    pcm: list[np.ndarray] = field(default_factory=list)
    events: list[tuple[int, int, str]] = field(default_factory=list)  # type, sample, phoneme


class EspeakNg:
    """The library, initialised once a process.

    Raises:
        OSError: it is not installed.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise OSError("libespeak-ng is not installed: apt-get install espeak-ng")
        self._library = ctypes.CDLL(name)
        self._rate: int = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, None, _INITIALIZE_PHONEME_EVENTS
        )
        if self._rate <= 0:
            raise OSError("espeak-ng cannot be initialised")
        self._output = _Output()
        self._callback = _Callback(self._take)  # must live as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str = "en-us", words_per_minute: int = 160, pitch: int = 50) -> TimedSpeech:
        """Speaks words separated by spaces.

        Raises:
            ValueError: the voice is unknown, or the text is not one word a space for espeak-ng ("1st" may be two).
        """
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._output = _Output()
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, len(encoded), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        pcm = np.concatenate(self._output.pcm).astype(np.float32) / 32768
        times = list(self._word_times())
        words = text.split()
        if len(times) != len(words):
            raise ValueError(f"espeak-ng says {len(times)} words for the {len(words)} of {text!r}")
        timed = [Word(word, start_s, end_s) for word, (start_s, end_s) in zip(words, times, strict=True)]
        return TimedSpeech(soxr.resample(pcm, self._rate, SAMPLE_RATE), timed)

    def _take(self, wav: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if count > 0 and wav:
            self._output.pcm.append(np.ctypeslib.as_array(wav, (count,)).copy())
        index = 0
        while events[index].type != _LIST_TERMINATED:
            event = events[index]
            phoneme = event.id.string.decode() if event.type == _PHONEME else ""
            self._output.events.append((event.type, event.sample, phoneme))
            index += 1
        return 0  # go on

    def _word_times(self) -> Iterator[tuple[float, float]]:
        """Start and end of each word in seconds."""
        start: int | None = None  # in samples; None before a word's first phoneme
        for kind, sample, phoneme in self._output.events:
            is_pause = kind == _PHONEME and phoneme.startswith("_")
            if start is not None and (is_pause or kind in (_WORD, _END)):
                yield start / self._rate, sample / self._rate
                start = None
            elif start is None and kind == _PHONEME and not is_pause:
                start = sample

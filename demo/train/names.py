"""An open vocabulary of rare names whose spelling the audio does not determine.

A name is a sequence of sounds. It is *spoken* from one phonetic respelling, so that all its spellings
sound exactly the same, and *written* with one of several spellings per sound (f or ph, k or c or
ck, ee or ea, single or double letters). Only a keyword in the prompt determines the spelling, which
is what the keyword task trains and measures.
"""

from dataclasses import dataclass
from hashlib import sha256
from random import Random

_FIRST = (
    ("f", ("f", "ph")), ("k", ("k", "c", "kh")), ("v", ("v", "w")), ("z", ("z", "s", "x")), ("r", ("r", "rh")),
    ("t", ("t", "th")), ("s", ("s", "ps")), ("n", ("n", "kn")), ("m", ("m",)), ("l", ("l", "ll")), ("d", ("d", "dh")),
    ("b", ("b", "bh")), ("g", ("g", "gh")), ("br", ("br",)), ("dr", ("dr",)), ("kr", ("kr", "cr", "chr")),
    ("tr", ("tr",)), ("fl", ("fl", "phl")), ("kl", ("kl", "cl")), ("sh", ("sh", "sch")),
)  # fmt: skip
_MIDDLE = (
    ("f", ("f", "ff", "ph")), ("k", ("k", "ck", "cc")), ("n", ("n", "nn")), ("l", ("l", "ll")), ("m", ("m", "mm")),
    ("r", ("r", "rr")), ("t", ("t", "tt")), ("d", ("d", "dd")), ("b", ("b", "bb")), ("v", ("v", "w")),
    ("nd", ("nd",)), ("st", ("st",)), ("lt", ("lt",)), ("rk", ("rk", "rc")), ("nt", ("nt",)), ("mb", ("mb",)),
)  # fmt: skip
_LAST = (
    ("n", ("n", "nn", "ne")), ("s", ("s", "ss", "ce")), ("k", ("k", "ck", "c")), ("l", ("l", "ll")),
    ("t", ("t", "tt")), ("r", ("r", "rr")), ("f", ("f", "ff", "ph")), ("m", ("m", "mm")), ("", ("", "h")),
)  # fmt: skip
_VOWELS = (
    ("a", ("a", "ah")), ("ee", ("ee", "ea", "ie", "i")), ("oh", ("o", "oe", "oa")), ("oo", ("oo", "u", "ou")),
    ("i", ("i", "y")), ("e", ("e", "eh")), ("ay", ("ay", "ai", "ei")),
)  # fmt: skip
_ENDINGS = (("a", ("a", "ah")), ("oh", ("o", "oe")), ("ee", ("y", "ie", "ee", "i")))

_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class RareName:
    """``written`` is the reference spelling, ``spoken`` the synthesiser's input."""

    written: str
    spoken: str


def _sounds(rng: Random) -> list[tuple[str, tuple[str, ...]]]:
    sounds: list[tuple[str, tuple[str, ...]]] = [rng.choice(_FIRST), rng.choice(_VOWELS), rng.choice(_MIDDLE)]
    if rng.random() < 0.35:
        sounds += [rng.choice(_VOWELS), rng.choice(_MIDDLE)]
    sounds += [rng.choice(_ENDINGS)] if rng.random() < 0.5 else [rng.choice(_VOWELS), rng.choice(_LAST)]
    return sounds


def rare_name(rng: Random, *, held_out: bool) -> RareName:
    """A name of the training share or, by the hash of its sounds, of the share held out for tests."""
    while True:
        sounds = _sounds(rng)
        spoken = "".join(sound for sound, _ in sounds)
        in_test_share = sha256(spoken.encode()).digest()[0] < 256 * _HELD_OUT_SHARE
        if in_test_share == held_out:
            return RareName("".join(rng.choice(spellings) for _, spellings in sounds), spoken)

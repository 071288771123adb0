"""The recordings in ``demo/samples``: small calls in the formats that users have, with their references.

``python -m demo.train.samples --out demo/samples`` writes them and ``manifest.jsonl``. The same seed
produces the same audio. Needs espeak-ng, flite and ffmpeg.

Every sentence is of the held-out share of the grammar, so none was trained on; the voices were. The
set covers codecs, channel layouts, a long call, a silent one, and two files that cannot be decoded.
"""

import argparse
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import soundfile
import soxr

from demo.train.channel import band_pass, noise_like, set_level
from demo.train.grammar import Sentence, held_out_sentence, join, name_sentence
from demo.train.names import rare_name
from demo.train.voices import Speaker
from speech.audio import SAMPLE_RATE

Layout = Literal["stereo", "dual mono", "mono"]

VOICES = (
    (Speaker("espeak", "en-gb+f3", 160, 50), Speaker("espeak", "en-us+m3", 165, 45)),
    (Speaker("flite", "slt", 1.0, 170), Speaker("espeak", "en-gb+m7", 155, 50)),
    (Speaker("espeak", "en-us+Andrea", 160, 55), Speaker("flite", "rms", 1.0, 105)),
    (Speaker("espeak", "en-gb-x-rp+m1", 160, 45), Speaker("espeak", "en-us+f4", 155, 55)),
    (Speaker("flite", "rms", 0.95, 110), Speaker("espeak", "en-gb-scotland+Linda", 155, 50)),
)

# Templates of demo.train.grammar, by their first words; agent and customer alternate.
BILLING = (
    ("thank you for calling",),
    ("hello my name is", "i was charged {amount} twice"),
    ("we will refund",),
    ("my account number is", "please send it to"),
    ("your {thing} was sent",),
    ("i have already paid",),
)
DELIVERY = (
    ("good morning this is",),
    ("i have not received", "the order number is"),
    ("your {thing} will arrive",),
    ("i live at",),
    ("it will take about",),
)
REPAIR = (
    ("good afternoon you are",),
    ("my {device} {problem}",),
    ("have you restarted",),
    ("is the light",),
    ("the technician will come",),
    ("please call me back",),
)
TRAVEL = (
    ("thank you for calling",),
    ("i want to travel", "a room in"),
    ("the flight to",),
    ("the booking code is",),
    ("the total is",),
)
ACCOUNT = (
    ("i can see your",),
    ("i have been a customer", "i want to travel"),
    ("is your address still",),
    ("we have moved to",),
    ("my colleague",),
)
# The parts of the long call, in order.
TOPICS = (BILLING, REPAIR, TRAVEL, DELIVERY, ACCOUNT)


@dataclass(frozen=True)
class Call:
    """The specification of one recording: its script and its file."""

    id: str
    file: str
    layout: Layout
    rate: int
    script: tuple[tuple[str, ...], ...] = ()
    names: int = 0  # turns with rare names, whose keywords go into the manifest
    encode: tuple[str, ...] = ()  # ffmpeg's options; if empty, soundfile writes the file
    subtype: str | None = None
    row: dict[str, object] = field(default_factory=dict)


CALLS = (
    Call("billing-001", "billing-001.wav", "stereo", 8000, BILLING, subtype="ULAW"),
    Call("delivery-002", "delivery-002.wav", "stereo", 8000, DELIVERY, subtype="ALAW"),
    Call("repair-003", "repair-003-gsm.wav", "mono", 8000, REPAIR, subtype="GSM610"),
    Call("travel-004", "travel-004.wav", "stereo", 8000, TRAVEL[2:], subtype="PCM_16"),
    Call("account-005", "account-005.flac", "stereo", 8000, ACCOUNT[:4], subtype="PCM_16"),
    Call("repair-006", "repair-006.mp3", "stereo", 16000, REPAIR, encode=("-c:a", "libmp3lame", "-b:a", "48k")),
    Call("delivery-007", "delivery-007.ogg", "stereo", 16000, DELIVERY, encode=("-c:a", "libopus", "-b:a", "32k")),
    Call("travel-008", "travel-008.m4a", "stereo", 16000, TRAVEL, encode=("-c:a", "aac", "-b:a", "48k")),
    Call("billing-009", "billing-009-dual-mono.wav", "dual mono", 8000, BILLING[1:3], subtype="PCM_16"),
    Call("account-010", "account-010.mp3", "mono", 44100, ACCOUNT, encode=("-c:a", "libmp3lame", "-b:a", "64k")),
    Call("delivery-011", "delivery-011.webm", "mono", 16000, DELIVERY, encode=("-c:a", "libopus", "-b:a", "24k")),
    Call("long-012", "long-012.opus", "stereo", 16000, tuple(t for topic in TOPICS * 3 for t in topic),
         encode=("-c:a", "libopus", "-b:a", "20k", "-application", "voip")),
    Call("german-013", "german-013.wav", "stereo", 8000, DELIVERY, subtype="ULAW",
         row={"task": "translate", "target_language": "de"}),
    Call("names-014", "names-014.flac", "mono", 8000, names=3, subtype="PCM_16"),
    Call("names-015", "names-015.ogg", "stereo", 16000, names=4, encode=("-c:a", "libopus", "-b:a", "32k")),
    Call("names-016", "names-016.wav", "stereo", 8000, names=3, subtype="ULAW"),
)  # fmt: skip

QUEUES = {"billing": "payments", "delivery": "orders", "repair": "technical", "travel": "bookings", "names": "sales"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/samples"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [make_call(call, index, options.out, options.seed) for index, call in enumerate(CALLS)]
    rows += make_unusable(options.out, options.seed)
    for index, row in enumerate(rows):
        row["call_date"] = f"2026-0{1 + index // 9}-{10 + index:02d}"
        row["queue"] = QUEUES.get(str(row["id"]).partition("-")[0], "general")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (options.out / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def make_call(call: Call, index: int, folder: Path, seed: int) -> dict[str, object]:
    """Writes one recording and returns its manifest row."""
    rng = Random(f"{seed}/{call.id}")
    turns = _turns(call, rng)
    write_audio(_record(turns, VOICES[index % len(VOICES)], call, rng), call, folder / call.file)
    row: dict[str, object] = {"id": call.id, "audio": call.file, "language": "en", **call.row}
    if call.layout == "stereo":
        row["speakers"] = ["agent", "customer"]
    whole = join(turns)
    if whole.names:
        keywords = [*whole.names, *(rare_name(rng, held_out=True).written for _ in range(2))]
        rng.shuffle(keywords)
        row["keywords"] = keywords
    row["text"] = whole.german if row.get("task") == "translate" else whole.text
    return row


def make_unusable(folder: Path, seed: int) -> list[dict[str, object]]:
    """A silent recording, one of random bytes after ``RIFF``, and an empty file."""
    rng = np.random.default_rng(seed)
    silence = (rng.standard_normal((8 * 8000, 2)) * 2e-4).astype(np.float32)
    soundfile.write(folder / "silent-017.wav", silence, 8000, subtype="ULAW")
    (folder / "corrupt-018.wav").write_bytes(b"RIFF" + rng.bytes(12_000))
    (folder / "empty-019.wav").write_bytes(b"")
    return [
        {"id": "silent-017", "audio": "silent-017.wav", "speakers": ["agent", "customer"], "text": ""},
        {"id": "corrupt-018", "audio": "corrupt-018.wav"},
        {"id": "empty-019", "audio": "empty-019.wav"},
    ]


def write_audio(samples: np.ndarray, call: Call, path: Path) -> None:
    """``[samples, channels]`` at the call's rate, in the call's codec."""
    if not call.encode:
        soundfile.write(path, samples, call.rate, subtype=call.subtype)
        return
    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.wav"
        soundfile.write(plain, samples, call.rate, subtype="PCM_16")
        command = ["ffmpeg", "-v", "error", "-y", "-i", str(plain), *call.encode]
        subprocess.run([*command, "-fflags", "+bitexact", "-flags:a", "+bitexact", str(path)], check=True)


def _turns(call: Call, rng: Random) -> list[Sentence]:
    if call.names:
        return [name_sentence(rng, test=True) for _ in range(call.names)]
    return [join([held_out_sentence(start, rng) for start in turn]) for turn in call.script]


def _record(turns: list[Sentence], voices: tuple[Speaker, Speaker], call: Call, rng: Random) -> np.ndarray:
    """Agent left, customer right, alternating with pauses; or both on one channel."""
    channels: list[list[np.ndarray]] = [[_pause(0.7)], [_pause(0.7)]]
    for index, turn in enumerate(turns):
        speaker = index % 2
        speech = set_level(voices[speaker].say(turn.spoken), -6 if speaker == 0 else -9)
        pause = _pause(rng.uniform(0.9, 1.5))
        channels[speaker] += [speech, pause]
        channels[1 - speaker] += [np.zeros_like(speech), pause]
    noise = np.random.default_rng(rng.getrandbits(32))
    lines = np.stack([np.concatenate(parts) for parts in channels], axis=1)
    if call.layout != "stereo":
        lines = lines.sum(axis=1, keepdims=True)
    lines = np.stack([_line(line, call.rate, noise) for line in lines.T], axis=1)
    return np.repeat(lines, 2, axis=1) if call.layout == "dual mono" else lines


def _line(samples: np.ndarray, rate: int, noise: np.random.Generator) -> np.ndarray:
    """One channel as recorded: telephone band (at 8 kHz), noise, and the recording's sample rate."""
    if rate == 8000:
        samples = band_pass(samples, SAMPLE_RATE, 250, 3500)
    samples = samples + 4e-4 * noise_like(len(samples), noise, 3)
    return np.clip(soxr.resample(samples, SAMPLE_RATE, rate), -1, 1)


def _pause(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), dtype=np.float32)


if __name__ == "__main__":
    main()

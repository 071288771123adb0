"""The rates that a plan is computed with, each with where it comes from."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from speech.errors import UsageError
from speech.json_objects import parse_json


@dataclass(frozen=True)
class Rate:
    """One measured or assumed number."""

    value: float
    source: str


@dataclass(frozen=True)
class Rates:
    """What the machines do.

    Attributes:
        listener_rtfx: seconds of audio a second that a Listener decodes and searches for speech on one core.
        recording_s: seconds that a Listener needs for any recording beside, to open it.
        engine_rtfx: seconds of speech a second of one engine under full load.
        clip_rtfx: of one clip alone: what a clip in a batch never exceeds.
        commit_s: seconds for the file of a block, in the output's storage.
        driver_row_s: seconds of the driver for each recording.
        driver_block_s: seconds more of the driver for a block that it sends, or whose receipts it receives.
        listener_start_s, engine_start_s: seconds from the job's start until the first of each works.
    """

    listener_rtfx: Rate
    recording_s: Rate
    engine_rtfx: Rate
    clip_rtfx: Rate
    commit_s: Rate
    driver_row_s: Rate
    driver_block_s: Rate
    listener_start_s: Rate
    engine_start_s: Rate

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises KeyError, TypeError or ValueError where ``text`` is not of ``to_json``."""
        read: dict[str, Any] = parse_json(text)
        rates = {each.name: read[each.name] for each in fields(cls)}
        return cls(**{name: Rate(float(rate["value"]), str(rate["source"])) for name, rate in rates.items()})


DRIVER = "bench.driver, a core of an EPYC"
LEADERBOARD = "Open ASR Leaderboard, an A100 of 80 GB, batch 256 (2026-03)"
# Of Granite 4.0 1B Speech. The only public figure; audio there is almost all speech.
KNOWN_ENGINES = {"A100": Rate(280.0, LEADERBOARD), "A100-80G": Rate(280.0, LEADERBOARD)}


def default_rates(gpu: str) -> Rates:
    """The rates without a measurement on the user's machines."""
    assumed = Rate(280.0, f"not measured on {gpu}; the A100's: {LEADERBOARD}")
    return Rates(
        listener_rtfx=Rate(360.0, "bench.listener, a core of an EPYC"),
        recording_s=Rate(0.1, "assumed: a request to object storage"),
        engine_rtfx=KNOWN_ENGINES.get(gpu, assumed),
        clip_rtfx=Rate(20.0, "assumed"),
        commit_s=Rate(0.2, "assumed: a PUT of a few hundred kB"),
        driver_row_s=Rate(0.0, f"{DRIVER}: too small to measure"),
        driver_block_s=Rate(7.0e-3, DRIVER),
        listener_start_s=Rate(10.0, "assumed"),
        engine_start_s=Rate(120.0, "assumed: weights on the node's disk"),
    )


def load_rates(path: str) -> Rates:
    """Rates that ``rayscribe plan --calibrate`` has written.

    Raises:
        UsageError: ``bad_rates``.
    """
    try:
        return Rates.from_json(Path(path).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "bad_rates", f"{path} has no rates ({error}): rayscribe plan --calibrate MANIFEST --rates {path} makes some"
        ) from error

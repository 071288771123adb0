"""Measures the rates of this machine, in about a minute: Listener, engine and driver.

The Listener hears recordings of the user's manifest on one core; the engine decodes their clips; the driver runs the
job with an engine that costs nothing. Nothing else should run on the machine meanwhile.
"""

import asyncio
import itertools
import json
import math
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pyarrow import dataset

from pipelines import manifest
from pipelines.blocks import recordings_per_block
from planning.rates import Rate, Rates
from planning.sampler import Sampler
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig, EngineStarter, start_engine
from speech.engines.fake import start_fake
from speech.errors import RayscribeError, UsageError
from speech.listener import Listener, ListenResult
from speech.models.checkpoint import family_of
from speech.recording import Options, Recording
from storage.filesystem import Storage

LISTEN_FOR_S, DECODE_FOR_S, ALONE_FOR_S = 15.0, 15.0, 5.0
DRIVEN = 1_000  # recordings of the driver's part, of a tenth of a second each
SAMPLE = 200  # recordings of the manifest, at most
CPU_EVERY_S = 0.05


@dataclass(frozen=True)
class Heard:
    """A recording of the sample, and the seconds that the Listener took for it."""

    recording: Recording
    listened: ListenResult
    took_s: float


def calibrate(uri: str, config: EngineConfig, rates: Rates, start: EngineStarter = start_engine) -> Rates:
    """``rates``, with those that were measured here in their place.

    Args:
        uri: a manifest, of whose first recordings as many are used as time allows.
        config: model and engine.
        rates: for what is not measured.
        start: starts the engine.

    Raises:
        UsageError: as of ``pipelines.manifest.read``, or ``bad_manifest`` where no recording has speech.
    """
    heard = listen(uri, config)
    listener_rtfx, recording_s = fit_line([each.listened.duration_s for each in heard], [each.took_s for each in heard])
    here = f"measured here, {len(heard)} recordings of {uri}"
    measured = replace(
        rates, listener_rtfx=Rate(listener_rtfx, here), recording_s=Rate(recording_s, here), **drive(rates)
    )
    clips = [
        ClipRequest(clip.samples, each.recording.options, f"{each.recording.id}/{number}")
        for each in heard
        for number, clip in enumerate(each.listened.clips)
    ]
    if not clips:
        raise UsageError("bad_manifest", f"the first recordings of {uri} have no speech: give a manifest of calls")
    decoded = asyncio.run(_decode(clips, config, start))
    load = decoded["engine_start_s"]  # beside what an engine that loads nothing needs to start
    decoded["engine_start_s"] = Rate(measured.engine_start_s.value + load.value, load.source)
    return replace(measured, **decoded)


def listen(uri: str, config: EngineConfig) -> list[Heard]:
    """Recordings of a manifest, one after the other, for LISTEN_FOR_S."""
    storage = Storage()
    listener = Listener(clip_s=family_of(config.model, config.engine).clip_s, open_audio=storage.open_audio)
    heard: list[Heard] = []
    until = time.perf_counter() + LISTEN_FOR_S
    for _, row in manifest.read(uri, storage):
        if len(heard) >= SAMPLE or time.perf_counter() > until:
            break
        began = time.perf_counter()
        try:
            recording = Recording.from_row(row, Options())
            heard.append(Heard(recording, listener.listen(recording), time.perf_counter() - began))
        except RayscribeError:  # fails in the job too, and costs little there
            continue
    return heard


def fit_line(durations_s: Sequence[float], took_s: Sequence[float]) -> tuple[float, float]:
    """Seconds of audio a second, and seconds for any recording beside: least squares, neither below zero."""
    x, y = np.asarray(durations_s), np.asarray(took_s)
    rtfx = float(x.sum() / y.sum()) if len(x) else 0.0
    if len(x) < 3 or np.ptp(x) < 0.1 * x.mean():
        return rtfx, 0.0
    slope, constant = np.polyfit(x, y, 1)
    return (float(1 / slope), float(constant)) if slope > 0 and constant > 0 else (rtfx, 0.0)


class _OwnCpu(Sampler):
    """The CPU time of this process while the ``with`` block runs."""

    def __init__(self) -> None:
        super().__init__(CPU_EVERY_S)
        self._samples: list[tuple[float, float]] = []

    def between(self, start: float, end: float) -> float:
        """CPU seconds between two times of ``time.time``."""
        at, cpu_s = zip(*self._samples, strict=True)
        return float(np.interp(end, at, cpu_s) - np.interp(start, at, cpu_s))

    def sample(self) -> None:
        self._samples.append((time.time(), time.process_time()))


def drive(rates: Rates) -> dict[str, Rate]:
    """What a block costs the driver; and when the first Listener and an engine that loads nothing work after the start.

    ``rates`` has what a recording costs the driver beside.
    """
    import soundfile

    from cluster.session import cluster_layout
    from pipelines.job import Job
    from pipelines.run import run

    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(Path(folder, "silence.wav"), np.zeros(1_600, np.float32), 16_000)
        rows = (json.dumps({"audio": "silence.wav", "id": f"row-{number}"}) + "\n" for number in range(DRIVEN))
        Path(folder, "manifest.jsonl").write_text("".join(rows))
        began = time.time()
        with _OwnCpu() as cpu:
            job = Job(manifest=f"{folder}/manifest.jsonl", output=f"{folder}/out")
            summary = run(job, start_fake)
        written = dataset.dataset(f"{folder}/out/transcripts", format="parquet")
        finished = sorted(each.timestamp() for each in written.to_table(["finished_at"])["finished_at"].to_pylist())
    assert summary.first_ready_at is not None
    blocks = math.ceil(DRIVEN / recordings_per_block(DRIVEN, cluster_layout(job.cluster).listeners))
    driver_s = cpu.between(finished[0], finished[-1]) - DRIVEN * rates.driver_row_s.value
    here = f"measured here, {DRIVEN} recordings of 0.1 s with an engine that costs nothing"
    return {
        "driver_row_s": rates.driver_row_s,
        "driver_block_s": Rate(max(1e-6, driver_s / (2 * blocks)), here),
        "listener_start_s": Rate(finished[0] - began, here),
        "engine_start_s": Rate(summary.first_ready_at.timestamp() - began, here),
    }


async def _decode(clips: list[ClipRequest], config: EngineConfig, start: EngineStarter) -> dict[str, Rate]:
    began = time.perf_counter()
    engine = start(config, family_of(config.model, config.engine))
    await engine.decode(clips[0])  # the first request includes one-time initialisation
    started_s = time.perf_counter() - began
    try:
        alone = await _rate(engine.decode, clips, 1, ALONE_FOR_S)
        together = await _rate(engine.decode, clips, config.concurrent_clips, DECODE_FOR_S)
    finally:
        engine.stop()
    here = f"measured here, {config.model} on {config.engine}"
    return {
        "engine_rtfx": Rate(together, f"{here}, {config.concurrent_clips} clips at once"),
        "clip_rtfx": Rate(alone, f"{here}, one clip at a time"),
        "engine_start_s": Rate(started_s, here),
    }


async def _rate(
    decode: Callable[[ClipRequest], Awaitable[DecodingResult]], clips: Sequence[ClipRequest], at_once: int, for_s: float
) -> float:
    """Seconds of speech a second, with ``at_once`` clips in flight for ``for_s`` seconds."""
    began = time.perf_counter()
    decoded_s = 0.0
    numbers = itertools.count()

    async def work() -> None:
        nonlocal decoded_s
        while time.perf_counter() - began < for_s:
            number = next(numbers)
            clip = clips[number % len(clips)]
            await decode(replace(clip, id=f"{clip.id}/{number}"))
            decoded_s += clip.seconds

    await asyncio.gather(*(work() for _ in range(at_once)))
    return decoded_s / (time.perf_counter() - began)

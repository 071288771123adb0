"""Throughput and latency of the endpoint under load, against the engine alone and vLLM's own server.

    python -m bench.serve_load [--model demo/model] [--manifest demo/samples/manifest.jsonl] [--requests 48] [--peer]

Starts ``rayscribe serve``, sends it the manifest's recordings over and over with 1, 8 and 32 clients at a time,
and prints throughput and latencies, beside those of Listener and Transcriber in this process: one recording after
another, and all at once, as in the job. Then twice as many clients as ``--max-requests`` send at once: every response
must be 200 or 503. Short requests are sent one after another, alone and beside a recording of 16 minutes, which is also
sent slowly: how long is its answer after its last byte? With --peer recordings of up to
30 s, which is all that it takes, also go to ``vllm serve`` on the same checkpoint, which returns no times.
Loading the model is in no figure. Prints a table and, last, one line of JSON.
"""

import argparse
import asyncio
import io
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import httpx
import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from pipelines import manifest
from speech.engines.base import EngineConfig, start_engine
from speech.errors import RayscribeError
from speech.listener import Listener
from speech.models.checkpoint import family_of
from speech.recording import Options, Recording
from speech.transcriber import Transcriber
from storage.filesystem import Storage
from testing.ports import free_port

CLIENTS = (1, 8, 32)
MAX_REQUESTS = 32
START_TIMEOUT_S = 600
# How long a short request waits while a long recording is decoded: both in seconds, and how often it is measured.
SHORT_S, LONG_S = 2.0, 960.0
SHORT_REQUESTS = 20
# Seconds in which the long recording is sent slowly, in so many pieces.
SLOW_S, SLOW_PIECES = 8.0, 80
PEER_S = 30  # the longest recording that ``vllm serve`` takes
# The settings of our own engine on a CPU, threads included.
PEER = ["--enforce-eager", "--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 30)]
PEER_THREADS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Figures:
    """Of one load. Latencies are those of the 200 responses."""

    rtfx: float  # seconds of audio transcribed, per second
    p50_s: float
    p95_s: float
    statuses: dict[str, int]


@dataclass(frozen=True)
class Sample:
    recording: Recording
    audio: bytes
    duration_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--requests", type=int, default=48, help="of each load")
    parser.add_argument("--peer", action="store_true", help="measure vllm serve too")
    parsed = parser.parse_args(arguments)
    samples = _samples(parsed.manifest, parsed.model)
    short = [sample for sample in samples if sample.duration_s <= PEER_S]
    figures = asyncio.run(_without_endpoint(samples, parsed.model, parsed.requests))
    command = ["-m", "rayscribe", "serve", "--model", parsed.model, "--port", "{port}"]
    command += ["--max-requests", str(MAX_REQUESTS)]
    with server(command, "listening at") as url:
        asyncio.run(_load(url, parsed.model, samples, len(samples), 1))  # warm-up, with every recording once
        figures["endpoint, 1, each once"] = asyncio.run(_load(url, parsed.model, samples, len(samples), 1))
        for clients in CLIENTS:
            load = _load(url, parsed.model, samples, parsed.requests, clients)
            figures[f"endpoint, {clients}"] = asyncio.run(load)
        load = _load(url, parsed.model, samples, 2 * MAX_REQUESTS, 2 * MAX_REQUESTS)
        figures[f"endpoint, {2 * MAX_REQUESTS} on {MAX_REQUESTS} places"] = asyncio.run(load)
        short_sample, long_sample = (
            _cut(min(samples, key=_duration), SHORT_S),
            _repeat(max(samples, key=_duration), LONG_S),
        )
        figures["endpoint, short alone"] = asyncio.run(_load(url, parsed.model, [short_sample], SHORT_REQUESTS, 1))
        figures["endpoint, short beside long"] = asyncio.run(
            _short_beside_long(url, parsed.model, short_sample, long_sample)
        )
        figures["endpoint, long"] = asyncio.run(_load(url, parsed.model, [long_sample], 3, 1))
        figures["endpoint, long, after its last byte"] = asyncio.run(_slowly(url, parsed.model, long_sample, 3))
        if parsed.peer:
            for clients in CLIENTS:
                load = _load(url, parsed.model, short, parsed.requests, clients)
                figures[f"endpoint, {clients}, {PEER_S} s at most"] = asyncio.run(load)
    if parsed.peer:
        # The module behind ``vllm serve``; that command requires a package named vllm, and the CPU build's is vllm-cpu.
        command = ["-m", "vllm.entrypoints.openai.api_server", "--model", parsed.model, "--port", "{port}", *PEER]
        with server(command, "Application startup complete") as url:
            asyncio.run(_load(url, parsed.model, short, len(short), 1))
            for clients in CLIENTS:
                load = _load(url, parsed.model, short, parsed.requests, clients)
                figures[f"vllm serve, {clients}"] = asyncio.run(load)
    _print(figures)


def _samples(uri: str, model: str) -> list[Sample]:
    """The recordings of a manifest that can be transcribed, with their audio; translations are left out."""
    storage = Storage({})
    listener = Listener(clip_s=family_of(model).clip_s, open_audio=storage.open_audio)
    samples = []
    for _, row in manifest.read(uri, storage):
        recording = Recording.from_row(row, Options())
        try:
            listened = listener.listen(recording)
        except RayscribeError:
            continue
        if recording.options.task == "transcribe" and listened.clips:
            with storage.open(recording.audio) as file:
                samples.append(Sample(recording, file.read(), listened.duration_s))
    return samples


async def _without_endpoint(samples: list[Sample], model: str, requests: int) -> dict[str, Figures]:
    """Listener and engine in this process: one recording after another, and as in the job.

    The job's way: one Listener works ahead, and the engine gets the clips of all recordings at once.
    """
    config, family = EngineConfig(model=model), family_of(model)
    listener = Listener(clip_s=family.clip_s, open_audio=Storage({}).open_audio)
    transcriber = Transcriber(start_engine(config, family), family, model, config.concurrent_clips)

    async def answer(sample: Sample) -> float:
        started = time.perf_counter()
        await transcriber.transcribe(sample.recording, await asyncio.to_thread(listener.listen, sample.recording))
        return time.perf_counter() - started

    async def all_at_once(many: list[Sample]) -> Figures:
        started, decoding = time.perf_counter(), []
        for sample in many:
            listened = await asyncio.to_thread(listener.listen, sample.recording)
            decoding.append(asyncio.create_task(transcriber.transcribe(sample.recording, listened)))
        await asyncio.gather(*decoding)
        seconds = time.perf_counter() - started
        return _figures(many, [seconds], seconds, Counter({"200": len(many)}))

    async def one_by_one() -> Figures:
        started = time.perf_counter()
        latencies = [await answer(sample) for sample in samples]
        return _figures(samples, latencies, time.perf_counter() - started, Counter({"200": len(samples)}))

    try:
        await one_by_one()  # warm-up
        many = list(itertools.islice(itertools.cycle(samples), requests))
        return {"engine, 1": await one_by_one(), "engine, all at once": await all_at_once(many)}
    finally:
        transcriber.engine.stop()


async def _load(url: str, model: str, samples: list[Sample], requests: int, clients: int) -> Figures:
    """Sends ``requests`` requests, from ``clients`` concurrent clients."""
    work = iter(list(itertools.islice(itertools.cycle(samples), requests)))
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    answered: list[Sample] = []

    async def client(session: httpx.AsyncClient) -> None:
        for sample in work:
            started = time.perf_counter()
            options = sample.recording.options
            fields: dict[str, Any] = {"model": model, "language": options.language, "response_format": "json"}
            name = Path(sample.recording.audio).name
            answer = await session.post("/v1/audio/transcriptions", data=fields, files={"file": (name, sample.audio)})
            statuses[str(answer.status_code)] += 1
            if answer.status_code == 200:
                latencies.append(time.perf_counter() - started)
                answered.append(sample)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return _figures(answered, latencies, time.perf_counter() - start, statuses)


async def _short_beside_long(url: str, model: str, short: Sample, long: Sample) -> Figures:
    """Of the short requests, from one client, while another sends the long recording over and over."""

    async def send_long() -> None:
        while True:
            await _load(url, model, [long], 1, 1)

    beside = asyncio.create_task(send_long())
    try:
        return await _load(url, model, [short], SHORT_REQUESTS, 1)
    finally:
        beside.cancel()
        await asyncio.wait([beside])


async def _slowly(url: str, model: str, sample: Sample, requests: int) -> Figures:
    """Of a recording that arrives in SLOW_S: seconds from its last byte to its answer."""
    latencies = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as session:
        for _ in range(requests):
            whole = session.build_request(
                "POST",
                "/v1/audio/transcriptions",
                data={"model": model, "language": sample.recording.options.language},
                files={"file": ("long.wav", sample.audio)},
            )
            body, sent = await whole.aread(), 0.0

            async def pieces(body: bytes) -> AsyncIterator[bytes]:
                nonlocal sent
                size = math.ceil(len(body) / SLOW_PIECES)
                for start in range(0, len(body), size):
                    await asyncio.sleep(SLOW_S / SLOW_PIECES)
                    yield body[start : start + size]
                sent = time.perf_counter()

            answer = await session.post(whole.url, content=pieces(body), headers=whole.headers)
            answer.raise_for_status()
            latencies.append(time.perf_counter() - sent)
    return _figures([sample] * requests, latencies, sum(latencies), Counter({"200": requests}))


def _duration(sample: Sample) -> float:
    return sample.duration_s


def _cut(sample: Sample, seconds: float) -> Sample:
    """The first ``seconds`` of a sample, as WAV."""
    rate = soundfile.info(io.BytesIO(sample.audio)).samplerate
    samples, _ = soundfile.read(io.BytesIO(sample.audio), frames=round(seconds * rate))
    return Sample(sample.recording, _wav(samples, rate), seconds)


def _repeat(sample: Sample, seconds: float) -> Sample:
    """A sample as often as makes at least ``seconds``, as WAV."""
    samples, rate = soundfile.read(io.BytesIO(sample.audio))
    times = math.ceil(seconds * rate / len(samples))
    return Sample(sample.recording, _wav(np.concatenate([samples] * times), rate), times * len(samples) / rate)


def _wav(samples: np.ndarray, rate: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, "PCM_16", format="WAV")
    return out.getvalue()


def _figures(answered: list[Sample], latencies: list[float], seconds: float, statuses: Counter[str]) -> Figures:
    cuts = statistics.quantiles(latencies, n=20, method="inclusive") if len(latencies) > 1 else latencies * 19
    audio_s = sum(sample.duration_s for sample in answered)
    return Figures(audio_s / seconds, cuts[9], cuts[18], dict(statuses))


@contextmanager
def server(command: list[str], ready: str) -> Iterator[str]:
    """Starts a server process; yields its URL once it has printed ``ready``."""
    port = free_port()
    arguments = [part.format(port=port) for part in command]
    with tempfile.TemporaryFile("w+") as printed:  # not a pipe: the server would block on a full one
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=printed, stderr=subprocess.STDOUT, env=os.environ | PEER_THREADS
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while not _has_printed(printed, ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{arguments[1]} has not started")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)


def _has_printed(printed: TextIO, text: str) -> bool:
    printed.seek(0)
    return text in printed.read()


def _print(figures: dict[str, Figures]) -> None:
    table = Table("clients", "RTFx", "p50, s", "p95, s", "responses")
    for name, load in figures.items():
        responses = ", ".join(f"{count} × {status}" for status, count in sorted(load.statuses.items()))
        table.add_row(name, f"{load.rtfx:.2f}", f"{load.p50_s:.2f}", f"{load.p95_s:.2f}", responses)
    Console(width=110).print(table)
    alone, endpoint = figures["engine, 1"], figures["endpoint, 1, each once"]
    ratios = {
        "overhead": alone.rtfx / endpoint.rtfx - 1,
        "p95_ratio": endpoint.p95_s / alone.p95_s,
        "throughput_ratio": figures[f"endpoint, {CLIENTS[-1]}"].rtfx / figures["engine, all at once"].rtfx,
    }
    print(
        f"one client: {100 * ratios['overhead']:.1f} % longer than Listener and engine, p95 {ratios['p95_ratio']:.2f}"
    )
    print(f"{CLIENTS[-1]} clients: {ratios['throughput_ratio']:.2f} of the throughput of Listener and engine")
    slow = figures["endpoint, long, after its last byte"].p50_s / figures["endpoint, long"].p50_s
    print(f"the long recording's answer after its last byte, sent in {SLOW_S:g} s: {slow:.2f} of that sent at once")
    print(json.dumps({name: vars(load) for name, load in figures.items()} | ratios))


if __name__ == "__main__":
    main()

"""RTFx of one GPU with Granite 4.0 1B Speech: end to end, by part, and of the job, beside what the card's peak allows.

    python -m bench.gpu_rtfx [--clips 4000] [--rounds 3] [--gpus-per-engine 0.5] [--peak-tflops 989]
    python -m bench.gpu_rtfx --size small --clips 24 --calls 4    # on a CPU, to try the script

Needs a GPU and no checkpoint: the architecture is the released one (``bench.speculation_gpu``), with random weights in
bfloat16. Clips of noise of 5 to 30 s get 3.5 tokens for each second of audio, as English speech does. So this measures
the machine and the pipeline; of the text of the real weights it says nothing. Engine settings are those of a job on
this card (``cluster.gpus.fit_engine``).

    log-mel      features of all clips, in the passes of the front end
    encoder      Conformer, CTC head and projector, copies to and from the GPU: the front end less log-mel
    prefill      the language model alone, from embeddings to the first token of each clip
    decode       the other tokens: the language model alone, less prefill
    end to end   the engine, from samples to text; what the parts would take one after another is beside it
    job          mono G.711 calls in object storage (moto, on this machine) to Parquet in the same, whole and from the
                 first engine's readiness; of seconds of speech

RTFx is seconds of audio a second. The roofline is the arithmetic of a second of audio, 94 GFLOP at full size, at the
card's peak: NVIDIA's figure for dense bfloat16 where the card is known, else that of a matrix product measured here.
Figures are medians of the rounds; the job is run once. Prints a table and, last, a line of JSON.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.speculation import decode_all
from bench.speculation_gpu import DummyWeightsEngine, noise_clip, random_checkpoint
from cluster.gpus import find_gpus, fit_engine
from pipelines.job import Job
from pipelines.run import run
from speech.engines.base import ClipRequest, EngineConfig
from speech.granite.frontend import FrontEnd
from speech.models.families import GRANITE_4_0, Family
from storage.filesystem import Storage
from testing.ports import free_port
from testing.synthetic_audio import RATE, sentence, silence, sndfile

TOKENS_PER_S = 3.5  # of English speech
CLIP_S = (5.0, 29.5)
CALL_S = 300.0
# Two operations for each weight and each of 50 encoder frames (0.44 B weights), 10 audio tokens and 3.5 of text (1.4 B,
# and for the text 0.2 B of the vocabulary) in a second: 85. The rest: attention, prompts, padding to whole blocks.
GFLOP_PER_AUDIO_S = 94.0
# Dense bfloat16, from NVIDIA's data sheets, by Ray's names of the cards.
PEAK_TFLOPS = {"A100": 312.0, "A10G": 70.0, "L4": 121.0, "L40S": 362.0, "H20": 148.0, "H100": 989.0, "H200": 989.0}
PEAK_TFLOPS |= {"B200": 2250.0}
BUCKET = "s3://bench"


class SpeechLengthEngine(DummyWeightsEngine):
    """Decodes as many tokens as the speech of a clip would have, or one."""

    def __init__(self, config: EngineConfig, family: Family) -> None:
        super().__init__(config, family, tokens=1)
        self.first_alone = False

    def _tokens_of(self, clip: ClipRequest) -> int:
        return 1 if self.first_alone else max(1, round(TOKENS_PER_S * clip.seconds))

    @property
    def front_end(self) -> FrontEnd:
        front_end: Any = self._front_end and self._front_end._encoder
        return front_end

    async def generate(self, prompts: Sequence[tuple[ClipRequest, Any]], concurrency: int) -> None:
        """Decodes clips that are encoded already."""
        slots = asyncio.Semaphore(concurrency)

        async def generate(number: int, clip: ClipRequest, prompt: Any) -> None:
            async with slots:
                numbered = replace(clip, id=f"{number}/{clip.id}")
                await self._generate(numbered, prompt, self._sampling(numbered, {}))

        await asyncio.gather(*(generate(number, *each) for number, each in enumerate(prompts)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument(
        "--calls", type=int, default=400, help="calls of five minutes that the job transcribes; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrent-clips", type=int, help="default: by the GPU's memory, as in a job")
    parser.add_argument("--gpus-per-engine", type=float, help="share of the GPU for an engine of the job")
    parser.add_argument("--peak-tflops", type=float)
    parsed = parser.parse_args(arguments)
    gpu = next(iter(find_gpus()), None)
    if parsed.size == "full" and not gpu:
        parser.error("the full size needs a GPU: give --size small to try the script without")
    with random_checkpoint(parsed.size == "small") as model:
        # Without drafts, as a job with full batches on a GPU: random weights write nothing that they could foresee.
        settings: dict[str, Any] = {"model": model, "speculation": "off"}
        if parsed.concurrent_clips:
            settings["concurrent_clips"] = parsed.concurrent_clips
        config = fit_engine(EngineConfig(**settings), int(bool(gpu)), gpu.memory_gib if gpu else None, bulk=True)
        rng = np.random.default_rng(0)
        clips = [noise_clip(rng, rng.uniform(*CLIP_S), number) for number in range(parsed.clips)]
        rtfx = asyncio.run(_engine_rtfx(config, clips, parsed.rounds))
        if parsed.gpus_per_engine is not None:
            settings["gpus_per_engine"] = parsed.gpus_per_engine
        job = _job_rtfx(settings, parsed.calls) if parsed.calls else {}
    peak = parsed.peak_tflops or (PEAK_TFLOPS.get(gpu.accelerator) or _measured_tflops() if gpu else None)
    roofline = peak * 1e3 / GFLOP_PER_AUDIO_S if peak and parsed.size == "full" else None
    figures = {
        "device": gpu.name if gpu else "CPU",
        "size": parsed.size,
        "concurrent_clips": config.concurrent_clips,
        "audio_s": round(sum(clip.seconds for clip in clips)),
        "peak_tflops": peak,
        "roofline_rtfx": roofline,
        "rtfx": rtfx,
        "job": job | ({"share_of_engine": job["speech_rtfx"] / rtfx["end to end"]} if job else {}),
    }
    _print(figures)
    print(json.dumps(figures))


async def _engine_rtfx(config: EngineConfig, clips: list[ClipRequest], rounds: int) -> dict[str, float]:
    """RTFx of each part, and end to end."""
    audio_s, concurrency = sum(clip.seconds for clip in clips), round(1.1 * config.concurrent_clips)
    engine = SpeechLengthEngine(config, GRANITE_4_0)

    async def seconds(work: Callable[[], Awaitable[object]]) -> float:
        await work()  # one-time initialisation, at these sizes
        spent = []
        for _ in range(rounds):
            start = time.perf_counter()
            await work()
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)

    async def mel() -> None:
        await asyncio.to_thread(_log_mel, engine.front_end, clips)

    async def encode() -> None:
        await asyncio.to_thread(engine.front_end.encode, [clip.samples for clip in clips])

    async def first_tokens() -> None:
        engine.first_alone = True
        await engine.generate(prompts, concurrency)
        engine.first_alone = False

    try:
        encoded = await asyncio.to_thread(engine.front_end.encode, [clip.samples for clip in clips])
        pairs = zip(clips, encoded, strict=True)
        prompts = [(clip, engine._granite_prompt(clip, each)) for clip, each in pairs]
        del encoded
        spent = {"log-mel": await seconds(mel), "front end": await seconds(encode)}
        spent["prefill"] = await seconds(first_tokens)
        spent["language model"] = await seconds(lambda: engine.generate(prompts, concurrency))
        prompts.clear()
        spent["end to end"] = await seconds(lambda: decode_all(engine, clips, concurrency))
    finally:
        engine.stop()
    spent["encoder"] = spent["front end"] - spent["log-mel"]
    spent["decode"] = spent["language model"] - spent["prefill"]
    spent["one after another"] = spent["front end"] + spent["language model"]
    parts = ("log-mel", "encoder", "prefill", "decode", "one after another", "end to end")
    # A difference of medians may come out at nothing on a busy machine: no rate then.
    return {part: audio_s / spent[part] if spent[part] > 0 else float("nan") for part in parts}


@torch.inference_mode()
def _log_mel(front_end: FrontEnd, clips: Sequence[ClipRequest]) -> None:
    samples = [clip.samples for clip in clips]
    for part in front_end.passes([len(each) for each in samples]):
        features = front_end._log_mel(front_end._on_device(samples[part]))
        features[-1].cpu()  # a GPU computes it only now, for all that Python knows


def _job_rtfx(settings: dict[str, Any], calls: int) -> dict[str, float]:
    """Of the job: wall clock from the command to its end, and from the first engine's readiness.

    Args:
        settings: of the engine and its share of the GPU, to which the job fits it again.
        calls: how many it transcribes.
    """
    with _object_storage() as options:
        storage = Storage(options)
        storage.filesystem(BUCKET)[0].mkdir("bench")
        rows = []
        for number in range(calls):
            name = f"call-{number:06}.wav"
            storage.write_bytes(f"{BUCKET}/{name}", sndfile(_call(number), "WAV", "ULAW"))
            rows.append({"audio": name, "id": name})
        storage.write_bytes(f"{BUCKET}/calls.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        named = {"manifest": f"{BUCKET}/calls.jsonl", "output": f"{BUCKET}/out", "storage_options": options}
        start = time.perf_counter()
        summary = run(Job.from_settings(settings | named), SpeechLengthEngine)
        wall_s = time.perf_counter() - start
    if summary.any_failed:
        raise SystemExit(f"recordings have failed: {dict(summary.failed)}")
    return {
        "audio_s": summary.audio_s,
        "speech_s": summary.speech_s,
        "rtfx": summary.rtfx,
        "speech_rtfx": summary.speech_s / summary.work_s,
        "wall_s": wall_s,
        "wall_rtfx": summary.audio_s / wall_s,
    }


def _call(seed: int) -> np.ndarray:
    """Five minutes of turns as long as the clips, with pauses between: float32 at 8 kHz, shape (n,)."""
    rng = np.random.default_rng(seed)
    parts, left = [silence(1.0)], CALL_S
    while left > 0:
        turn_s, turn = min(rng.uniform(*CLIP_S), left), [silence(0)]
        while sum(len(part) for part in turn) < turn_s * RATE:
            turn += [sentence(str(rng.choice(["agent", "customer"]))), silence(0.3)]
        parts += [*turn, silence(1.5)]
        left -= turn_s + 1.5
    return np.concatenate(parts)


@contextmanager
def _object_storage() -> Iterator[dict[str, str]]:
    """An S3 server in a process of its own; yields the storage options to reach it."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with tempfile.TemporaryFile() as printed:
        server = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield {"key": "bench", "secret": "bench", "endpoint_url": f"http://127.0.0.1:{port}"}
        finally:
            server.terminate()
            server.wait()


def _measured_tflops() -> float:
    """The best of ten products of two square matrices of bfloat16 on the GPU."""
    size, best = 8192, float("inf")
    matrix = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(10):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def _print(figures: dict[str, Any]) -> None:
    table = Table("part", "RTFx", "of the roofline", title=f"{figures['device']}, {figures['size']} size")
    roofline = figures["roofline_rtfx"]
    for part, rtfx in figures["rtfx"].items():
        table.add_row(part, f"{rtfx:,.0f}", f"{rtfx / roofline:.1%}" if roofline else "")
    if roofline:
        table.add_row("roofline", f"{roofline:,.0f}", "")
    if job := figures["job"]:
        table.add_row("job, of speech, once an engine is ready", f"{job['speech_rtfx']:,.0f}", "")
        table.add_row("job, of audio, once an engine is ready", f"{job['rtfx']:,.0f}", "")
        table.add_row("job, of audio, the whole command", f"{job['wall_rtfx']:,.0f}", "")
    Console(width=100).print(table)
    if job:
        print(f"the job over the engine, of speech: {job['share_of_engine']:.2f}")


if __name__ == "__main__":
    main()

"""Whisper: our vLLM engine beside vLLM's offline ``LLM`` and faster-whisper, on the same clips, in one run.

    python -m bench.peers.whisper --whisper DIR --ctranslate DIR [--peer-python PYTHON] [--rounds 3]
    python -m bench.peers.whisper --random 32    # without a checkpoint, to try the script

``--whisper`` is a checkpoint in Hugging Face's form, ``--ctranslate`` the same one as ``ct2-transformers-converter``
writes it (with ``--copy_files tokenizer.json preprocessor_config.json``). The clips are those that our Listener cuts
from the manifest's English recordings. faster-whisper runs in int8 and in float32, clip by clip and batched, with its
voice activity detection off. Each contender has a process of its own with all cores; loading and a first round are in
no figure. ``--peer-python`` is an interpreter that has faster-whisper, where this one has not.

``--random TOKENS`` makes a small Whisper with random weights and lets all write TOKENS tokens a clip: it shows that the
scripts run, and nothing of Whisper's speed or text.

Prints RTFx, the ratio to ours and the word error rate of each, medians of the rounds; last, a line of JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.peers.report import Material, material_of, report
from bench.peers.turns import Contender, run_in_turns, save_clips

CONVERTER = "from ctranslate2.converters.transformers import main; main()"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", metavar="DIR")
    parser.add_argument("--ctranslate", metavar="DIR")
    parser.add_argument("--random", type=int, metavar="TOKENS")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--concurrency", type=int, default=16, help="clips that an engine decodes at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recordings", type=int, help="only so many")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if parsed.random:
            parsed.whisper, parsed.ctranslate = _random_checkpoint(folder, parsed.peer_python)
        if not parsed.whisper:
            reason = "give --whisper DIR, a checkpoint of Whisper in Hugging Face's form, or --random 32"
            print(f"skipped: {reason}")
            print(json.dumps({"skipped": reason}))
            return
        material = material_of(parsed.manifest, parsed.whisper, parsed.recordings)
        contenders = _contenders(parsed, save_clips(folder, material.samples))
        running = run_in_turns(contenders, parsed.rounds)
    report(_title(parsed, material), contenders, running, material)


def _title(parsed: argparse.Namespace, material: Material) -> str:
    model = parsed.whisper
    if parsed.random:
        model = f"a small Whisper with random weights, {parsed.random} tokens a clip: not Whisper's speed"
    return f"{model}; {len(material.requests)} clips, {parsed.rounds} rounds"


def _contenders(parsed: argparse.Namespace, clips: str) -> list[Contender]:
    tokens = ["--tokens", str(parsed.random)] if parsed.random else []
    here = [sys.executable, "-m", "bench.peers.contenders"]
    options = [parsed.whisper, clips, "--concurrency", str(parsed.concurrency), *tokens]
    contenders = [
        Contender("Rayscribe, vllm engine", [*here, "ours", *options]),
        Contender("vLLM's LLM", [*here, "vllm", *options]),
    ]
    for kind in ("int8", "float32"):
        for name, size in (("", "0"), (", batched", str(parsed.concurrency))):
            arguments = [parsed.ctranslate or "", clips, "--compute-type", kind, "--batch-size", size, *tokens]
            command = [parsed.peer_python, "-m", "bench.peers.faster_whisper", *arguments]
            reason = "" if parsed.ctranslate else "give --ctranslate DIR, as ct2-transformers-converter writes it"
            contenders.append(Contender(f"faster-whisper {kind}{name}", command, skipped=reason))
    return contenders


def _random_checkpoint(folder: str, peer_python: str) -> tuple[str, str | None]:
    """A small Whisper in both forms; None for CTranslate2's where its package is not installed."""
    from testing.whisper_checkpoint import random_whisper

    whisper, converted = Path(folder, "whisper"), Path(folder, "ctranslate")
    random_whisper(whisper)
    written = ["--output_dir", str(converted), "--copy_files", "tokenizer.json"]
    command = [peer_python, "-c", CONVERTER, "--model", str(whisper), *written]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode and "No module named" not in ended.stderr:
        raise SystemExit(f"ct2-transformers-converter has failed:\n{ended.stderr[-3000:]}")
    return str(whisper), str(converted) if converted.exists() else None


if __name__ == "__main__":
    main()

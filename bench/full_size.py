"""Granite 4.0 1B Speech at full size with random weights: loaded from files, and decoded with and without drafts.

    python -m bench.full_size [--seconds 3,6] [--tokens 24] [--folder DIR] [--small]

Needs no checkpoint, 9 GB of disk and some 16 GB of memory: the architecture is the released one
(``bench.speculation_gpu``), in float32, its random weights saved as a checkpoint of Hugging Face and read by the
product's own code. Clips of noise get ``--tokens`` tokens each. The drafts are the output without drafts in which one
token in five is wrong; the texts must be equal. Shows that sizes, names and memory fit, and the time by part; of the
text of the real weights it says nothing. ``--folder`` keeps the checkpoint for another run; ``--small`` is a tiny
model, to try the script.
"""

import argparse
import asyncio
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoConfig, GraniteSpeechForConditionalGeneration

from bench.speculation import decode_all
from bench.speculation_gpu import FixedLengthEngine, noise, random_checkpoint
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.granite.frontend import FrontEnd
from speech.models.families import GRANITE_4_0

WRONG_DRAFT_TOKENS = 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default="3,6")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--small", action="store_true")
    parsed = parser.parse_args(arguments)
    clips = [clip for seconds in parsed.seconds.split(",") for clip in noise(1, float(seconds))]
    with checkpoint(parsed.folder, parsed.small) as folder:
        seconds = {"encode": _encode_s(folder, clips)}
        plain = asyncio.run(_decode(folder, clips, parsed.tokens, "off", seconds))
        drafted = asyncio.run(_decode(folder, clips, parsed.tokens, "ctc", seconds, plain))
    table = Table("part", "seconds", title=f"{len(clips)} clips of {parsed.seconds} s, {parsed.tokens} tokens each")
    for part, value in seconds.items():
        table.add_row(part, f"{value:.2f}")
    Console().print(table)
    accepted = sum(each.usage.accepted_draft_tokens for each in drafted)
    proposed = sum(each.usage.draft_tokens for each in drafted)
    equal = [each.token_ids for each in drafted] == [each.token_ids for each in plain]
    print(f"drafts accepted: {accepted} of {proposed}; tokens with and without drafts equal: {equal}")
    print(json.dumps(seconds | {"accepted": accepted, "proposed": proposed, "equal": equal}))
    if not equal:
        raise SystemExit(1)


@contextmanager
def checkpoint(keep: Path | None, small: bool) -> Iterator[str]:
    """A folder with the whole checkpoint, random weights in float32; made unless it is in ``keep`` already."""
    if keep and (keep / "model.safetensors").exists():
        yield str(keep)
        return
    with random_checkpoint(small) as folder:
        config = AutoConfig.from_pretrained(folder)
        config.dtype = config.get_text_config().dtype = torch.float32
        config.save_pretrained(folder)
        torch.manual_seed(0)
        model = GraniteSpeechForConditionalGeneration(config).float()
        tensors = {
            _released_name(name): tensor.contiguous()
            for name, tensor in model.state_dict().items()
            if not name.endswith("lm_head.weight")  # tied to the embeddings
        }
        save_file(tensors, Path(folder, "model.safetensors"), {"format": "pt"})
        del model, tensors
        if keep:
            shutil.copytree(folder, keep, dirs_exist_ok=True)
        yield folder


def _released_name(name: str) -> str:
    """A tensor's name in released checkpoints, from that in the model of Transformers 5."""
    name = name.removeprefix("model.")
    if name.startswith("language_model.") and not name.startswith("language_model.model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return name


def _encode_s(folder: str, clips: list[ClipRequest]) -> float:
    """Seconds of the front end for all clips, the second time."""
    front_end = FrontEnd.load(folder, torch.device("cpu"), torch.float32)
    for _ in range(2):
        start = time.perf_counter()
        front_end.encode([clip.samples for clip in clips])
        seconds = time.perf_counter() - start
    return seconds


async def _decode(
    folder: str,
    clips: list[ClipRequest],
    tokens: int,
    mode: Any,
    seconds: dict[str, float],
    plain: Sequence[DecodingResult] = (),
) -> list[DecodingResult]:
    """Decodes the clips together; drafts are ``plain`` with wrong tokens. Notes the seconds by part."""
    start = time.perf_counter()
    config = EngineConfig(model=folder, speculation=mode, concurrent_clips=len(clips))
    engine = FixedLengthEngine(config, GRANITE_4_0, tokens=1)
    try:
        seconds[f"load ({mode})"] = time.perf_counter() - start
        rng = random.Random(0)
        engine.drafts = [
            [token if rng.random() > WRONG_DRAFT_TOKENS else token + 1 for token in each.token_ids] for each in plain
        ]
        await decode_all(engine, clips, len(clips))  # warm-up: one-time initialisation
        first = await decode_all(engine, clips, len(clips))
        engine.tokens = tokens
        whole = await decode_all(engine, clips, len(clips))
        seconds[f"first tokens ({mode})"] = first.seconds
        seconds[f"the others ({mode})"] = whole.seconds - first.seconds
        return whole.decodings
    finally:
        engine.stop()


if __name__ == "__main__":
    main()

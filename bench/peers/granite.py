"""Granite Speech: our vLLM engine beside the model card's Transformers loop and the shape of Ray Data's audio examples.

    python -m bench.peers.granite [--model demo/model] [--manifest demo/samples/manifest.jsonl] [--rounds 3]

All get the same clips, cut by our Listener from the manifest's English recordings. The card's loop decodes one clip
after another; Ray Data's ``map_batches`` gives an actor with the same Transformers model batches of 8, padded to the
longest, and is timed from the actor's readiness. float32 on a CPU, the checkpoint's dtype on a GPU. Each contender has
a process of its own; loading and a first round are in no figure.

Prints RTFx, the ratio to ours and the word error rate of each, medians of the rounds; last, a line of JSON.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence

from bench.peers.report import material_of, report
from bench.peers.turns import Contender, run_in_turns, save_clips

NAMES = {
    "ours": "Rayscribe, vllm engine",
    "card": "the model card's loop (Transformers)",
    "ray-data": "Ray Data, map_batches of Transformers",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recordings", type=int, help="only so many")
    parsed = parser.parse_args(arguments)
    material = material_of(parsed.manifest, parsed.model, parsed.recordings)
    with tempfile.TemporaryDirectory() as folder:
        clips = save_clips(folder, material.samples)
        command = [sys.executable, "-m", "bench.peers.contenders"]
        contenders = [Contender(name, [*command, kind, parsed.model, clips]) for kind, name in NAMES.items()]
        running = run_in_turns(contenders, parsed.rounds)
    report(f"{parsed.model}, {len(material.requests)} clips, {parsed.rounds} rounds", contenders, running, material)


if __name__ == "__main__":
    main()

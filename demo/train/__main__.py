"""Trains the demo checkpoint from scratch: ``python -m demo.train --out demo/model --work /tmp/demo``.

Needs espeak-ng, flite, and this project's environment with ``soundfile``, ``soxr`` and ``jiwer``.
Two quiet CPU cores are enough; a GPU is used when there is one. On a CPU run it under
``torchrun --nproc-per-node 2`` with ``--threads 1``. ``--phases`` runs some of the phases again:

corpus    synthesise the clips and their features                     (6 minutes on two cores)
ctc       the encoder, with CTC                                       (35 % of --minutes)
read      the language model alone, on letters                        (15 % of --minutes)
hear      the whole model, on the clips                               (20 % of --minutes)
features  the encoder's output for every clip, to disk                (4 minutes on two cores)
drill     projector and language model on those, the encoder frozen   (30 % of --minutes)
export    write the checkpoint to --out
evaluate  error rates on the held-out voice and sentences             (about 10 minutes)

Each phase writes its result to --work, so a later one can be run again alone, and with --resume a
training phase continues from its last weights. ctc and read are independent and may run in
parallel. corpus, export and evaluate run in one process. Sentences, voices and telephone lines are
determined by --seed; the weights are not quite, since a phase ends when its CPU time is spent.

One phase is not run unless named: ``adopt`` takes the checkpoint in --out as the last weights, so that
``--phases corpus,adopt`` and then ``--phases hear,export,evaluate --resume`` continue from it.
"""

import argparse
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
from torch import distributed
from transformers import GraniteSpeechForConditionalGeneration, PreTrainedTokenizerFast

from demo.train.attention import use_fast_attention
from demo.train.checkpoint import new_model, save_checkpoint, train_tokenizer
from demo.train.corpus import Corpus, build_corpus
from demo.train.ctc import train_encoder
from demo.train.evaluate import measure
from demo.train.features import CachedFeatures, cache_features
from demo.train.grammar import name_sentence, sentence
from demo.train.llm import Recipe, train_on_clips, train_on_features, train_on_text
from demo.train.prompts import keyword_list
from demo.train.schedule import Budget
from speech.models.families import GRANITE_4_0

PHASES = ("corpus", "ctc", "read", "hear", "features", "drill", "export", "evaluate")
_SHARES = {"ctc": 0.35, "read": 0.15, "hear": 0.2, "drill": 0.3}
_VOCABULARY = 960
_TOKENIZER_SENTENCES = 12_000

log = logging.getLogger("demo.train")


def main() -> None:
    options = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if "WORLD_SIZE" in os.environ:  # by torchrun
        distributed.init_process_group("gloo")
    run = Run(options)
    for phase in options.phases.split(","):
        log.info("phase %s", phase)
        getattr(run, phase)()


class Run:
    """The phases, over one working folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._recipe = Recipe(options.peak_rate, options.ctc_weight, options.token_weight)
        self._work: Path = options.work
        self._clips = self._work / "corpus"
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._work.mkdir(parents=True, exist_ok=True)

    def corpus(self) -> None:
        o = self._options
        build_corpus(self._clips, train_clips=o.clips, test_clips=o.test_clips, seed=o.seed, workers=o.threads)

    def ctc(self) -> None:
        use_fast_attention()
        model = self._load("encoder.pt") if self._options.resume else self._new()
        train_encoder(
            model,
            Corpus(self._clips, "train"),
            Corpus(self._clips, "dev"),
            self._budget("ctc"),
            seed=self._options.seed,
            fresh=not self._options.resume,
            save=lambda: self._save(model, "encoder.pt"),
        )

    def read(self) -> None:
        model = self._load("reader.pt") if self._options.resume else self._new()
        train_on_text(
            model,
            self._tokenizer(),
            self._budget("read"),
            self._recipe,
            seed=self._options.seed,
            save=lambda: self._save(model, "reader.pt"),
        )

    def hear(self) -> None:
        use_fast_attention()
        if self._options.resume:
            model = self._load("model.pt")
        else:
            model = self._load("encoder.pt")
            model.model.language_model.load_state_dict(self._load("reader.pt").model.language_model.state_dict())
        train_on_clips(
            model,
            self._tokenizer(),
            Corpus(self._clips, "train"),
            Corpus(self._clips, "dev"),
            self._budget("hear"),
            self._recipe,
            seed=self._options.seed,
            fresh=not self._options.resume,
            save=lambda: self._save(model, "model.pt"),
        )

    def features(self) -> None:
        use_fast_attention()
        cache_features(
            self._load("model.pt"),
            Corpus(self._clips, "train"),
            self._work / "features.npy",
            variants=self._options.variants,
            seed=self._options.seed,
        )

    def drill(self) -> None:
        model = self._load("model.pt")
        train_on_features(
            model,
            self._tokenizer(),
            Corpus(self._clips, "train"),
            CachedFeatures(self._work / "features.npy"),
            Corpus(self._clips, "dev"),
            self._budget("drill"),
            self._recipe,
            seed=self._options.seed,
            save=lambda: self._save(model, "model.pt"),
        )

    def adopt(self) -> None:
        """Copies the checkpoint in --out to the working folder, to continue from it with --resume."""
        PreTrainedTokenizerFast.from_pretrained(self._options.out).save_pretrained(self._work / "tokenizer")
        model = GraniteSpeechForConditionalGeneration.from_pretrained(self._options.out, dtype=torch.float32)
        self._save(model, "model.pt")

    def export(self) -> None:
        save_checkpoint(self._load("model.pt"), self._tokenizer(), self._options.out)

    def evaluate(self) -> None:
        """Measures the exported files in --out."""
        model = GraniteSpeechForConditionalGeneration.from_pretrained(self._options.out, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self._options.out)
        names = Corpus(self._clips, "names")
        rng = Random(self._options.seed)
        keywords = [keyword_list(clip.text, clip.names, rng, test=True) for clip in names.clips]
        figures = measure(model.to(self._device), tokenizer, Corpus(self._clips, "test"), names, keywords)
        log.info("%s", figures)
        print(json.dumps(asdict(figures)))

    def _budget(self, phase: str) -> Budget:
        return Budget(self._options.minutes * _SHARES[phase])

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self._work / "tokenizer"
        if not folder.exists():
            _new_tokenizer(self._options.seed).save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def _new(self) -> GraniteSpeechForConditionalGeneration:
        return new_model(self._tokenizer()).to(self._device)

    def _load(self, name: str) -> GraniteSpeechForConditionalGeneration:
        model = new_model(self._tokenizer())
        model.load_state_dict(torch.load(self._work / name, map_location="cpu"))
        return model.to(self._device)

    def _save(self, model: GraniteSpeechForConditionalGeneration, name: str) -> None:
        partial = self._work / f"{name}.part"
        torch.save(model.state_dict(), partial)
        partial.replace(self._work / name)


def _new_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A BPE over English, German, rare names and the instructions."""
    rng = Random(seed)
    texts = []
    for i in range(_TOKENIZER_SENTENCES):
        one = sentence(rng, test=False)
        texts += [one.text, one.german]
        if i % 4 == 0:
            named = name_sentence(rng, test=False)
            texts += [named.text, f"{GRANITE_4_0.transcribe} Keywords: {', '.join(named.names)}"]
    texts += ["USER: \n ASSISTANT:", "translate the speech to German"] * (_TOKENIZER_SENTENCES // 4)
    return train_tokenizer(texts, _VOCABULARY)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/model"), help="the checkpoint's folder")
    parser.add_argument(
        "--work", type=Path, required=True, help="for the corpus and the intermediate weights; some 4 GB"
    )
    parser.add_argument("--minutes", type=float, default=150.0, help="of training, over all phases")
    parser.add_argument("--phases", default=",".join(PHASES), help="some of them, separated by commas")
    parser.add_argument("--clips", type=int, default=16_000, help="training clips")
    parser.add_argument("--test-clips", type=int, default=300, help="clips in each test set")
    parser.add_argument("--variants", type=int, default=2, help="cached features per clip, the first unaugmented")
    parser.add_argument(
        "--peak-rate", type=float, default=Recipe.peak_rate, help="peak learning rate in read, hear and drill"
    )
    parser.add_argument(
        "--ctc-weight", type=float, default=Recipe.ctc_weight, help="weight of the character CTC loss, in hear"
    )
    parser.add_argument("--token-weight", type=float, default=Recipe.token_weight, help="weight of each token CTC loss")
    parser.add_argument("--resume", action="store_true", help="training phases continue from their last weights")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()

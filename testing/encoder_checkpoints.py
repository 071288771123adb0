"""Small checkpoints with random weights of the encoders that Transformers has: TurboCTC, Parakeet CTC, Parakeet TDT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GraniteSpeech5CTCConfig,
    GraniteSpeech5FeatureExtractor,
    GraniteSpeech5ForCTC,
    GraniteSpeech5Processor,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetTDTConfig,
    ParakeetTokenizer,
)

PIECES = [f"{space}{letter}" for space in ("▁", "") for letter in "abcdefghijklmnopqrstuvwxyz"]
PAD, BLANK = len(PIECES), len(PIECES) + 1
HIDDEN = 64


def turbo_ctc(folder: Path) -> None:
    """Writes a ``GraniteSpeech5ForCTC`` and its processor."""
    encoder = {
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "context_size": 16,
        "max_position_embeddings": 32,
        "vocab_size": PAD + 1,
    }
    config = GraniteSpeech5CTCConfig(vocab_size=PAD + 1, pad_token_id=PAD, encoder_config=encoder)
    model = GraniteSpeech5ForCTC(config)
    _randomise(model)
    _save(folder, model, GraniteSpeech5Processor(GraniteSpeech5FeatureExtractor(), _tokenizer("<pad>")))


def parakeet_ctc(folder: Path) -> None:
    """Writes a ``ParakeetForCTC`` and its processor."""
    config = ParakeetCTCConfig(vocab_size=PAD + 1, pad_token_id=PAD, encoder_config=_parakeet_encoder())
    model = ParakeetForCTC(config)
    _randomise(model)
    _save(folder, model, ParakeetProcessor(ParakeetFeatureExtractor(), _tokenizer("<pad>")))


def parakeet_tdt(folder: Path, *, advances: bool = True) -> None:
    """Writes a ``ParakeetForTDT`` and its processor.

    Args:
        advances: False for one that writes tokens on one frame without end.
    """
    config = ParakeetTDTConfig(
        vocab_size=BLANK + 1,
        pad_token_id=PAD,
        blank_token_id=BLANK,
        decoder_hidden_size=32,
        num_decoder_layers=2,
        encoder_config=_parakeet_encoder(),
    )
    model = ParakeetForTDT(config)
    _randomise(model)
    with torch.no_grad():
        model.joint.head.bias[BLANK] += 2 if advances else -30
        model.joint.head.bias[BLANK + 1] += -3 if advances else 30  # of the duration 0
    model.generation_config.decoder_start_token_id = BLANK
    model.generation_config.suppress_tokens = [BLANK + 1 + index for index in range(len(config.durations))]
    _save(folder, model, ParakeetProcessor(ParakeetFeatureExtractor(), _tokenizer("<pad>", "<blank>")))


ENCODERS: dict[str, Callable[[Path], None]] = {
    "granite_speech5_ctc": turbo_ctc,
    "parakeet_ctc": parakeet_ctc,
    "parakeet_tdt": parakeet_tdt,
}


def _parakeet_encoder() -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "subsampling_conv_channels": 16,
    }


def _tokenizer(*special: str) -> ParakeetTokenizer:
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {piece: number for number, piece in enumerate([*PIECES, *special])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    tokenizer.decoder = decoders.Metaspace()
    made = ParakeetTokenizer(tokenizer_object=tokenizer, pad_token=special[0])
    made.add_special_tokens({"additional_special_tokens": list(special[1:])})
    return made


def _randomise(model: Any) -> None:
    """Weights large enough for outputs that vary along a clip, and between clips."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = 6.0 if "head" in name or name.endswith("out.weight") else 1.5
                parameter.normal_(0, scale / parameter[0].numel() ** 0.5, generator=generator)


def _save(folder: Path, model: Any, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

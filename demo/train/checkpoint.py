"""The model's configuration, and the checkpoint's files.

The architecture is Granite 4.0 1B Speech's, smaller. The multipliers of the language model
are deliberately not 1, so that an engine that omits one of them fails on this model too.

Weights are written under the names the released checkpoints use (``encoder.*``, ``projector.*``,
``language_model.model.*``), which both vLLM and ``from_pretrained`` read. ``save_pretrained`` of
transformers 5.19 writes ``language_model.model.model.*`` for a newly built model, which vLLM
rejects; hence ``save_checkpoint`` here.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GraniteSpeechConfig,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechProcessor,
    PreTrainedTokenizerFast,
)

END, PAD, AUDIO = "<|end_of_text|>", "<|pad|>", "<|audio|>"

# The user's turn contains <|audio|> and the instruction; the answer follows "ASSISTANT:" directly.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }}\n ASSISTANT:"
    "{% else %}{{ message['content'] }}<|end_of_text|>{% endif %}"
    "{% endfor %}"
)

CTC_BLANK = 0
CTC_LABELS = 348  # code points of Basic Latin to Latin Extended-A, as the released encoder has them

_RELEASED_NAMES = (
    ("model.encoder.", "encoder."),
    ("model.projector.", "projector."),
    ("model.language_model.", "language_model.model."),
)


def model_config(vocab_size: int, *, audio_token: int, end_token: int, pad_token: int) -> GraniteSpeechConfig:
    """Granite Speech, small: about 1.2 M parameters of encoder, 0.3 M of projector, 1.1 M of LLM."""
    return GraniteSpeechConfig(
        encoder_config={
            "input_dim": 160,
            "num_layers": 4,
            "hidden_dim": 96,
            "num_heads": 2,
            "dim_head": 48,
            "output_dim": CTC_LABELS,
            "context_size": 200,
            "max_pos_emb": 512,
            "conv_kernel_size": 15,
            "dropout": 0.0,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 96,
            "encoder_hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 384,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "granite",
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.05,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.1875,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
            "bos_token_id": end_token,
            "eos_token_id": end_token,
            "pad_token_id": pad_token,
        },
        audio_token_index=audio_token,
        window_size=15,
        downsample_rate=5,
        has_lora_adapter=False,
        tie_word_embeddings=True,
        architectures=["GraniteSpeechForConditionalGeneration"],
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over ``texts``, with Granite's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END, PAD, AUDIO],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[AUDIO],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> GraniteSpeechForConditionalGeneration:
    """A model of this configuration with random weights."""
    config = model_config(
        len(tokenizer),
        audio_token=tokenizer.convert_tokens_to_ids(AUDIO),
        end_token=tokenizer.eos_token_id,
        pad_token=tokenizer.pad_token_id,
    )
    return GraniteSpeechForConditionalGeneration(config)


def save_checkpoint(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes config, weights, tokenizer, processor and generation config into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embeddings
            continue
        for inside, released in _RELEASED_NAMES:
            if name.startswith(inside):
                kept = tensor.to(dtype) if tensor.is_floating_point() else tensor
                weights[released + name.removeprefix(inside)] = kept.cpu().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    GraniteSpeechProcessor(
        GraniteSpeechFeatureExtractor(), tokenizer, audio_token=AUDIO, chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)

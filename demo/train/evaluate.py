"""Error rates of the checkpoint on clips that it was not trained on.

Only clips of one length and one prompt are batched, so nothing is padded and each has the same
output as alone.
"""

from collections import defaultdict
from dataclasses import dataclass

import jiwer
import torch
from transformers import GraniteSpeechForConditionalGeneration, PreTrainedTokenizerFast

from demo.train.checkpoint import CTC_BLANK
from demo.train.corpus import Clip, Corpus
from demo.train.prompts import TRANSCRIBE, TRANSLATE, split_prompt, with_keywords
from speech.recording import Options

_MAX_NEW_TOKENS = 300


def word_error_rate(references: list[str], hypotheses: list[str]) -> float:
    """Over all words of the clips whose reference is not empty."""
    pairs = [pair for pair in zip(references, hypotheses, strict=True) if pair[0]]
    return jiwer.wer([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])


@torch.inference_mode()
def ctc_text(model: GraniteSpeechForConditionalGeneration, features: torch.Tensor) -> str:
    """Greedy CTC of one clip, from the encoder's last layer."""
    encoder = model.model.encoder
    labels = encoder.out(encoder(features[None].to(model.device)).last_hidden_state)[0].argmax(-1)
    return "".join(chr(label) for label in torch.unique_consecutive(labels).tolist() if label != CTC_BLANK)


def ctc_error_rate(model: GraniteSpeechForConditionalGeneration, corpus: Corpus, limit: int | None = None) -> float:
    """Word error rate of the CTC head alone."""
    model.eval()
    clips = corpus.clips[:limit]
    return word_error_rate([c.text for c in clips], [ctc_text(model, corpus.features(c)) for c in clips])


@torch.inference_mode()
def llm_texts(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: torch.Tensor,
    asked: Options,
) -> list[str]:
    """Greedy decoding of ``[clips, frames, 160]`` through the whole model."""
    clips, frames, _ = features.shape
    audio_tokens = -(-frames // model.config.window_size) * (model.config.window_size // model.config.downsample_rate)
    before, after = split_prompt(tokenizer, asked)
    prompt = torch.tensor([[*before, *[model.config.audio_token_index] * audio_tokens, *after]] * clips)
    answers = model.generate(
        input_ids=prompt.to(model.device),
        attention_mask=torch.ones_like(prompt, device=model.device),
        input_features=features.to(model.device),
        input_features_mask=torch.ones(clips, audio_tokens, dtype=torch.bool, device=model.device),
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
    )
    return tokenizer.batch_decode(answers[:, prompt.shape[1] :], skip_special_tokens=True)


def answer_all(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    asked: list[Options],
) -> list[str]:
    """The decoded texts of the first ``len(asked)`` clips of a corpus, each with its options."""
    model.eval()
    together: dict[tuple[int, Options], list[int]] = defaultdict(list)
    for index, options in enumerate(asked):
        together[corpus.clips[index].frames, options].append(index)
    answers = [""] * len(asked)
    for (_, options), indices in together.items():
        features = torch.stack([corpus.features(corpus.clips[index]) for index in indices])
        for index, text in zip(indices, llm_texts(model, tokenizer, features, options), strict=True):
            answers[index] = text.strip()
    return answers


@dataclass(frozen=True)
class Figures:
    """Shares between 0 and 1."""

    ctc_wer: float
    llm_wer: float
    german_wer: float
    name_recall_without: float
    name_recall_with: float

    def __str__(self) -> str:
        return (
            f"CTC WER {self.ctc_wer:.1%}, LLM WER {self.llm_wer:.1%}, German WER {self.german_wer:.1%}, "
            f"rare names right {self.name_recall_without:.1%} without and {self.name_recall_with:.1%} with keywords"
        )


def measure(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plain: Corpus,
    names: Corpus,
    keywords: list[list[str]],
    limit: int | None = None,
) -> Figures:
    """Every figure of the model card; ``keywords`` are the lists for the clips of ``names``."""
    clips = plain.clips[:limit]
    named = names.clips[:limit]
    texts = answer_all(model, tokenizer, plain, [TRANSCRIBE] * len(clips))
    german = answer_all(model, tokenizer, plain, [TRANSLATE] * len(clips))
    without = answer_all(model, tokenizer, names, [TRANSCRIBE] * len(named))
    biased = answer_all(model, tokenizer, names, [with_keywords(keywords[i]) for i in range(len(named))])
    return Figures(
        ctc_wer=ctc_error_rate(model, plain, limit),
        llm_wer=word_error_rate([clip.text for clip in clips], texts),
        german_wer=word_error_rate([clip.german for clip in clips], german),
        name_recall_without=_name_recall(named, without),
        name_recall_with=_name_recall(named, biased),
    )


def _name_recall(clips: list[Clip], texts: list[str]) -> float:
    found = [name in text.split() for clip, text in zip(clips, texts, strict=True) for name in clip.names]
    return sum(found) / len(found)

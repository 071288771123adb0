"""Trains the language model on text alone, then, with the projector, on audio.

*Text* steps have no audio. In place of the audio embeddings they have those of the letters of a
sentence from the grammar, in its *spoken* spelling, with a few errors. From these the language model
learns monotonic copying, to spell names as the keywords do, and to translate, on unlimited text. They
are a phase (``train_on_text``), which needs no encoder and can run in parallel with the encoder's, and a
share of the next.

*Audio* steps are the real task. First all weights are trained, with the encoder's CTC loss added to the
answers' (``train_on_clips``): so the encoder learns to encode in each frame its context, without which the
projector, whose attention has no positions within a window, could not order the frames. Two more CTC losses
guide it: over the text's *tokens*, on the encoder's frames through an auxiliary head that is discarded, and on the
projector's output scored against the language model's embeddings, so that the output is near the embeddings of the
text's tokens. Then the encoder is frozen and the rest trained on its features (``train_on_features``), four
times as fast.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import GraniteSpeechForConditionalGeneration, PreTrainedTokenizerFast

from demo.train.corpus import Clip, Corpus
from demo.train.ctc import ctc_per_label, encode, load_batch
from demo.train.evaluate import answer_all, word_error_rate
from demo.train.features import CachedFeatures
from demo.train.grammar import Sentence, join, name_sentence, part_of, sentence
from demo.train.prompts import TRANSCRIBE, TRANSLATE, keyword_list, split_prompt, with_keywords
from demo.train.schedule import Budget, Trainer, autocast, equal_length_batches, worker
from speech.recording import Options

log = logging.getLogger(__name__)

FRAMES_PER_BATCH = 2880
CACHED_FRAMES_PER_BATCH = 4320
TEXTS_PER_BATCH = 32
TEXT_STEP_SHARE = 0.1  # of the steps of train_on_clips and train_on_features
# For this share of the budget, gradients of a randomly initialised projector do not reach the encoder.
_DETACHED_SHARE = 0.3
_EASY_STEPS = 1000  # at the start of train_on_text
_LETTER_ERROR_RATE = 0.06  # letters substituted, deleted or doubled in text steps
_LETTERS = "abcdefghijklmnopqrstuvwxyz' "
_IGNORED = -100
_REPORT_EVERY_MINUTES = 4.0


@dataclass(frozen=True)
class Recipe:
    """Peak learning rate, and the weights of the CTC losses relative to the answers' cross-entropy."""

    peak_rate: float = 1.5e-3
    ctc_weight: float = 0.5  # characters, on the encoder's frames
    token_weight: float = 0.3  # tokens, on the encoder's frames and on the projector's output


class AnswerTrainer:
    """The loss of answers, given sources (embeddings of audio or letters) and instructions."""

    def __init__(self, model: GraniteSpeechForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self._model = model
        self.tokenizer = tokenizer
        # On a CPU the backward of eager attention takes half the time of the fused kernel's.
        model.model.language_model.set_attn_implementation("eager")
        self._embed = model.get_input_embeddings()
        self._letters = {letter: self.ids(letter)[0] for letter in _LETTERS}
        self._prompts: dict[Options, tuple[list[int], list[int]]] = {}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _prompt(self, options: Options) -> tuple[list[int], list[int]]:
        if options.keywords:  # not worth caching: rarely the same twice
            return split_prompt(self.tokenizer, options)
        if options not in self._prompts:
            self._prompts[options] = split_prompt(self.tokenizer, options)
        return self._prompts[options]

    def loss(self, sources: list[torch.Tensor], asked: list[Options], answers: list[str]) -> torch.Tensor:
        """Mean cross-entropy of the answers' tokens and their ends; ``sources`` are embeddings.

        Rows are padded on the right only, which a causal model does not attend to.
        """
        device = self._model.device
        rows, labels = [], []
        for source, options, answer in zip(sources, asked, answers, strict=True):
            before, after = self._prompt(options)
            answer_ids = [*self.ids(answer), self.tokenizer.eos_token_id]
            head = self._embed(torch.tensor(before, device=device))
            tail = self._embed(torch.tensor(after + answer_ids, device=device))
            rows.append(torch.cat([head, source.to(head.dtype), tail]))
            unscored = len(before) + len(source) + len(after) - 1
            # Shifted by one: each position predicts the next token.
            labels.append(torch.tensor([_IGNORED] * unscored + answer_ids + [_IGNORED]))
        embeddings = pad_sequence(rows, batch_first=True)
        targets = pad_sequence(labels, batch_first=True, padding_value=_IGNORED).to(device)
        with autocast(device):
            hidden = self._model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            scored = targets != _IGNORED
            logits = self._model.lm_head(hidden[scored])
        scaling = self._model.config.text_config.logits_scaling
        return cross_entropy(logits.float() / scaling, targets[scored])

    def token_loss(self, scores: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """CTC per token; ``scores`` is ``[clips, positions, vocabulary]``, the padding token is the blank."""
        targets = [torch.tensor(self.ids(text), dtype=torch.long) for text in texts]
        return ctc_per_label(scores, targets, self.tokenizer.pad_token_id)

    def audio_token_loss(self, audio: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """``token_loss`` of the projector's ``[clips, positions, hidden]``, scored against the token embeddings."""
        return self.token_loss(audio.float() @ self._embed.weight.float().t(), texts)

    def letters(self, spoken: str, rng: Random) -> torch.Tensor:
        """Embeddings of a text's letters, with random errors."""
        ids = [self._letters[letter] for letter in _with_letter_errors(spoken, rng)]
        return self._embed(torch.tensor(ids, dtype=torch.long, device=self._model.device))


def train_on_text(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    budget: Budget,
    recipe: Recipe,
    *,
    seed: int,
    save: Callable[[], None],
) -> None:
    """Trains ``model``'s language model in place, on letters only, until the budget is spent."""
    rng = Random(seed * 1000 + worker())
    trainer = Trainer(list(model.model.language_model.parameters()), budget, recipe.peak_rate)
    answers = AnswerTrainer(model.train(), tokenizer)
    running, next_save = 0.0, _REPORT_EVERY_MINUTES
    while budget.progress < 1:
        loss = _text_loss(answers, rng, easy=float(trainer.step < _EASY_STEPS))
        trainer.update(loss)
        running = 0.98 * running + 0.02 * loss.item()
        if trainer.step % 100 == 0:
            log.info("read step %d, %.1f min, loss %.3f", trainer.step, budget.minutes_used, running)
        if worker() == 0 and budget.minutes_used > next_save:
            next_save += _REPORT_EVERY_MINUTES
            save()
    if worker() == 0:
        save()


def train_on_clips(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    train: Corpus,
    dev: Corpus,
    budget: Budget,
    recipe: Recipe,
    *,
    seed: int,
    fresh: bool,
    save: Callable[[], None],
) -> None:
    """Trains all of ``model`` in place until the budget is spent; see _DETACHED_SHARE for ``fresh``."""
    answers = AnswerTrainer(model, tokenizer)
    token_head = torch.nn.Linear(model.config.encoder_config.hidden_dim, len(tokenizer), device=model.device)

    def batch_loss(batch: list[Clip], rng: Random) -> torch.Tensor:
        texts = [clip.text for clip in batch]
        hidden, ctc = encode(model, load_batch(train, batch, rng).to(model.device), texts)
        tokens = answers.token_loss(token_head(hidden.float()), texts)
        detached = fresh and budget.progress < _DETACHED_SHARE
        answered = _audio_loss(model, answers, hidden.detach() if detached else hidden, batch, recipe, rng)
        return answered + recipe.ctc_weight * ctc + recipe.token_weight * tokens

    weights = [*model.parameters(), *token_head.parameters()]
    _train(model, answers, weights, train, batch_loss, FRAMES_PER_BATCH, dev, budget, recipe, seed, save)


def train_on_features(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    train: Corpus,
    cached: CachedFeatures,
    dev: Corpus,
    budget: Budget,
    recipe: Recipe,
    *,
    seed: int,
    save: Callable[[], None],
) -> None:
    """Trains projector and language model in place until the budget is spent, the encoder frozen."""
    model.model.encoder.requires_grad_(False)
    answers = AnswerTrainer(model, tokenizer)

    def batch_loss(batch: list[Clip], rng: Random) -> torch.Tensor:
        frames = batch[0].frames - rng.randrange(15)
        return _audio_loss(model, answers, cached.batch(batch, frames, rng).to(model.device), batch, recipe, rng)

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    _train(model, answers, weights, train, batch_loss, CACHED_FRAMES_PER_BATCH, dev, budget, recipe, seed, save)


def _train(
    model: GraniteSpeechForConditionalGeneration,
    answers: AnswerTrainer,
    weights: list[torch.nn.Parameter],
    train: Corpus,
    batch_loss: Callable[[list[Clip], Random], torch.Tensor],
    frames_per_batch: int,
    dev: Corpus,
    budget: Budget,
    recipe: Recipe,
    seed: int,
    save: Callable[[], None],
) -> None:
    rng = Random(seed * 1000 + worker())
    model.train()
    trainer = Trainer(weights, budget, recipe.peak_rate)
    running = {"text": 0.0, "audio": 0.0}
    next_report = _REPORT_EVERY_MINUTES
    while budget.progress < 1:
        for batch in equal_length_batches(train.clips, frames_per_batch, rng):
            if rng.random() < TEXT_STEP_SHARE:
                kind, loss = "text", _text_loss(answers, rng)
            else:
                kind, loss = "audio", batch_loss(batch, rng)
            trainer.update(loss)
            running[kind] = 0.98 * running[kind] + 0.02 * loss.item()
            if trainer.step % 100 == 0:
                log.info("step %d, %.1f min, %s", trainer.step, budget.minutes_used, _rounded(running))
            if worker() == 0 and budget.minutes_used > next_report:
                next_report += _REPORT_EVERY_MINUTES
                save()
                report(model, answers.tokenizer, dev)
                model.train()
            if budget.progress >= 1:
                break
    if worker() == 0:
        save()


def _rounded(losses: dict[str, float]) -> str:
    return ", ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items())


def _text_loss(answers: AnswerTrainer, rng: Random, easy: float = 0.0) -> torch.Tensor:
    """``easy`` is the share of items that are one to three words to transcribe, on which copying is learned first."""
    sources, asked, texts = [], [], []
    for _ in range(TEXTS_PER_BATCH):
        if rng.random() < easy:
            one = part_of(sentence(rng, test=False), rng, max_words=3)
            options, answer = TRANSCRIBE, one.text
        else:
            one = _random_sentence(rng)
            options, answer = choose_task(one.text, one.german, one.names, rng)
        sources.append(answers.letters(one.spoken, rng))
        asked.append(options)
        texts.append(answer)
    return answers.loss(sources, asked, texts)


def _random_sentence(rng: Random) -> Sentence:
    kind = rng.random()
    if kind < 0.35:
        return name_sentence(rng, test=False)
    if kind < 0.45:
        return join([sentence(rng, test=False), sentence(rng, test=False)])
    return sentence(rng, test=False)


def _audio_loss(
    model: GraniteSpeechForConditionalGeneration,
    answers: AnswerTrainer,
    hidden: torch.Tensor,
    batch: list[Clip],
    recipe: Recipe,
    rng: Random,
) -> torch.Tensor:
    with autocast(model.device):
        audio = model.model.projector(hidden)
    tasks = [choose_task(clip.text, clip.german, clip.names, rng) for clip in batch]
    answered = answers.loss(list(audio), [options for options, _ in tasks], [answer for _, answer in tasks])
    return answered + recipe.token_weight * answers.audio_token_loss(audio, [clip.text for clip in batch])


def choose_task(text: str, german: str, names: tuple[str, ...], rng: Random) -> tuple[Options, str]:
    """Options for a clip and the text to learn; with rare names mostly keywords."""
    kind = rng.random()
    if names:
        if kind < 0.75:
            return with_keywords(keyword_list(text, names, rng)), text
        return TRANSCRIBE, text
    if german and kind < 0.35:
        return TRANSLATE, german
    if kind < 0.5:
        return with_keywords(keyword_list(text, names, rng)), text
    return TRANSCRIBE, text


def _with_letter_errors(text: str, rng: Random) -> str:
    letters = []
    for letter in text:
        draw = rng.random() / _LETTER_ERROR_RATE
        if draw >= 1 or draw < 0.2:
            letters.append(letter)
        if draw < 0.6:  # doubled below 0.2, substituted up to 0.6, deleted above
            letters.append(letter if draw < 0.2 else rng.choice(_LETTERS))
    return "".join(letters)


def report(
    model: GraniteSpeechForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, dev: Corpus, limit: int = 40
) -> None:
    """Logs the error rates of a few clips, and the first transcript and translation."""
    clips = dev.clips[:limit]
    texts = answer_all(model, tokenizer, dev, [TRANSCRIBE] * len(clips))
    german = answer_all(model, tokenizer, dev, [TRANSLATE] * len(clips))
    wer = word_error_rate([clip.text for clip in clips], texts)
    german_wer = word_error_rate([clip.german for clip in clips], german)
    log.info("llm dev wer %.1f %%, german %.1f %%; %r %r", 100 * wer, 100 * german_wer, texts[0], german[0])

"""The language model learns to read, then, with the projector, to hear.

*Spelled* steps have no audio. Fresh sentences from the grammar stand where the audio would, as their
letters with a few slips, in the spelling they are *spoken* in. From these the language model learns
to follow a source from left to right, to take a name's spelling from the keywords and to translate,
on an endless supply of text. They are a phase of their own (``train_to_read``), which needs no
encoder and so can run beside the encoder's, and a share of the next.

*Heard* steps are the real task. First the whole model moves, with the encoder's CTC loss beside the
answers' (``train_to_hear``): so the encoder learns to put into each frame what lies around it, without
which the projector, which sees a window's frames as a set, could not tell their order. Two more CTC
losses show the way there: the text's *tokens*, read off the encoder's frames by a head that is thrown
away, and read off the projector's output by the language model's own embeddings, so that what comes
out of it lies where the text's tokens lie and has only to be copied. Then the encoder is frozen and
the rest drilled on its features (``train_on_features``), four times as fast.
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
SPELLED_PER_BATCH = 32
SPELLED_SHARE = 0.1  # of the steps on clips
# A fresh projector's gradients would only disturb the encoder: for so much of the budget it is spared them.
_SPARED_SHARE = 0.3
_EASY_STEPS = 1000  # of train_to_read, at its beginning
_SLIP = 0.06  # share of letters misheard, lost or doubled in spelled steps
_LETTERS = "abcdefghijklmnopqrstuvwxyz' "
_IGNORED = -100
_REPORT_EVERY_MINUTES = 4.0


@dataclass(frozen=True)
class Recipe:
    """A stint of training: its highest learning rate, and what the CTC losses weigh beside the answers'."""

    peak_rate: float = 1.5e-3
    ctc_weight: float = 0.5  # characters, off the encoder's frames
    token_weight: float = 0.3  # tokens, off the encoder's frames and again off the projector's output


class AnswerTrainer:
    """Turns sources (audio or letters), instructions and answers into a loss."""

    def __init__(self, model: GraniteSpeechForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self._model = model
        self.tokenizer = tokenizer
        # Plain matrix products: on a CPU their backward takes half the time of the fused kernel's.
        model.model.language_model.set_attn_implementation("eager")
        self._embed = model.get_input_embeddings()
        self._letters = {letter: self.ids(letter)[0] for letter in _LETTERS}
        self._prompts: dict[Options, tuple[list[int], list[int]]] = {}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _prompt(self, options: Options) -> tuple[list[int], list[int]]:
        if options.keywords:  # never the same twice
            return split_prompt(self.tokenizer, options)
        if options not in self._prompts:
            self._prompts[options] = split_prompt(self.tokenizer, options)
        return self._prompts[options]

    def loss(self, sources: list[torch.Tensor], asked: list[Options], answers: list[str]) -> torch.Tensor:
        """Mean cross-entropy of the answers' tokens and their ends; ``sources`` are embeddings.

        Rows are filled up on the right only, where a causal model cannot see it.
        """
        device = self._model.device
        rows, labels = [], []
        for source, options, answer in zip(sources, asked, answers, strict=True):
            before, after = self._prompt(options)
            said = [*self.ids(answer), self.tokenizer.eos_token_id]
            head = self._embed(torch.tensor(before, device=device))
            tail = self._embed(torch.tensor(after + said, device=device))
            rows.append(torch.cat([head, source.to(head.dtype), tail]))
            silent = len(before) + len(source) + len(after) - 1
            # One token early: each position is scored on the token that follows it.
            labels.append(torch.tensor([_IGNORED] * silent + said + [_IGNORED]))
        embeddings = pad_sequence(rows, batch_first=True)
        wanted = pad_sequence(labels, batch_first=True, padding_value=_IGNORED).to(device)
        with autocast(device):
            hidden = self._model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            scored = wanted != _IGNORED
            logits = self._model.lm_head(hidden[scored])
        scaling = self._model.config.text_config.logits_scaling
        return cross_entropy(logits.float() / scaling, wanted[scored])

    def token_loss(self, scores: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """CTC per token; ``scores`` is ``[clips, positions, vocabulary]``, the padding token is the blank."""
        targets = [torch.tensor(self.ids(text), dtype=torch.long) for text in texts]
        return ctc_per_label(scores, targets, self.tokenizer.pad_token_id)

    def audio_token_loss(self, audio: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """``token_loss`` of the projector's ``[clips, positions, hidden]``, scored against the token embeddings."""
        return self.token_loss(audio.float() @ self._embed.weight.float().t(), texts)

    def letters(self, spoken: str, rng: Random) -> torch.Tensor:
        """Embeddings of a text's single letters, some wrong, as if an ear had spelled them."""
        ids = [self._letters[letter] for letter in _slipped(spoken, rng)]
        return self._embed(torch.tensor(ids, dtype=torch.long, device=self._model.device))


def train_to_read(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    budget: Budget,
    recipe: Recipe,
    *,
    seed: int,
    save: Callable[[], None],
) -> None:
    """Trains ``model``'s language model in place, on letters alone, until the budget is spent."""
    rng = Random(seed * 1000 + worker())
    trainer = Trainer(list(model.model.language_model.parameters()), budget, recipe.peak_rate)
    answers = AnswerTrainer(model.train(), tokenizer)
    running, next_save = 0.0, _REPORT_EVERY_MINUTES
    while budget.progress < 1:
        loss = _spelled_loss(answers, rng, easy=float(trainer.step < _EASY_STEPS))
        trainer.update(loss)
        running = 0.98 * running + 0.02 * loss.item()
        if trainer.step % 100 == 0:
            log.info("read step %d, %.1f min, loss %.3f", trainer.step, budget.minutes_used, running)
        if worker() == 0 and budget.minutes_used > next_save:
            next_save += _REPORT_EVERY_MINUTES
            save()
    if worker() == 0:
        save()


def train_to_hear(
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
    """Trains all of ``model`` in place until the budget is spent; a ``fresh`` projector is let settle first."""
    answers = AnswerTrainer(model, tokenizer)
    token_head = torch.nn.Linear(model.config.encoder_config.hidden_dim, len(tokenizer), device=model.device)

    def listened(batch: list[Clip], rng: Random) -> torch.Tensor:
        texts = [clip.text for clip in batch]
        hidden, ctc = encode(model, load_batch(train, batch, rng).to(model.device), texts)
        tokens = answers.token_loss(token_head(hidden.float()), texts)
        spare = fresh and budget.progress < _SPARED_SHARE
        answered = _heard_loss(model, answers, hidden.detach() if spare else hidden, batch, recipe, rng)
        return answered + recipe.ctc_weight * ctc + recipe.token_weight * tokens

    weights = [*model.parameters(), *token_head.parameters()]
    _train_on_clips(model, answers, weights, train, listened, FRAMES_PER_BATCH, dev, budget, recipe, seed, save)


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

    def listened(batch: list[Clip], rng: Random) -> torch.Tensor:
        frames = batch[0].frames - rng.randrange(15)
        return _heard_loss(model, answers, cached.batch(batch, frames, rng).to(model.device), batch, recipe, rng)

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    _train_on_clips(model, answers, weights, train, listened, CACHED_FRAMES_PER_BATCH, dev, budget, recipe, seed, save)


def _train_on_clips(
    model: GraniteSpeechForConditionalGeneration,
    answers: AnswerTrainer,
    weights: list[torch.nn.Parameter],
    train: Corpus,
    listened: Callable[[list[Clip], Random], torch.Tensor],
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
    running = {"spelled": 0.0, "heard": 0.0}
    next_report = _REPORT_EVERY_MINUTES
    while budget.progress < 1:
        for batch in equal_length_batches(train.clips, frames_per_batch, rng):
            if rng.random() < SPELLED_SHARE:
                kind, loss = "spelled", _spelled_loss(answers, rng)
            else:
                kind, loss = "heard", listened(batch, rng)
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


def _spelled_loss(answers: AnswerTrainer, rng: Random, easy: float = 0.0) -> torch.Tensor:
    """``easy`` is the share of a few words to write down, from which copying is found soonest."""
    sources, asked, said = [], [], []
    for _ in range(SPELLED_PER_BATCH):
        if rng.random() < easy:
            one = part_of(sentence(rng, test=False), rng, most=3)
            options, answer = TRANSCRIBE, one.text
        else:
            one = _fresh(rng)
            options, answer = choose_task(one.text, one.german, one.names, rng)
        sources.append(answers.letters(one.spoken, rng))
        asked.append(options)
        said.append(answer)
    return answers.loss(sources, asked, said)


def _fresh(rng: Random) -> Sentence:
    kind = rng.random()
    if kind < 0.35:
        return name_sentence(rng, test=False)
    if kind < 0.45:
        return join([sentence(rng, test=False), sentence(rng, test=False)])
    return sentence(rng, test=False)


def _heard_loss(
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
    """What is asked about a clip, and its answer: keywords mostly where there are rare names."""
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


def _slipped(text: str, rng: Random) -> str:
    letters = []
    for letter in text:
        slip = rng.random() / _SLIP
        if slip >= 1 or slip < 0.2:
            letters.append(letter)
        if slip < 0.6:  # doubled below 0.2, misheard up to 0.6, lost above
            letters.append(letter if slip < 0.2 else rng.choice(_LETTERS))
    return "".join(letters)


def report(
    model: GraniteSpeechForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, dev: Corpus, limit: int = 40
) -> None:
    """Logs the error rates of a few clips, and the first two answers as they are."""
    clips = dev.clips[:limit]
    texts = answer_all(model, tokenizer, dev, [TRANSCRIBE] * len(clips))
    german = answer_all(model, tokenizer, dev, [TRANSLATE] * len(clips))
    wer = word_error_rate([clip.text for clip in clips], texts)
    german_wer = word_error_rate([clip.german for clip in clips], german)
    log.info("llm dev wer %.1f %%, german %.1f %%; %r %r", 100 * wer, 100 * german_wer, texts[0], german[0])

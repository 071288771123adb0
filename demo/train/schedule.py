"""Shared by the training phases: a time budget, the learning rate schedule, batches of equal length.

Under ``torchrun`` every process takes its own batches and the gradients are averaged. On a busy CPU,
processes of one thread each are much faster than the threads of one process, which synchronise
hundreds of times a step.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from torch import distributed

from demo.train.corpus import Clip

_WARM_UP_STEPS = 300


class Budget:
    """A phase's training time. The learning rate falls to zero at its end.

    On a CPU it is the process's CPU time, so that other load on the machine delays the training but
    does not shorten it.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._started = _clock()
        self.progress = 0.0

    def update_progress(self) -> None:
        """Sets ``progress`` from the first worker's clock, so that all workers stop at the same step."""
        progress = torch.tensor((_clock() - self._started) / self._seconds)
        if distributed.is_initialized():
            distributed.broadcast(progress, 0)
        self.progress = min(1.0, float(progress))

    @property
    def minutes_used(self) -> float:
        return self.progress * self._seconds / 60

    def learning_rate(self, peak: float, step: int) -> float:
        """Linear warm-up over steps, times a cosine decay over the budget."""
        return peak * min(1.0, (step + 1) / _WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * self.progress))


def equal_length_batches(clips: list[Clip], frames_per_batch: int, rng: Random) -> Iterator[list[Clip]]:
    """One epoch: batches of clips with the same number of frames, in random order."""
    by_length: dict[int, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_length[clip.frames].append(clip)
    batches: list[list[Clip]] = []
    for frames, same in by_length.items():
        size = max(1, frames_per_batch // frames)
        rng.shuffle(same)
        batches += [same[i : i + size] for i in range(0, len(same), size)]
    rng.shuffle(batches)
    yield from batches


class Trainer:
    """AdamW over some weights: clipped gradients, averaged over the workers."""

    def __init__(self, weights: list[torch.nn.Parameter], budget: Budget, peak_rate: float) -> None:
        self._weights = weights
        self._budget = budget
        self._peak = peak_rate
        self._optimizer = torch.optim.AdamW(weights, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.step = 0

    def update(self, loss: torch.Tensor) -> None:
        self._budget.update_progress()
        rate = self._budget.learning_rate(self._peak, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if distributed.is_initialized():
            _average_gradients(self._weights)
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self.step += 1


def _clock() -> float:
    return time.monotonic() if torch.cuda.is_available() else time.process_time() / torch.get_num_threads()


def worker() -> int:
    """This process's rank under ``torchrun``; rank 0 writes files and reports."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def workers() -> int:
    """The number of processes that ``torchrun`` started; 1 without it."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait_for_all() -> None:
    """A barrier over all workers."""
    if distributed.is_initialized():
        distributed.barrier()


def _average_gradients(weights: list[torch.nn.Parameter]) -> None:
    # A worker whose batch did not use some weights contributes zeros for them.
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= workers()
    for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.grad = part.view_as(weight)


def autocast(device: torch.device) -> Any:
    """bfloat16 for matrix products: three times as fast on a CPU with AVX512-BF16, faster yet on a GPU."""
    return torch.autocast(device.type, torch.bfloat16)

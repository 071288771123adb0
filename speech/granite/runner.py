"""The adapter to vLLM's internals: every private attribute that we read, replace or depend on is in this file.

vLLM's interface for external drafters (``method="custom_class"``) says which tokens were sampled in which row of
the batch, and not for which request. The rest is read from the model runner (``ModelRunner``), whose attributes are no
public API and may change with any release. So they are checked before they are used: what is imported from vLLM's
private modules here; the runner's attributes when ``ModelRunner`` is built, once
an engine. The error names what is missing.
"""

import dataclasses
from collections.abc import Iterable, KeysView
from operator import attrgetter
from typing import Any

import torch
import vllm

MADE_FOR = "0.32"


class VllmMismatchError(RuntimeError):
    """The installed vLLM lacks what this file uses."""

    def __init__(self, owner: str, missing: Iterable[str], instead: str) -> None:
        super().__init__(
            f"vLLM {vllm.__version__} does not have what Rayscribe uses of its {owner}: {', '.join(missing)}. "
            f"Rayscribe was made for vLLM {MADE_FOR}: install that version, or give {instead}"
        )


try:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState
except ImportError as error:
    raise VllmMismatchError("modules", [str(error)], "--engine transformers") from error

# Attributes of the model runner, by path, and their types.
_RUNNER_ATTRIBUTES: dict[str, type] = {
    "input_batch.req_ids": list,
    "requests": dict,
    "device": torch.device,
    "max_model_len": int,
    "effective_drafter_max_model_len": int,
}
# Fields of a request's state.
_STATE_FIELDS = ("sampling_params", "output_token_ids")


def drafter_of(runner: Any) -> Any:
    """The drafter that a model runner has built; None if this worker has none (all but the last of a pipeline)."""
    return getattr(runner, "drafter", None)


def check_runner(runner: Any) -> None:
    """Raises VllmMismatchError unless all that ``ModelRunner`` and ``Request`` use is there."""
    missing = _wrong_attributes(runner, _RUNNER_ATTRIBUTES)
    fields = {each.name for each in dataclasses.fields(CachedRequestState)}
    missing += [f"CachedRequestState.{name}" for name in _STATE_FIELDS if name not in fields]
    if missing:
        raise VllmMismatchError("model runner", missing, "--speculation off")


def _wrong_attributes(owner: Any, types: dict[str, type]) -> list[str]:
    """Paths that ``owner`` lacks, or has with another type."""
    wrong = []
    for path, expected in types.items():
        try:
            value = attrgetter(path)(owner)
        except AttributeError:
            wrong.append(path)
        else:
            if not isinstance(value, expected):
                wrong.append(f"{path} ({expected.__name__}, not {type(value).__name__})")
    return wrong


class Request:
    """One request in vLLM's model runner.

    Args:
        state: vLLM's ``CachedRequestState``.
    """

    def __init__(self, state: CachedRequestState) -> None:
        self._state = state

    @property
    def extra_args(self) -> dict[str, Any]:
        """``SamplingParams.extra_args``."""
        parameters = self._state.sampling_params
        return (parameters and parameters.extra_args) or {}

    @property
    def output_tokens(self) -> list[int]:
        """All tokens that it has been given, also once the runner has dropped it."""
        return self._state.output_token_ids


class ModelRunner:
    """The model runner of a vLLM worker, as far as the drafter needs it.

    Args:
        runner: vLLM's ``GPUModelRunner`` (of which the CPU's is a subclass).

    Raises:
        VllmMismatchError: it is not as in the versions of vLLM that this was made for.
    """

    def __init__(self, runner: Any) -> None:
        check_runner(runner)
        self._runner = runner

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        device: torch.device = self._runner.device
        return device.type

    @property
    def request_ids(self) -> list[str]:
        """Id of the request in each row of the batch."""
        ids: list[str] = self._runner.input_batch.req_ids
        return ids

    @property
    def held_requests(self) -> KeysView[str]:
        """Ids of the requests that are running or preempted."""
        ids: KeysView[str] = self._runner.requests.keys()
        return ids

    def request(self, request_id: str) -> Request:
        """One of ``held_requests``."""
        return Request(self._runner.requests[request_id])

    def draft_to_context_end(self, draft_tokens: int) -> None:
        """Lifts the limit of a draft model's context.

        vLLM stops all drafts of a batch while any request is within a draft's length of the drafter's context end.
        A CTC draft has no context; the scheduler cuts drafts to what fits.
        """
        self._runner.effective_drafter_max_model_len = self._runner.max_model_len + draft_tokens

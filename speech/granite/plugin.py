"""Tells vLLM about our Granite Speech model, in every process that vLLM starts, and ends those in time.

vLLM calls ``register`` through the ``vllm.general_plugins`` entry point (see pyproject.toml) before it
looks a model up, in its engine and worker processes too. Models are named by import path, so that
nothing heavy is imported here.
"""

import multiprocessing
import os
import threading


def register() -> None:
    """Puts our subclasses in place of vLLM's Granite Speech models, and watches the parent process."""
    exit_with_parent()
    from vllm import ModelRegistry

    ModelRegistry.register_model(
        "GraniteSpeechForConditionalGeneration", "speech.granite.model:BatchInvariantGraniteSpeech"
    )
    ModelRegistry.register_model(
        "GraniteSpeechPlusForConditionalGeneration", "speech.granite.model:BatchInvariantGraniteSpeechPlus"
    )


def exit_with_parent() -> None:
    """Ends this process as soon as the one that started it has ended, however that came.

    vLLM's engine core waits for requests and never learns that nobody is left to send any. After a
    SIGKILL of the actor that holds it, or of the whole job, it would keep its memory, and its GPU, for
    ever. A process that ``multiprocessing`` did not start has nothing to watch: it is the user's own.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True, name="parent-watch").start()


def _follow(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()  # the end of a pipe, which the kernel closes
    os._exit(1)  # at once: what this process would clean up, it would send to the dead

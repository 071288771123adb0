"""Tells vLLM about our Granite Speech model, in every process that vLLM starts.

vLLM calls ``register`` through the ``vllm.general_plugins`` entry point (see pyproject.toml) before it
looks a model up, in its engine and worker processes too. Models are named by import path, so that
nothing heavy is imported here.
"""


def register() -> None:
    """Puts our subclasses in place of vLLM's Granite Speech models."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("GraniteSpeechForConditionalGeneration", "speech.granite.model:ExactGraniteSpeech")
    ModelRegistry.register_model(
        "GraniteSpeechPlusForConditionalGeneration", "speech.granite.model:ExactGraniteSpeechPlus"
    )

"""A model's checkpoint: which family it belongs to, and whether a folder, the hub's cache or the hub has it.

Both are checked before a run starts: an engine that cannot load its model fails minutes later, in a process of its
own, with a traceback of many screens. The hub's own refusals (private, gated, unknown) are found by one small request;
none is made for a model that is on this machine already.
"""

import json
import re
from pathlib import Path
from typing import Any

from speech.errors import UsageError
from speech.models.families import (
    GRANITE_4_0,
    GRANITE_4_1,
    GRANITE_4_1_PLUS,
    GRANITE_CTC,
    GRANITE_TURBO_CTC,
    PARAKEET_CTC,
    PARAKEET_TDT,
    PARAKEET_TDT_V3,
    WHISPER,
    WHISPER_ENGLISH,
    EncoderOnly,
    Family,
    Granite,
    without_ctc,
)
from speech.models.gguf import GgufFolder

TIMEOUT_S = 10.0
_OR_FOLDER = "or give --model the folder of a checkpoint"


def check_available(model: str) -> None:
    """Returns if an engine on this machine can load the model.

    Args:
        model: hub id, or folder of a checkpoint; of a folder, ``family_of`` reads the config.

    Raises:
        UsageError: ``unknown_model``, ``forbidden``, ``no_hub``; ``bad_engine`` if the hub's client, on which
            every engine depends, is not installed.
    """
    if Path(model).is_dir():
        return
    try:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise UsageError("bad_engine", f"no engine is installed here ({error.name} is missing): make setup") from error
    try:
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            return
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise UsageError("unknown_model", f"{model!r} is no folder here and no hub id") from error
    except OfflineModeIsEnabled as error:
        raise UsageError(
            "no_hub",
            f"{model} is not on this machine, and HF_HUB_OFFLINE forbids to download it: unset that, {_OR_FOLDER}",
        ) from error
    except GatedRepoError as error:
        raise UsageError(
            "forbidden", f"{model} is gated: accept its terms on {constants.ENDPOINT}, and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            "unknown_model",
            f"{model} is no folder here, and {constants.ENDPOINT} has no such model: correct the name, "
            "or set HF_TOKEN if it is private",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UsageError(
            "no_hub", f"{constants.ENDPOINT} answers {status} to a request for {model}: try later"
        ) from error
    except Exception as error:  # of the hub's HTTP client, which differs from version to version
        raise UsageError(
            "no_hub",
            f"{model} is not on this machine, and {constants.ENDPOINT} cannot be reached ({error}): check the network "
            f"(HTTPS_PROXY, HF_ENDPOINT), {_OR_FOLDER}",
        ) from error


def family_of(model: str, engine: str = "vllm") -> Family:
    """The family of a model as an engine runs it, from its config.json if ``model`` is a folder, else from its hub id.

    Granite 4.0 and 4.1 have the same model_type and differ by name; without "4.1" in the name it is 4.0. The encoder
    engine runs the CTC head of any of them. For GGUF files, in a folder or in a server, the name tells all.

    Raises:
        UsageError: ``unknown_model``, or ``bad_engine`` where the engine cannot run it.
    """
    if engine == "llamacpp":
        folder = GgufFolder(model)
        folder.check()
        return without_ctc(_granite_named(folder.name))
    if engine == "http":
        if not {"granite", "speech"} <= set(re.findall("[a-z]+", model.lower())):
            raise UsageError(
                "unknown_model",
                f"the http engine has the prompts of Granite Speech alone, and {model!r} is not named as one: "
                "give --model its name in the server, as granite-speech:1b",
            )
        return without_ctc(_granite_named(model))
    family = _family(model)
    if engine == "encoder" and isinstance(family, Granite):
        return GRANITE_CTC
    if (engine == "encoder") != isinstance(family, EncoderOnly):
        fix = "an encoder alone: give --engine encoder"
        if engine == "encoder":
            fix = "no encoder that transcribes by itself: give --engine vllm or transformers"
        raise UsageError("bad_engine", f"the {engine} engine cannot run {model}: {family.name} is {fix}")
    return family


def _granite_named(name: str) -> Granite:
    """The family of a Granite Speech of which only the name is known."""
    if "plus" in name:
        return GRANITE_4_1_PLUS
    return GRANITE_4_1 if "4.1" in name else GRANITE_4_0


def _family(model: str) -> Family:
    config = _config(model)
    if config is None:
        name, model_type, english_only = model, _model_type_of_hub_id(model.lower()), model.endswith(".en")
        multilingual = model.endswith("-v3")
    else:
        name, model_type = f"{model} {config.get('_name_or_path', '')}", config.get("model_type", "")
        english_only = config.get("vocab_size") == 51864  # Whisper's multilingual vocabulary has 51865 or more
        multilingual = config.get("vocab_size", 0) > 8000  # Parakeet's: 1,025 in English models, 8,193 in v3
    if model_type == "granite_speech":
        return GRANITE_4_1 if "4.1" in name else GRANITE_4_0
    if model_type == "whisper":
        return WHISPER_ENGLISH if english_only else WHISPER
    if model_type == "parakeet_tdt":
        return PARAKEET_TDT_V3 if multilingual else PARAKEET_TDT
    for family in (GRANITE_4_1_PLUS, GRANITE_TURBO_CTC, PARAKEET_CTC):
        if model_type == family.model_type:
            return family
    raise UsageError(
        "unknown_model",
        f"{model!r} is neither Granite Speech (4.0, 4.1, 4.1 plus, 5.0 TurboCTC), Parakeet (CTC, TDT) nor Whisper"
        + (f" (model_type {model_type!r})" if model_type else "")
        + "; give a hub id or the folder of a checkpoint",
    )


def _config(model: str) -> dict[str, Any] | None:
    """The config.json of a checkpoint's folder; None where ``model`` is a hub id."""
    config_file = Path(model) / "config.json"
    if not Path(model).is_dir():
        return None
    if not config_file.is_file() and any(Path(model).glob("*.gguf")):
        raise UsageError("bad_engine", f"{model} has GGUF files, which another engine runs: give --engine llamacpp")
    if not config_file.is_file():
        raise UsageError("unknown_model", f"{model} has no config.json: give the folder of a Hugging Face checkpoint")
    try:
        config: dict[str, Any] = json.loads(config_file.read_text())
    except ValueError as error:
        raise UsageError("unknown_model", f"{config_file} is not JSON ({error}); copy the checkpoint again") from error
    return config


def _model_type_of_hub_id(name: str) -> str:
    if "whisper" in name:
        return "whisper"
    if "parakeet" in name:
        return "parakeet_ctc" if "parakeet-ctc" in name else "parakeet_tdt" if "parakeet-tdt-" in name else ""
    # Granite's non-autoregressive models have another architecture, which no engine here supports.
    if "granite" not in name or "speech" not in name or name.endswith("-nar"):
        return ""
    if "turboctc" in name:
        return "granite_speech5_ctc"
    return "granite_speech_plus" if name.endswith("-plus") else "granite_speech"

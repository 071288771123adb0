"""Whether a model can be had: from a folder, from the hub's cache on this machine, or from the hub.

Asked before a run starts, for an engine that cannot load its model says so minutes later, from a
process of its own, in a traceback of many screens. It is one small request, and none for a model that
is here already. What the hub itself says of a model (private, gated, unknown) is found too.
"""

from pathlib import Path

from speech.errors import UsageError

TIMEOUT_S = 10.0
_INSTEAD = "or give --model the folder of a checkpoint"


def check_model(model: str) -> None:
    """Returns if an engine on this machine can load the model.

    Args:
        model: hub id, or folder of a checkpoint; what is in a folder is ``speech.models``' matter.

    Raises:
        UsageError: ``unknown_model``, ``forbidden``, ``no_hub``; ``bad_engine`` if the package that asks
            the hub, which comes with every engine, is not installed.
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
            f"{model} is not on this machine, and HF_HUB_OFFLINE keeps it from being fetched: unset that, {_INSTEAD}",
        ) from error
    except GatedRepoError as error:
        raise UsageError(
            "forbidden", f"{model} is gated: accept its terms on {constants.ENDPOINT}, and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            "unknown_model",
            f"{model} is no folder here, and {constants.ENDPOINT} has no such model: mend the name, "
            "or set HF_TOKEN if it is private",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UsageError(
            "no_hub", f"{constants.ENDPOINT} answers {status} when asked for {model}: try later"
        ) from error
    except Exception as error:  # of the hub's HTTP client, which has changed from version to version
        raise UsageError(
            "no_hub",
            f"{model} is not on this machine, and {constants.ENDPOINT} cannot be reached ({error}): mend the network "
            f"(HTTPS_PROXY, HF_ENDPOINT), {_INSTEAD}",
        ) from error

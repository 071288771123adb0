"""All checks of model, engine settings and options that are possible before anything starts.

Job and endpoint call ``preflight`` first: an engine that cannot load its model, or does not have the speculation asked
for, would fail minutes later, in another process.
"""

from collections.abc import Sequence

from speech.engines.base import URL_KEY_VARIABLE, EngineConfig
from speech.engines.http import connect
from speech.engines.speculation import method_for
from speech.errors import RequestError, UsageError
from speech.model_rules import ModelRule, choose_model
from speech.models.checkpoint import check_available, family_of
from speech.models.families import Family
from speech.recording import Options

OWN_ARITHMETIC = ("llamacpp", "http")  # engines that --dtype does not reach


def preflight(engine: EngineConfig, options: Options | None = None, *, loads_here: bool) -> Family:
    """Checks an engine's settings, and the options that recordings have by default.

    Args:
        engine: settings of the engine.
        options: defaults of all recordings; None if there are none.
        loads_here: whether an engine will load the model on this machine. A cluster's machines have caches and
            networks of their own, so that the checkpoint cannot be checked from here.

    Returns:
        The model's family.

    Raises:
        UsageError: ``unknown_model``, ``bad_option``, ``no_hub``, ``forbidden``, ``bad_engine``, or a code of
            ``Family.check``.
    """
    family = _check_settings(engine)
    if options is not None:
        try:
            family.check(options)
        except RequestError as error:
            raise UsageError(error.code, error.message) from error
    if loads_here:
        _check_model_here(engine)
    return family


def preflight_models(rules: Sequence[ModelRule], options: Options, *, loads_here: bool) -> None:
    """The checks of ``preflight`` for each model; one of them must have the options that recordings have by default.

    Raises:
        UsageError: as of ``preflight``; ``bad_option`` for a rule with languages that its model does not have.
    """
    for rule in rules:
        family = _check_settings(rule)
        if unknown := sorted(set(rule.languages) - family.languages):
            raise UsageError(
                "bad_option",
                f"in 'models', {rule.model} is to take {', '.join(unknown)}, which {family.name} does not transcribe; "
                f"it has {', '.join(sorted(family.languages))}",
            )
    try:
        choose_model([rule.model_copy(update={"where": {}}) for rule in rules], options, {})
    except RequestError as error:
        raise UsageError(error.code, error.message) from error
    if loads_here:
        for rule in rules:
            _check_model_here(rule)


def _check_settings(engine: EngineConfig) -> Family:
    if (engine.engine == "http") != (engine.url is not None):
        raise UsageError("bad_option", "--engine http and --url, the address of its server, go together")
    if engine.url_key and not (engine.url_key.isascii() and engine.url_key.isprintable()):
        raise UsageError("bad_option", f"{URL_KEY_VARIABLE} holds characters that no API key has: set it again")
    if engine.engine in OWN_ARITHMETIC and engine.dtype != "auto":
        raise UsageError(
            "bad_option", f"with --engine {engine.engine} the arithmetic is that of the GGUF files: leave out --dtype"
        )
    family = family_of(engine.model, engine.engine)
    method_for(engine.speculation, family, engine.engine)
    return family


def _check_model_here(engine: EngineConfig) -> None:
    if engine.engine == "http":
        connect(engine)
    else:
        check_available(engine.model)

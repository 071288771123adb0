"""All checks of model, engine settings and options that are possible before anything starts.

Job and endpoint call ``preflight`` first: an engine that cannot load its model, or does not have the speculation asked
for, would fail minutes later, in another process. ``check_request`` alone checks a recording's options against the
model: the job calls it in its Listener, before the audio is opened; the endpoint for each request.
"""

from speech.engines.base import EngineConfig
from speech.engines.speculation import Speculation, check_speculation, method_for
from speech.errors import RequestError, UsageError
from speech.models.checkpoint import check_available, family_of
from speech.models.families import Family
from speech.recording import Options


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
            ``check_request``.
    """
    family = family_of(engine.model)
    method_for(engine.speculation, family, engine.engine)
    if options is not None:
        try:
            check_request(family, engine.speculation, options)
        except RequestError as error:
            raise UsageError(error.code, error.message) from error
    if loads_here:
        check_available(engine.model)
    return family


def check_request(family: Family, speculation: Speculation, options: Options) -> None:
    """Checks one recording's options against the model and the engine's speculation.

    Raises:
        RequestError: ``unsupported_language``, ``unsupported_task`` or ``unsupported_option``.
    """
    family.check(options)
    check_speculation(speculation, options)

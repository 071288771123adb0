"""What can be checked of a model and of what is asked of it, before anything starts.

Both faces call ``preflight`` first: an engine that cannot load its model, or cannot draft as asked, would say so
minutes later, from another process. ``check_request`` is the one place where a recording's options are held
against the model: the bulk job calls it in its Listener, before the audio is opened; the endpoint with each request.
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
        engine: how the engine will be started.
        options: defaults of all recordings; None where there are none.
        loads_here: whether an engine will load the model on this machine. A cluster's machines have caches and
            networks of their own, so that nothing can be said of the checkpoint from here.

    Returns:
        The model's family.

    Raises:
        UsageError: ``unknown_model``, ``bad_option``, ``no_hub``, ``forbidden``, ``bad_engine``, or a code of
            ``check_request``.
    """
    family = family_of(engine.model)
    method_for(engine.speculation, family, engine.engine, engine.draft_model)
    if options is not None:
        try:
            check_request(family, engine.speculation, options)
        except RequestError as error:
            raise UsageError(error.code, error.message) from error
    if loads_here:
        check_available(engine.model)
    return family


def check_request(family: Family, speculation: Speculation, options: Options) -> None:
    """Checks one recording's options against the model and the way in which its engine drafts.

    Raises:
        RequestError: ``unsupported_language``, ``unsupported_task`` or ``unsupported_option``.
    """
    family.check(options)
    check_speculation(speculation, options)

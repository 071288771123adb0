"""Settings that both faces compose: flat for the user, in groups for the code that reads them.

A flag, a line of YAML and an argument of a Serve config each name one setting. Its field, with default, description and
checks, stands in one place: in the face's own model, or in a group that faces share (``EngineConfig``, ``Options``,
``ClusterConfig``).
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from speech.engines.base import EngineConfig
from speech.errors import RequestError, UsageError, first_error
from speech.model_rules import ModelRule


class ClusterConfig(BaseModel):
    """Where the work runs, and on how many actors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    address: str | None = Field(None, description="Ray cluster to run on, as ray://… or auto (default: this machine)")
    listeners: int | None = Field(
        None, ge=1, description="CPU actors that decode and find speech, at most (default: by the machine)"
    )
    engines: int | None = Field(
        None, ge=1, description="engine actors, at most (default: one a GPU; without a GPU, one a node)"
    )
    gpus_per_engine: float | None = Field(
        None, ge=0, le=1, description="share of a GPU for an engine; 0: on CPUs (default: 1 where there are GPUs)"
    )
    engine_resource: str | None = Field(
        None, min_length=1, description="custom resource of Ray of which an engine takes one: engines run where it is"
    )


class Settings(BaseModel):
    """Base of a face's settings. A field that is itself a model is a group, whose fields are given flat.

    ``Job(manifest="calls.jsonl", output="out", dtype="float32")`` has ``job.engine_config.dtype == "float32"``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def groups(cls) -> dict[str, type[BaseModel]]:
        """The groups, by the names of their fields."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        """Every setting by its flat name: what flags and their help texts are made from."""
        groups = cls.groups()
        own = {name: field for name, field in cls.model_fields.items() if name not in groups}
        return own | {name: field for group in groups.values() for name, field in group.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _group(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        flat = dict(given)
        nested: dict[str, Any] = {name: flat.pop(name) for name in cls.groups() if name in flat}
        for name, group in cls.groups().items():
            if inner := {key: flat.pop(key) for key in group.model_fields if key in flat}:
                nested[name] = inner
        return flat | nested

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Builds the settings from one flat mapping, as flags and YAML have it.

        Raises:
            UsageError: ``bad_option`` naming the option, or a code of ``Options``.
        """
        known = cls.flat_fields().keys()
        if unknown := sorted(settings.keys() - known):
            raise UsageError("bad_option", "; ".join(_no_such_option(name, known) for name in unknown))
        try:
            return cls(**settings)
        except RequestError as error:
            raise UsageError(error.code, error.message) from error
        except ValidationError as error:
            raise UsageError("bad_option", first_error(error, _option)) from error


class ModelSettings(Settings):
    """Settings of a face that runs one model, or several, by rules.

    The settings of the engine beside ``models`` are the defaults of its entries.
    """

    engine_config: EngineConfig = EngineConfig()
    models: tuple[ModelRule, ...] = Field(
        (), description="in the YAML alone, in place of model: entries with a model and the rows that it takes"
    )

    @model_validator(mode="before")
    @classmethod
    def _inherit_engine_settings(cls, given: Any) -> Any:
        entries = given.get("models") if isinstance(given, Mapping) else None
        if not isinstance(entries, list | tuple) or not entries:
            return given
        if "model" in given:
            raise UsageError("bad_option", "give --model, or 'models' in the YAML of --config, not both")
        inherited = {name: given[name] for name in EngineConfig.model_fields if name in given}
        entries = [{**inherited, **each} if isinstance(each, Mapping) else each for each in entries]
        for number, entry in enumerate(entries, 1):
            if isinstance(entry, Mapping) and "model" not in entry:
                raise UsageError("bad_option", f"entry {number} of 'models' names no model: give it 'model: ID'")
        return {**given, "models": entries}

    @property
    def rules(self) -> tuple[ModelRule, ...]:
        """The models, in order of preference: one that takes everything, or those of ``models``."""
        # What the user has not set stays so: the GPU decides it (cluster.gpus.fit_engine).
        return self.models or (ModelRule(**self.engine_config.model_dump(exclude_unset=True)),)


def _option(path: str) -> str:
    """A setting as the command line names it, from its path in the groups."""
    group, _, name = path.rpartition(".")
    if group.startswith("models"):
        return f"in 'models', {name}"
    return "the manifest" if name == "manifest" else f"--{name.replace('_', '-')}"


def _no_such_option(name: str, known: Collection[str]) -> str:
    similar = difflib.get_close_matches(name, known, 1)
    return f"there is no option {_option(name)}: " + (
        f"did you mean {_option(similar[0])}?" if similar else "--help lists all"
    )

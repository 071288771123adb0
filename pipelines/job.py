"""What one run is told: the settings of the command line, the YAML of --config, and nothing else."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from speech.engines.base import EngineConfig
from speech.engines.speculation import check_speculation
from speech.errors import RequestError, UsageError, bad_option
from speech.recording import Options


class Job(BaseModel):
    """Everything that one run of ``rayscribe transcribe`` is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="JSONL, CSV or Parquet, or a folder or glob of audio files")
    output: str = Field(description="folder for the transcripts, on a disk or in a bucket")
    engine_config: EngineConfig = EngineConfig()
    options: Options = Options()
    listeners: int | None = Field(None, ge=1, description="CPU actors at most (default: by the machine)")
    engines: int | None = Field(None, ge=1, description="engine actors (default: one a GPU; without one, one)")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec's options for object storage, as JSON"
    )
    address: str | None = Field(None, description="Ray cluster to run on, as ray://… or auto (default: this machine)")

    allow_changes: bool = Field(
        False, description="add to an output whose transcripts were made with another model or other options"
    )
    listen_timeout_s: float = Field(
        1800.0, gt=0, description="a recording that takes longer to open and decode, in seconds, is given up"
    )
    clip_timeout_s: float = Field(
        600.0, gt=0, description="an engine that takes longer over one clip, in seconds, is started anew"
    )

    @model_validator(mode="after")
    def _check_speculation(self) -> Self:
        check_speculation(self.engine_config.speculation, self.options)
        return self

    def text_settings(self) -> dict[str, Any]:
        """The settings that another transcript would come of: those of the model and of the recordings."""
        named = {"model", "engine", "dtype"}
        if self.engine_config.speculation == "ctc-accept":  # every other way of drafting leaves the text alone
            named |= {"speculation", "accept_entropy", "accept_probability"}
        return self.engine_config.model_dump(mode="json", include=named) | self.options.model_dump(mode="json")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Builds a job from one flat mapping, as flags and YAML have it.

        Raises:
            UsageError: ``bad_option`` naming the option, or a code of Options.
        """
        known = SETTINGS.keys()
        if unknown := sorted(settings.keys() - known):
            raise UsageError(
                "bad_option", f"there is no option {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )
        inner = {
            name: {key: settings[key] for key in kind.model_fields if key in settings}
            for name, kind in (("engine_config", EngineConfig), ("options", Options))
        }
        outer = {key: settings[key] for key in cls.model_fields if key in settings}
        try:
            return cls(**outer, **inner)
        except RequestError as error:
            raise UsageError(error.code, error.message) from error
        except ValidationError as error:
            raise bad_option(error) from error


# Every setting by its flat name: the one list that flags, YAML and their help texts are made from.
SETTINGS = {
    **{name: field for name, field in Job.model_fields.items() if name not in ("engine_config", "options")},
    **EngineConfig.model_fields,
    **Options.model_fields,
}

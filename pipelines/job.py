"""The settings of one run: those of the command line and of the YAML of --config."""

from typing import Any

from pydantic import Field, field_validator

from cluster.settings import ClusterConfig, ModelSettings
from speech.recording import Options, as_list


class Job(ModelSettings):
    """Everything that configures one run of ``rayscribe transcribe``."""

    manifest: str = Field(
        min_length=1, description="JSONL, CSV or Parquet; or a folder, prefix or glob of such files, or of audio"
    )
    output: str = Field(min_length=1, description="folder for the transcripts, on a disk or in a bucket")
    options: Options = Options()
    cluster: ClusterConfig = ClusterConfig()
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="fsspec's options for object storage, as JSON or as @FILE; "
        "default: the environment variable RAYSCRIBE_STORAGE_OPTIONS, in the same forms",
    )
    allow_scheme: tuple[str, ...] = Field(
        (), description="schemes that rows may name besides s3, gs, az, https and file, separated by commas"
    )
    allow_private_hosts: bool = Field(False, description="let rows name HTTP hosts with a private address")
    allow_changes: bool = Field(
        False, description="add to an output whose transcripts were made with another model or other options"
    )
    accept_failed: bool = Field(
        False, description="end with exit code 0, not 3, where the run has finished and some recordings failed"
    )
    max_failed_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="stop the run when storage or the engine fails for more than this share of the last recordings",
    )
    listen_timeout_s: float = Field(
        1800.0, gt=0, description="a recording that takes longer to open and decode, in seconds, fails as poison"
    )

    lost_wait_s: float = Field(
        120.0,
        ge=0,
        description="seconds that recordings on a lost node wait for another in its place, when all others are done; "
        "then the nodes that are left transcribe them",
    )

    @field_validator("allow_scheme", mode="before")
    @classmethod
    def _parse_schemes(cls, value: Any) -> Any:
        names = as_list(value)
        return [str(name).lower() for name in names] if isinstance(names, list) else names

    def text_settings(self) -> dict[str, Any]:
        """The settings that the text of a transcript depends on: those of the models and of the recordings.

        Given to ``from_settings``, they make a job with these settings.
        """
        named = {"model", "engine", "dtype"}  # drafts leave the text as it is
        models = self.engine_config.model_dump(mode="json", include=named)
        if self.models:
            named |= {"url", "languages", "where"}
            models = {"models": [rule.model_dump(mode="json", include=named) for rule in self.models]}
        return models | self.options.model_dump(mode="json")

"""The endpoint's settings: the flags of ``rayscribe serve``, or the ``args`` of a Serve config."""

import ipaddress
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from cluster.settings import ClusterConfig, ModelSettings
from speech.errors import UsageError
from speech.model_rules import ModelRule

MIB = 1 << 20


class ServedModel(ModelRule):
    """One of the models of an endpoint. A request names its model, so that its rules for rows have no effect."""

    names: tuple[str, ...] = Field((), description="further names that the model answers to")
    engines: int | None = Field(None, ge=1, description="engine replicas at most (default: all that others leave)")
    min_engines: int | None = Field(None, ge=0, description="engine replicas at least (default: a part of --engines)")

    @field_validator("names", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return _listed(value)


class ServeSettings(ModelSettings):
    """Everything that configures one endpoint."""

    models: tuple[ServedModel, ...] = Field(
        (), description="in the YAML alone, in place of model: entries with a model, its names and its engines"
    )
    cluster: ClusterConfig = ClusterConfig()

    host: str = Field("127.0.0.1", description="address to listen on; beyond this machine it needs --api-keys")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    api_keys: str | None = Field(
        None, description="file of keys that clients may use, one a line, each as it is or as sha256:HEX"
    )
    names: tuple[str, ...] = Field(
        (), description="further names that the model answers to, separated by commas, as whisper-1"
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="origins whose web pages may use the endpoint, separated by commas, as https://calls.example.org; "
        "* for all, which needs --api-keys",
    )
    max_upload_mib: int = Field(512, ge=1, description="largest upload, in MiB")
    max_uploads_mib: int = Field(
        4096, ge=1, description="all uploads in flight together, in MiB of disk; one more is answered 503"
    )
    max_audio_s: float = Field(8 * 3600.0, gt=0, description="longest recording, in seconds")
    max_requests: int = Field(
        64, ge=1, description="requests in flight, uploads included; further ones are answered 503"
    )
    max_requests_per_key: int | None = Field(
        None, ge=1, description="of these, requests of one API key; one more is answered 429 (default: half)"
    )
    max_live_sessions: int = Field(32, ge=1, description="sessions of live audio at once; one more is refused")
    max_live_sessions_per_key: int | None = Field(
        None, ge=1, description="of these, sessions of one API key (default: half)"
    )
    max_session_s: float = Field(4 * 3600.0, gt=0, description="longest session of live audio, in seconds")
    upload_timeout_s: float = Field(900.0, gt=0, description="an upload that takes longer, in seconds, is refused")
    listen_timeout_s: float = Field(
        600.0, gt=0, description="longest time, in seconds, for decoding one upload; small files have less"
    )
    drain_s: float = Field(900.0, ge=0, description="seconds that a stopping replica has to finish its requests")
    min_engines: int | None = Field(
        None, ge=0, description="engine replicas at least; 0 stops all when there are no requests (default: --engines)"
    )
    queued_audio_s: float = Field(
        600.0, gt=0, description="seconds of queued audio an engine, above which another is started"
    )
    engine_idle_s: float = Field(
        600.0, ge=0, description="seconds after which an idle engine beyond --min-engines is stopped"
    )
    metrics_port: int = Field(
        9464, ge=1, le=65535, description="port of the metrics, for Prometheus, where Ray is started here"
    )

    @field_validator("names", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return _listed(value)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if self.models and self.names:
            raise UsageError("bad_option", "--names are of one model: give each entry of 'models' its 'names'")
        names = Counter(name for rule in self.rules for name in dict.fromkeys((rule.model, *rule.names)))
        if repeated := [name for name, count in names.items() if count > 1]:
            raise UsageError(
                "bad_option", f"two entries of 'models' answer to {repeated[0]!r}: give each its own names"
            )
        return self

    @property
    def rules(self) -> tuple[ServedModel, ...]:
        return self.models or (ServedModel(**self.engine_config.model_dump(exclude_unset=True), names=self.names),)

    @property
    def clip_s(self) -> float:
        """The longest clip, in seconds, that each of the models takes."""
        return min(rule.family.clip_s for rule in self.rules)

    @property
    def max_upload_bytes(self) -> int:
        return self.max_upload_mib * MIB

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """As of ``Settings``.

        Raises:
            UsageError: ``no_api_keys`` for an endpoint that anybody could use.
        """
        built = super().from_settings(settings)
        if built.api_keys is None and not is_loopback(built.host):
            raise UsageError(
                "no_api_keys", f"anyone who can reach {built.host} could use the endpoint: give --api-keys FILE"
            )
        if built.api_keys is None and "*" in built.cors_origins:
            raise UsageError(
                "no_api_keys", "with --cors-origins '*' any web page could use the endpoint: give --api-keys FILE"
            )
        return built


def _listed(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


def is_loopback(host: str) -> bool:
    """Whether an address, or the name ``localhost``, is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

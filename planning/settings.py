"""The settings of ``rayscribe plan``."""

from dataclasses import replace

from pydantic import Field, field_validator

from cluster.gpus import MAX_CONCURRENT_CLIPS, MEMORY_GIB, fit_engine
from cluster.nodes import LISTENERS_PER_GPU_ENGINE
from cluster.settings import Settings
from planning.rates import Rate, Rates, default_rates, load_rates
from planning.scenario import Faults, Machines, Workload
from speech.engines.base import EngineConfig


class PlanSettings(Settings):
    """What is to be planned. Rates come from the flags, else from --rates, else from what is known of the GPU."""

    hours: float = Field(gt=0, description="hours of audio")
    call_s: float = Field(300.0, gt=0, description="mean length of a recording, in seconds")
    speech_share: float = Field(
        0.5,
        gt=0,
        description="speech in the audio, summed over channels: 1 for a stereo call in which one always speaks",
    )
    mb_per_hour: float = Field(57.6, gt=0, description="of the files, by hour of audio (default: G.711, two channels)")
    gpu: str = Field("A100", description="kind of GPU, as Ray names it: T4, L4, A100, H100, H200")
    gpus: int = Field(1, ge=1, description="GPUs, one engine each")
    gpus_per_node: int = Field(8, ge=1, description="GPUs of a node")
    cpus: int | None = Field(None, ge=1, description="cores for Listeners (default: eight a GPU)")
    cpus_per_node: int = Field(16, ge=1, description="cores of a node of Listeners")
    price: float = Field(0.0, ge=0, description="of a GPU for an hour, in any currency")
    cpu_price: float = Field(0.0, ge=0, description="of a core for an hour")
    storage_gbit: float = Field(0.0, ge=0, description="what the object storage delivers, in Gbit/s (default: enough)")
    interruptions_per_day: float = Field(0.0, ge=0, description="of each node, by failure or eviction")
    replacement_s: float = Field(300.0, ge=0, description="seconds until a lost node is replaced")
    straggler_share: float = Field(
        0.0, ge=0, le=1, description="share of recordings that take ten times as long to decode"
    )
    throttled_share: float = Field(0.0, ge=0, lt=1, description="share of requests that the storage refuses at first")
    listener_rtfx: float | None = Field(None, gt=0, description="seconds of audio a second that a Listener hears")
    engine_rtfx: float | None = Field(None, gt=0, description="seconds of speech a second of an engine")
    rates: str | None = Field(None, description="JSON of measured rates; written with --calibrate, else read")
    calibrate: str | None = Field(
        None, description="a manifest, some of whose recordings are transcribed here for a minute, to measure the rates"
    )
    engine_config: EngineConfig = EngineConfig()

    @field_validator("gpu")
    @classmethod
    def _as_ray_names_it(cls, name: str) -> str:
        return next((kind for kind in MEMORY_GIB if kind.lower() == name.lower()), name)

    def workload(self) -> Workload:
        recordings = max(1, round(self.hours * 3600 / self.call_s))
        return Workload(recordings, self.call_s, self.speech_share, mb_per_hour=self.mb_per_hour)

    def machines(self) -> Machines:
        fitted = fit_engine(self.engine_config, 1, MEMORY_GIB.get(self.gpu))
        return Machines(
            engines=self.gpus,
            listeners=self.cpus or LISTENERS_PER_GPU_ENGINE * self.gpus,
            engines_per_node=self.gpus_per_node,
            listeners_per_node=self.cpus_per_node,
            concurrent_clips=min(MAX_CONCURRENT_CLIPS, fitted.concurrent_clips),
            gpu_price=self.price,
            cpu_price=self.cpu_price,
            storage_gbit_s=self.storage_gbit,
        )

    def faults(self) -> Faults:
        return Faults(
            interruptions_per_day=self.interruptions_per_day,
            replacement_s=self.replacement_s,
            straggler_share=self.straggler_share,
            throttled_share=self.throttled_share,
        )

    def known_rates(self, measured: Rates | None = None) -> Rates:
        """The rates to plan with.

        Raises:
            UsageError: ``bad_rates``.
        """
        written = self.rates if not self.calibrate else None
        rates = measured or (load_rates(written) if written else default_rates(self.gpu))
        given = {name: getattr(self, name) for name in ("listener_rtfx", "engine_rtfx")}
        return replace(rates, **{name: Rate(value, "given") for name, value in given.items() if value is not None})

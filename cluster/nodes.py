"""What a machine gives: how many Listeners and engines run, and on how many cores each.

One place decides for a laptop and for a cluster, so that nobody has to answer twenty questions: one
engine a GPU, or one engine for the whole machine where there is none; Listeners on the cores that
remain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Ray Data's own small tasks (repartition, write) need slots beside the actors. On a machine of few
# cores they are logical: the tasks are short, and without them a plan can wait for itself for ever.
SPARE_SLOTS = 4
# A GPU's engine keeps about this many cores busy with features, scheduling and detokenizing.
CORES_PER_GPU_ENGINE = 2


@dataclass(frozen=True)
class Layout:
    """How a job is laid out over the machines it has."""

    listeners: int  # at most; the pool grows to it as work waits
    engines: int
    gpus_per_engine: float
    cpus_per_engine: float  # as Ray counts them
    threads_per_engine: int | None  # for an engine on CPUs; None leaves it to the GPU build

    @property
    def engine_runtime_env(self) -> dict[str, dict[str, str]]:
        """Ray's ``runtime_env`` of an actor that holds an engine."""
        return {"env_vars": {"OMP_NUM_THREADS": str(self.threads_per_engine)}} if self.threads_per_engine else {}


def local_slots(cores: int) -> int:
    """Ray's ``num_cpus`` for a cluster of one machine: its cores, and the spare slots."""
    return cores + SPARE_SLOTS


def plan_layout(
    resources: Mapping[str, float], cores: int, listeners: int | None = None, engines: int | None = None
) -> Layout:
    """Lays a job out.

    Args:
        resources: what Ray has, as ``ray.cluster_resources()`` gives it.
        cores: true cores behind ``resources["CPU"]``.
        listeners: Listener actors at most, if the user says.
        engines: engines, if the user says.
    """
    gpus = int(resources.get("GPU", 0))
    if gpus:
        engines = engines or gpus
        free = cores - CORES_PER_GPU_ENGINE * engines
        return Layout(
            listeners=listeners or max(1, free),
            engines=engines,
            gpus_per_engine=min(1.0, gpus / engines),
            cpus_per_engine=1.0,
            threads_per_engine=None,
        )
    engines = engines or 1
    return Layout(
        # Without a GPU the engine is what takes time; a Listener keeps several engines' worth of it fed.
        listeners=listeners or max(1, cores // 4),
        engines=engines,
        gpus_per_engine=0.0,
        cpus_per_engine=1.0,
        threads_per_engine=max(1, cores // engines),
    )

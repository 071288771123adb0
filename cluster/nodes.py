"""The layout of a job: how many Listeners and engines run, and on how many cores each.

The defaults, for a laptop and for a cluster: one engine a GPU, or one engine for the whole machine where there is
none; Listeners on the remaining cores.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Ray Data's own tasks (repartition) need CPU slots beside the actors. On a machine of few cores these are only
# logical: the tasks are short, and without free slots the dataset would deadlock.
SPARE_SLOTS = 4
# An engine on a GPU keeps about this many cores busy with features, scheduling and detokenizing.
CORES_PER_GPU_ENGINE = 2


@dataclass(frozen=True)
class Layout:
    """The actors of a job and their resources."""

    listeners: int  # at most; the pool grows while blocks are queued
    engines: int
    gpus_per_engine: float
    cpus_per_engine: float  # as Ray counts them
    threads_per_engine: int | None  # for an engine on CPUs; None on GPUs

    @property
    def engine_runtime_env(self) -> dict[str, dict[str, str]]:
        """Ray's ``runtime_env`` of an actor that holds an engine."""
        if self.threads_per_engine is None:
            return {}
        # By default OpenMP's threads spin between the engine's kernels, on cores that Listeners share. Measured on two
        # cores: passive ones take a third of the CPU time for the same work.
        return {"env_vars": {"OMP_NUM_THREADS": str(self.threads_per_engine), "OMP_WAIT_POLICY": "PASSIVE"}}


def local_slots(cores: int) -> int:
    """Ray's ``num_cpus`` for a cluster of one machine: its cores, and the spare slots."""
    return cores + SPARE_SLOTS


def plan_layout(
    resources: Mapping[str, float], cores: int, listeners: int | None = None, engines: int | None = None
) -> Layout:
    """Plans the layout of a job.

    Args:
        resources: as ``ray.cluster_resources()`` returns them.
        cores: physical cores; ``resources["CPU"]`` includes spare slots.
        listeners: maximum of Listener actors, if set.
        engines: number of engines, if set.
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
        # Without a GPU the engine is the bottleneck; one Listener supplies it.
        listeners=listeners or max(1, cores // 4),
        engines=engines,
        gpus_per_engine=0.0,
        cpus_per_engine=1.0,
        threads_per_engine=max(1, cores // engines),
    )

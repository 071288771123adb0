"""The layout of a job over the machines it has."""

from cluster.nodes import plan_layout


def test_one_engine_a_gpu_and_listeners_on_the_cores_that_remain() -> None:
    layout = plan_layout({"GPU": 8.0, "CPU": 128.0}, cores=128)
    assert (layout.engines, layout.gpus_per_engine) == (8, 1.0)
    assert layout.listeners == 128 - 2 * 8
    assert layout.threads_per_engine is None


def test_without_a_gpu_one_engine_takes_the_machine() -> None:
    layout = plan_layout({"CPU": 6.0}, cores=2)
    assert (layout.engines, layout.gpus_per_engine, layout.listeners) == (1, 0.0, 1)
    assert layout.threads_per_engine == 2


def test_the_user_decides() -> None:
    layout = plan_layout({"GPU": 2.0, "CPU": 8.0}, cores=8, listeners=3, engines=4)
    assert (layout.listeners, layout.engines, layout.gpus_per_engine) == (3, 4, 0.5)


def test_a_machine_of_few_cores_still_listens() -> None:
    assert plan_layout({"GPU": 4.0, "CPU": 4.0}, cores=4).listeners == 1

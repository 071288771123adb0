"""The job on a real cluster of several raylets: where its actors run."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.jobs import answers_in, make_calls, manifest_of
from tests.pipelines.raylets import (
    asked_file,
    decoded_file,
    flag_of,
    head_alone,
    nodes_there,
    place_listeners,
    placed,
    start_driver,
    transcribe_on,
)

CALLS = 40


@pytest.fixture(scope="module")
def address(needs_ray: None) -> Iterator[str]:
    """A head without work, two CPU nodes, one that plays a GPU node, one with a resource of its own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(num_cpus=0)
    cluster.add_node(num_cpus=2, labels={"name": "cpu-0"})
    cluster.add_node(num_cpus=2, labels={"name": "cpu-1"})
    cluster.add_node(num_cpus=4, num_gpus=1, labels={"name": "gpu", "ray.io/accelerator-type": "T4"})
    cluster.add_node(num_cpus=2, resources={"engine": 1}, labels={"name": "special"})
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    make_calls(tmp_path)
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": f"call-{n}"} for n in range(CALLS)]
    return manifest_of(tmp_path, *rows)


def test_engines_are_where_the_gpus_are_and_listeners_elsewhere(address: str, manifest: str, tmp_path: Path) -> None:
    placed = transcribe_on(address, manifest=manifest, output=str(tmp_path / "out"), listeners=4)
    assert placed.engines == {"gpu"}
    assert placed.listeners <= {"cpu-0", "cpu-1", "special"}
    answers = answers_in(tmp_path / "out")
    assert len(answers) == CALLS
    assert {answer["text"].split()[0] for answer in answers} == {"gpu"}


@pytest.mark.long
def test_engines_where_a_custom_resource_is(address: str, manifest: str, tmp_path: Path) -> None:
    placed = transcribe_on(
        address, manifest=manifest, output=str(tmp_path / "out"), engine_resource="engine", listeners=8
    )
    assert placed.engines == {"special"}
    assert "special" not in placed.listeners
    assert len(answers_in(tmp_path / "out")) == CALLS


def test_listeners_fill_nodes_without_engines_before_those_with(address: str) -> None:
    """There are six CPUs without a GPU."""
    assert "gpu" not in place_listeners(address, 6)
    assert place_listeners(address, 8).count("gpu") == 2


GPU = {"num_gpus": 1, "num_cpus": 4}
ENGINE_ALONE = {"num_gpus": 1, "num_cpus": 0}
T4 = {"ray.io/accelerator-type": "T4"}


def await_file(path: Path, driver: "subprocess.Popen[str]") -> None:
    """Returns when a run has made the file."""
    while not path.exists():
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)


@contextlib.contextmanager
def started_by_command(address: str, name: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A node with a GPU, by the command that Kubernetes' pods run."""
    labels = ",".join(f"{key}={value}" for key, value in {"name": name, **T4}.items())
    options = [f"--address={address}", "--num-cpus=0", "--num-gpus=1", f"--labels={labels}", "--block"]
    ray = Path(sys.executable).with_name("ray")
    process = subprocess.Popen([ray, "start", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def await_clip(driver: "subprocess.Popen[str]", output: str, recording: str = "") -> None:
    """Returns when an engine of the run has its first clip, of a recording whose id begins so."""
    asked = asked_file(flag_of(output))
    while not asked.exists() or not any(line.startswith(recording) for line in asked.read_text().splitlines()):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)


@pytest.mark.long
def test_a_job_waits_for_its_nodes_and_uses_one_that_comes_later(
    needs_ray: None, manifest: str, tmp_path: Path
) -> None:
    """The first engine answers only when that of the late node has had a clip."""
    with head_alone() as cluster:
        output = str(tmp_path / "out")
        driver = start_driver(cluster.address, "run_waiting", manifest=manifest, output=output, gpus_per_engine=1)
        assert driver.stderr is not None
        shown = ""
        while "waiting for a node with GPU for an engine and a node with CPUs for Listeners" not in shown:
            line = driver.stderr.readline()
            assert line, shown
            shown += line
        cluster.add_node(num_cpus=2, labels={"name": "cpu"})
        cluster.add_node(**GPU, labels={"name": "first", **T4})
        await_clip(driver, output)  # Ray could place the first engine on the late node otherwise
        cluster.add_node(**GPU, labels={"name": "late", **T4})
        ended = placed(driver, shown)
    assert ended.engines == {"first", "late"}
    answers = answers_in(tmp_path / "out")
    assert {answer["recording_id"] for answer in answers} == {f"call-{number}" for number in range(CALLS)}
    assert "late" in {answer["text"].split()[0] for answer in answers}


@pytest.mark.long
def test_a_node_that_comes_later_is_used_without_gpus(needs_ray: None, manifest: str, tmp_path: Path) -> None:
    """By an engine of its own: none starts beside the first, which answers only when the second has had a clip."""
    output = str(tmp_path / "out")
    with head_alone() as cluster:
        cluster.add_node(num_cpus=6, labels={"name": "first"})
        # Blocks so small that the first engine does not hold all of them.
        driver = start_driver(cluster.address, "run_waiting", manifest=manifest, output=output, listeners=2)
        await_file(asked_file(flag_of(output)), driver)
        cluster.add_node(num_cpus=6, labels={"name": "late"})
        ended = placed(driver)
    assert ended.engines == {"first", "late"}
    answers = answers_in(tmp_path / "out")
    assert sorted(answer["recording_id"] for answer in answers) == sorted(f"call-{number}" for number in range(CALLS))
    assert "late" in {answer["text"].split()[0] for answer in answers}


GRANITE, WHISPER = "ibm-granite/granite-4.0-1b-speech", "openai/whisper-small"


@pytest.mark.long
@pytest.mark.parametrize("gpus", [2, 1])
def test_models_share_a_node_that_comes_later(gpus: int, needs_ray: None, tmp_path: Path) -> None:
    """It goes to the model with more work left or, if there was one place only, to the one that has waited.

    No engine answers before that of the late node has had a clip.
    """
    make_calls(tmp_path)
    ids = [*(f"sv-{number}" for number in range(CALLS)), *(f"en-{number}" for number in range(10))]
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": each, "language": each[:2]} for each in ids]
    output = str(tmp_path / "out")
    models = [{"model": GRANITE, "languages": "en"}, {"model": WHISPER}]
    with head_alone() as cluster:
        cluster.add_node(num_cpus=6, labels={"name": "cpu"})
        cluster.add_node(num_gpus=gpus, num_cpus=4, labels={"name": "first", **T4})
        manifest = manifest_of(tmp_path, *rows)
        # Blocks so small that no engine holds all of its model.
        driver = start_driver(
            cluster.address, "run_waiting", manifest=manifest, output=output, models=models, listeners=4
        )
        for language in ("sv", "en")[:gpus]:
            await_clip(driver, output, language)
        assert gpus == 2 or "en-" not in asked_file(flag_of(output)).read_text()
        cluster.add_node(**GPU, labels={"name": "late", **T4})
        ended = placed(driver)
    assert ended.engines == {"first", "late"}
    answers = answers_in(tmp_path / "out")
    assert sorted(answer["recording_id"] for answer in answers) == sorted(ids)
    nodes: dict[str, set[str]] = {GRANITE: set(), WHISPER: set()}
    for answer in answers:
        assert answer["model"] == (GRANITE if answer["language"] == "en" else WHISPER)
        nodes[answer["model"]] |= {*answer["text"].split()}
    assert nodes[GRANITE] == ({"first"} if gpus == 2 else {"late"})
    assert nodes[WHISPER] >= ({"first", "late"} if gpus == 2 else {"first"})


@pytest.mark.long
def test_a_job_outlives_a_node_that_goes(needs_ray: None, manifest: str, tmp_path: Path) -> None:
    """It goes while the engine has the first clips, before anything is committed."""
    output = str(tmp_path / "out")
    with head_alone() as cluster:
        going, _ = (cluster.add_node(num_cpus=2, labels={"name": name}) for name in ("cpu-0", "cpu-1"))
        cluster.add_node(**GPU, labels={"name": "gpu", **T4})
        driver = start_driver(cluster.address, "run_waiting", manifest=manifest, output=output, listeners=4)
        await_clip(driver, output)
        cluster.remove_node(going)
        flag_of(output).touch()
        ended = placed(driver)
    assert ended.engines == {"gpu"}
    answers = answers_in(tmp_path / "out")
    assert sorted(answer["recording_id"] for answer in answers) == sorted(f"call-{number}" for number in range(CALLS))
    assert {answer["status"] for answer in answers} == {"ok"}


@pytest.mark.long
def test_others_transcribe_what_a_lost_engine_had(needs_ray: None, manifest: str, tmp_path: Path) -> None:
    """Ray starts the lost engine again, for which the other one makes room once it has no more work."""
    output = str(tmp_path / "out")
    settings = {"manifest": manifest, "output": output, "engines": 2, "listeners": 2}
    with head_alone() as cluster:
        cluster.add_node(num_cpus=4, labels={"name": "cpu"})
        cluster.add_node(**ENGINE_ALONE, labels={"name": "staying", **T4})
        going = cluster.add_node(**ENGINE_ALONE, labels={"name": "going", **T4})
        driver = start_driver(cluster.address, "run_hanging", **settings)
        await_file(asked_file(flag_of(output)), driver)
        cluster.remove_node(going, allow_graceful=False)
        ended = placed(driver)
    assert ended.engines == {"staying"}
    answers = answers_in(tmp_path / "out")
    assert sorted(answer["recording_id"] for answer in answers) == sorted(f"call-{number}" for number in range(CALLS))
    assert {answer["text"].split()[0] for answer in answers} == {"staying"}


@pytest.mark.long
def test_listeners_are_on_gpu_nodes_where_there_are_no_others(needs_ray: None, manifest: str, tmp_path: Path) -> None:
    with head_alone() as cluster:
        cluster.add_node(**GPU, labels={"name": "gpu", **T4})
        placed_at = transcribe_on(cluster.address, manifest=manifest, output=str(tmp_path / "out"))
    assert (placed_at.listeners, placed_at.engines) == ({"gpu"}, {"gpu"})
    assert len(answers_in(tmp_path / "out")) == CALLS
    assert "limited by" in placed_at.shown


@pytest.mark.long
@pytest.mark.parametrize("how", ["a cloud's notice", "SIGTERM"])
def test_engines_leave_a_node_that_is_taken_away(how: str, needs_ray: None, manifest: str, tmp_path: Path) -> None:
    """They finish what they have, which nobody repeats, and go on on another node; their own node ends."""
    output = str(tmp_path / "out")
    with head_alone() as cluster, contextlib.ExitStack() as stack:
        cluster.add_node(num_cpus=6, labels={"name": "cpu"})
        cluster.add_node(**ENGINE_ALONE, labels={"name": "staying", **T4})
        going = stack.enter_context(started_by_command(cluster.address, "going"))
        while "going" not in nodes_there(cluster):
            time.sleep(0.1)
        # Four Listeners: blocks of one recording, of which two engines do not hold all.
        what = "run_leaving" if how == "SIGTERM" else "run_draining"
        driver = start_driver(cluster.address, what, manifest=manifest, output=output, engines=2, listeners=4)
        await_file(asked_file(flag_of(output)), driver)
        if how == "SIGTERM":
            going.terminate()
        while "going" in nodes_there(cluster):
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.1)
        cluster.add_node(**ENGINE_ALONE, labels={"name": "late", **T4})
        ended = placed(driver)
    assert ended.engines == {"staying", "late"}
    answers = answers_in(tmp_path / "out")
    assert {answer["text"].split()[0] for answer in answers} == {"going", "staying", "late"}
    ids = sorted(f"call-{number}" for number in range(CALLS))
    assert sorted(answer["recording_id"] for answer in answers) == ids
    assert {(answer["status"], answer["attempt"]) for answer in answers} == {("ok", 1)}
    assert sorted(decoded_file(flag_of(output)).read_text().split()) == ids

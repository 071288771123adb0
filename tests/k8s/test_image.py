"""k8s/Dockerfile and k8s/nginx.conf. The image itself is not built here: that needs Docker."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.k8s.rendered import K8S, ROOT
from tests.test_packaging import PACKAGES

LINES = (K8S / "Dockerfile").read_text().splitlines()
NGINX = K8S / "nginx.conf"


def test_the_image_has_the_code_and_a_user_without_rights() -> None:
    copied = {path for line in LINES if line.startswith("COPY ") for path in line.split()[1:-1] if path[0] not in "-."}
    assert {"rayscribe.py", "pyproject.toml", *PACKAGES, "k8s/requirements-${BUILD}.txt"} <= copied
    assert "ARG BUILD=gpu" in LINES
    copied = {path.replace("${BUILD}", build) for path in copied for build in ("gpu", "cpu")}
    assert all((ROOT / path).exists() for path in copied)
    assert [line for line in LINES if line.startswith("USER")] == ["USER 1000"]
    assert "ENV HOME=/home/ray" in LINES


def test_every_stage_is_the_code_and_the_last_one_nothing_more() -> None:
    """What is built without --target is the last stage."""
    stages = [line for line in LINES if line.startswith("FROM ")]
    assert stages == ["FROM ${BASE} AS code", "FROM code AS demo", "FROM code AS baked", "FROM code"]
    assert LINES[-1] == "FROM code"


def test_the_readme_names_every_target() -> None:
    told = (K8S / "README.md").read_text()
    for line in LINES:
        if stage := re.fullmatch(r"FROM code AS (\w+)", line):
            assert f"--target {stage[1]}" in told


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    config = tmp_path / "nginx.conf"
    text = NGINX.read_text()
    assert "rayscribe-serve-svc:8000" in text
    config.write_text(
        text.replace("rayscribe-serve-svc", "127.0.0.1")
    )  # the service's name resolves in its cluster only
    files = f"pid {tmp_path}/nginx.pid; error_log stderr;"  # a user may not write to those of the system
    checked = subprocess.run(["nginx", "-t", "-c", config, "-g", files], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr

"""A Ray cluster of a head whose autoscaler (version 2, as KubeRay's) adds and removes raylets on this machine.

``ray.cluster_utils.AutoscalingCluster`` would first stop every Ray of this machine, and reads a file that Ray's wheels
lack.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from testing.ports import free_port
from tests.pipelines.raylets import kill_all

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
# As ray.autoscaler._private.fake_multi_node has them.
HEAD_ID = "f" * 51 + "00000"
HEAD_TYPE = "ray.head.default"


@contextlib.contextmanager
def autoscaled(kinds: Mapping[str, Mapping[str, Any]], port: int, folder: Path) -> Iterator[str]:
    """The address of a cluster that is a head without work at first.

    Args:
        kinds: of nodes, by name: Ray's resources, labels and max_workers.
        port: a free one, for the head.
        folder: for its configuration.
    """
    from ray.util import get_node_ip_address

    address = f"{get_node_ip_address()}:{port}"
    provider = {"type": "external", "module": PROVIDER, "gcs_address": address, "head_node_id": HEAD_ID}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "tests",
        "max_workers": sum(kind["max_workers"] for kind in kinds.values()),
        "provider": provider | {"use_node_id_as_ip": True, "launch_multiple": True, "disable_node_updaters": True},
        "available_node_types": {HEAD_TYPE: head} | {name: {"node_config": {}, **kind} for name, kind in kinds.items()},
        "head_node_type": HEAD_TYPE,
        "idle_timeout_minutes": 0.1,
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
    }
    file = folder / "autoscaler.json"
    file.write_text(json.dumps(config))
    told = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    told |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    options = ["--head", f"--port={port}", "--num-cpus=0", f"--autoscaling-config={file}", "--block"]
    options += [f"--ray-client-server-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
    command = [str(Path(sys.executable).with_name("ray")), "start", *options, "--include-dashboard=false"]
    process = subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any("Ray runtime started" in line for line in process.stdout)
        yield address
    finally:
        kill_all(process)

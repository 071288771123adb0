"""The manifests of k8s/overlays, run: every pod in namespaces of its own, with the commands that KubeRay makes.

Ray's head, worker and submitter are separate pods, which reach each other over a network and share what a volume of the
manifest shares. Their root file systems are read only, and their user and privileges are the manifest's.
"""

import contextlib
import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.output import Output
from storage.filesystem import Storage
from tests.k8s.kuberay import DEMO_IMAGE, TIMEOUT_S, await_nodes, cluster_of, deploy, ray_start, submit
from tests.k8s.pod_runner import Cluster, Network, Running, why_not
from tests.k8s.rendered import ROOT, Pod, document, pods

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.engine,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
# What becomes of the sample calls: two are broken on purpose.
SAMPLES = [json.loads(line) for line in (ROOT / "demo" / "samples" / "manifest.jsonl").read_text().splitlines()]
BROKEN = {"corrupt-018", "empty-019"}


def _submit(cluster: Cluster, head: Running, submitter: Pod, entrypoint: str) -> str:
    """Submits the entrypoint and follows it; its log, once Ray says that the job has succeeded."""
    name = "rayscribe-backfill-x2x7b"
    with cluster.run(submitter, submit(entrypoint, head.address, name)) as running:
        code = running.process.wait(TIMEOUT_S)
    log = running.log.read_text()
    status = head.execute("ray", "job", "status", "--address", "http://127.0.0.1:8265", name)
    assert (code, "succeeded" in status.stdout) == (0, True), log
    return log


def _submit_by_hand(head: Running) -> None:
    """`ray job submit` as cluster/aws.yaml tells it: job.yaml is in the working directory, which Ray sends."""
    entrypoint = "rayscribe transcribe --config job.yaml --address auto --accept-failed"
    command = (
        "ray job submit --address http://127.0.0.1:8265 --runtime-env /sent/runtime-env.yaml --working-dir /sent --"
    )
    done = head.execute(*command.split(), *entrypoint.split(), timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "1 transcribed" in done.stdout


@contextlib.contextmanager
def _job_cluster(network: Network, folder: Path, images: dict[str, Path]) -> Iterator[tuple[Cluster, Running]]:
    """Head and worker of overlays/cpu/job, and the head."""
    cluster = cluster_of(network, folder, "overlays/cpu/job")
    cluster.images = DEMO_IMAGE | images
    by_name = {pod.name: pod for pod in pods("overlays/cpu/job")}
    with (
        cluster.run(by_name["head"], ray_start(by_name["head"], None)) as head,
        cluster.run(by_name["workers"], ray_start(by_name["workers"], head.address)) as worker,
    ):
        await_nodes(head, 2)
        yield cluster, head
        assert worker.process.poll() is None


def test_the_backfill_of_overlays_cpu(network: Network, tmp_path: Path) -> None:
    [submitter] = (pod for pod in pods("overlays/cpu/job") if pod.name == "submitter")
    job = document("overlays/cpu/job", "RayJob")["spec"]
    with _job_cluster(network, tmp_path, {}) as (cluster, head):
        assert "2 failed" in _submit(cluster, head, submitter, job["entrypoint"])
        shown = head.execute("rayscribe", "evaluate", "/data/transcripts")
        assert shown.returncode == 0, shown.stderr
    done = Output(str(tmp_path / "rayscribe-data" / "transcripts"), Storage()).deduplicate().attempts
    assert set(done["failed"]) == BROKEN
    assert set(done["ok"]) == {row["id"] for row in SAMPLES} - BROKEN


@pytest.mark.long
def test_a_job_that_is_submitted_by_hand(network: Network, tmp_path: Path) -> None:
    sent = tmp_path / "submitted"
    sent.mkdir()
    shutil.copy(ROOT / "cluster" / "runtime-env.yaml", sent)
    row = {"id": "one", "audio": "/opt/demo/samples/german-013.wav"}
    (sent / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    told = ("manifest: manifest.jsonl", "output: /data/by-hand", "model: /opt/demo/model", "engines: 1", "language: de")
    (sent / "job.yaml").write_text("\n".join(told) + "\n")
    with _job_cluster(network, tmp_path, {"/sent": sent}) as (_, head):
        _submit_by_hand(head)


@pytest.mark.long
def test_the_nightly_job_of_overlays_cpu_transcribes_new_files_only(network: Network, tmp_path: Path) -> None:
    [pod] = pods("overlays/cpu/nightly")
    cluster = cluster_of(network, tmp_path, "overlays/cpu/nightly")
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    cluster.images = DEMO_IMAGE | {"/opt/demo/samples": incoming}
    container = pod.spec["containers"][0]
    for night, name in enumerate(("billing-001.wav", "delivery-002.wav", None)):
        if name:
            shutil.copy(ROOT / "demo" / "samples" / name, incoming)
        with cluster.run(pod, container["command"]) as running:
            assert running.process.wait(TIMEOUT_S) == 0, running.log.read_text()
        said = running.log.read_text()
        assert ("1 recordings to transcribe" in said) == (night < 2), said
    done = Output(str(tmp_path / "rayscribe-data" / "transcripts-nightly"), Storage()).deduplicate().attempts
    assert (len(done["ok"]), len(done["failed"])) == (2, 0)


ASK = textwrap.dedent("""
    import sys
    from openai import AuthenticationError, OpenAI

    address, key = sys.argv[1:]
    with open("/opt/demo/samples/billing-001.wav", "rb") as call:
        for each in (key, "wrong"):
            client = OpenAI(base_url=f"http://{address}:8000/v1", api_key=each, max_retries=0, timeout=120)
            try:
                print(client.audio.transcriptions.create(file=call, model="whisper-1").text)
            except AuthenticationError as refused:
                print(refused.status_code)
""")


@pytest.mark.long
def test_the_endpoint_of_overlays_cpu(network: Network, tmp_path: Path) -> None:
    overlay = "overlays/cpu/service"
    by_name = {pod.name: pod for pod in pods(overlay)}
    key = "a-key-of-a-client"
    cluster = cluster_of(network, tmp_path, overlay, config_maps={}, secrets={"rayscribe-keys": {"keys": key}})
    with (
        cluster.run(by_name["head"], ray_start(by_name["head"], None)) as head,
        cluster.run(by_name["workers"], ray_start(by_name["workers"], head.address)) as worker,
    ):
        await_nodes(head, 2)
        config = document(overlay, "RayService")["spec"]["serveConfigV2"]
        deploy(head, config)
        answers = head.execute("python", "-c", ASK, worker.address, key).stdout.splitlines()
        assert "thank you for calling" in answers[0]
        assert answers[1] == "401"


# A server of S3 with two users, of whom one may only read. From "reset-auth" on, moto asks who is asking.
S3_SERVER = textwrap.dedent("""
    import json, sys
    from moto.server import ThreadedMotoServer
    import boto3, urllib.request

    server = ThreadedMotoServer(ip_address="0.0.0.0", port=9000, verbose=False)
    server.start()
    own = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    iam, s3 = (boto3.client(kind, endpoint_url="http://127.0.0.1:9000", **own) for kind in ("iam", "s3"))
    s3.create_bucket(Bucket="calls")
    s3.upload_file("/opt/demo/samples/billing-001.wav", "calls", "billing.wav")
    rows = [{"id": "there", "audio": "billing.wav"}, {"id": "gone", "audio": "gone.wav"}]
    s3.put_object(Bucket="calls", Key="manifest.jsonl", Body="".join(json.dumps(row) + "\\n" for row in rows))
    may = {"reader": ["s3:GetObject", "s3:ListBucket"], "writer": ["s3:*"]}
    keys = {}
    for user, actions in may.items():
        iam.create_user(UserName=user)
        allow = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        iam.put_user_policy(UserName=user, PolicyName=user, PolicyDocument=policy)
        key = iam.create_access_key(UserName=user)["AccessKey"]
        keys[user] = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    reset = "http://127.0.0.1:9000/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(reset, b"0", {"Content-Type": "text/plain"}))
    with open("/home/ray/keys", "w") as file:
        json.dump(keys, file)
    server._thread.join()
""")
WRITE = "import s3fs; s3fs.S3FileSystem().pipe('calls/probe', b'')"


@pytest.mark.long
def test_the_backfill_of_overlays_small_with_listeners_that_may_only_read(network: Network, tmp_path: Path) -> None:
    """From a bucket to a bucket; the GPU is one that only Ray's resources have, and the engine computes on the CPU."""
    overlay = "overlays/small/job"
    by_name = {pod.name: pod for pod in pods(overlay)}
    told = {"manifest": "s3://calls/manifest.jsonl", "output": "s3://calls/transcripts", "model": "/opt/demo/model"}
    told |= {"engine": "transformers", "engines": "1", "listeners": "3"}
    lines = "".join(f"{name}: {value}\n" for name, value in told.items())
    cluster = cluster_of(network, tmp_path, overlay, config_maps={"rayscribe-backfill": {"job.yaml": lines}})
    server = Pod("s3", {}, {}, by_name["submitter"].spec, {})
    with cluster.run(server, ["python", "-c", S3_SERVER]) as s3:
        keys = _await_keys(s3)
        where = {"AWS_ENDPOINT_URL": f"http://{s3.address}:9000", "AWS_DEFAULT_REGION": "us-east-1"}
        cluster.secrets = {
            "rayscribe-storage": keys["writer"] | where,
            "rayscribe-storage-read": keys["reader"] | where,
        }
        with (
            cluster.run(by_name["head"], ray_start(by_name["head"], None)) as head,
            cluster.run(by_name["listeners"], ray_start(by_name["listeners"], head.address)) as listeners,
            cluster.run(by_name["engines"], ray_start(by_name["engines"], head.address)) as engines,
        ):
            await_nodes(head, 3)
            assert engines.execute("python", "-c", WRITE).returncode == 0
            refused = listeners.execute("python", "-c", WRITE)
            assert "AccessDenied" in refused.stderr or "Forbidden" in refused.stderr, refused.stderr
            entrypoint = document(overlay, "RayJob")["spec"]["entrypoint"]
            log = _submit(cluster, head, by_name["submitter"], entrypoint)
            assert "1 transcribed, 1 failed" in log
            status = head.execute("rayscribe", "status", "s3://calls/transcripts", "--failed")
            assert "not_found" in status.stdout, status.stdout + status.stderr


def _await_keys(s3: Running) -> dict[str, dict[str, str]]:
    for _ in range(400):
        assert s3.process.poll() is None, s3.log.read_text()
        answer = s3.execute("cat", "/home/ray/keys")
        if answer.returncode == 0 and answer.stdout:
            keys: dict[str, dict[str, str]] = json.loads(answer.stdout)
            return keys
    raise AssertionError(s3.log.read_text())

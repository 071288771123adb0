"""Nodes that are taken away: the notice of a cloud's spot machines, and what an actor on such a node does.

    notice    AWS and Google announce the end of a spot machine by its metadata service
    drain     Ray schedules nothing more on the node; Ray Data gives its actors no further block, and Ray Serve starts
              its replicas elsewhere
    leave     an actor of the job that has finished the blocks that it had ends its process: Ray starts it on another
              node. Replicas of the endpoint are ended by Ray Serve.

Kubernetes announces it by SIGTERM to the pod, on which ``ray start --block`` drains the node itself.
"""

import contextlib
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cluster.session import kill_children_and_exit

log = logging.getLogger("rayscribe")

POLL_S = 5.0
# For a moment after a call its result is on the way to the driver; if it were lost, Ray would repeat the call.
IDLE_S = 2.0
REQUEST_TIMEOUT_S = 2.0
# docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html: two minutes before. A token is
# needed by version 2 of the service.
AWS = "http://169.254.169.254"
# docs.cloud.google.com/compute/docs/instances/create-use-preemptible: 30 s before.
GOOGLE = "http://metadata.google.internal"
GOOGLE_NOTICE_S = 30.0
DMI = Path("/sys/class/dmi/id")

Notice = Callable[[], float | None]  # seconds until the machine ends; None: not announced


def notice_here(dmi: Path = DMI) -> Notice | None:
    """How to ask this machine's cloud, which its firmware tells; None on other machines, where nothing is asked."""
    known = {"sys_vendor": ("Amazon EC2", aws_notice), "product_name": ("Google Compute Engine", google_notice)}
    for file, (name, notice) in known.items():
        with contextlib.suppress(OSError):
            if (dmi / file).read_text().strip() == name:
                return notice
    return None


def aws_notice(service: str = AWS) -> float | None:
    """Seconds until this EC2 instance is taken back, if that is announced."""
    token = _request(f"{service}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    answer = _request(f"{service}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if not answer:
        return None
    ends_at = datetime.fromisoformat(json.loads(answer)["time"])
    return max(0.0, (ends_at - datetime.now(UTC)).total_seconds())


def google_notice(service: str = GOOGLE) -> float | None:
    """Seconds until this instance of Compute Engine is taken back, if that is announced."""
    answer = _request(f"{service}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GOOGLE_NOTICE_S if answer == "TRUE" else None


def _request(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """The answer of a metadata service; empty where there is none, as before a notice (404)."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the address is this machine's own
    try:
        with direct.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def drain_on_notice(notice: Notice | None) -> None:
    """Drains this process's node when its cloud announces the machine's end. Returns at once: a thread asks.

    A node that is alone is not drained: its work has nowhere else to go.

    Args:
        notice: asks the cloud; None where there is none to ask.
    """
    if notice is not None:
        threading.Thread(target=_await_notice, args=[notice], daemon=True, name="spot-notice").start()


def _await_notice(notice: Notice) -> None:
    while True:
        try:
            if (left_s := notice()) is not None:
                _drain(left_s)
                return
        except Exception:  # Ray's or the metadata service's: the work goes on, and so does the watch
            log.exception("asking whether this machine is taken away")
        time.sleep(POLL_S)


def _drain(left_s: float) -> None:
    import ray

    from cluster import ray_internals

    log.warning("this machine is taken away in %.0f s", left_s)
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        ray_internals.drain_this_node(left_s)


class DrainWatch:
    """Ends the process of an actor whose node drains, once its calls have ended; drains the node on a cloud's notice.

    Ray Data gives the actor no further block, but keeps it, and with it the node, which may be empty for days. Ended,
    it is started elsewhere, as after a crash; nothing that it has begun is unfinished.

    Args:
        notice: as of ``drain_on_notice``.
    """

    def __init__(self, notice: Notice | None = None) -> None:
        drain_on_notice(notice)
        self._lock = threading.Lock()
        self._calls = 0
        self._ended_at = time.monotonic()  # the last call
        threading.Thread(target=self._watch, daemon=True, name="drain-watch").start()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Held while the actor works on a block."""
        with self._lock:
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                self._ended_at = time.monotonic()

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_S)
            try:
                self._look()
            except Exception:  # Ray's: the work goes on, and so does the watch
                log.exception("asking whether this node is taken away")

    def _look(self) -> None:
        from cluster import ray_internals

        with self._lock:  # no call can begin until the process has ended
            idle = not self._calls and time.monotonic() - self._ended_at >= IDLE_S
            if idle and ray_internals.on_draining_node():  # only the idle ask, so that thousands of actors may
                kill_children_and_exit()

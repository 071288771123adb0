"""The endpoint's metrics. Ray exports them for Prometheus, all replicas of a node at one port.

Ray prefixes each name with ``ray_``, and Serve adds the labels ``application``, ``deployment`` and ``replica``.
The rate of ``rayscribe_audio_seconds`` is the RTFx of the whole endpoint. vLLM's own metrics and Serve's
(``ray_serve_…``) are exported beside these.
"""

from ray.serve.metrics import Counter, Gauge, Histogram

from speech.transcript import Usage

SECONDS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
RTFX = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
# The task of live audio, in metrics and messages.
LIVE = "live"


class RequestMetrics:
    """Of requests, counted in the Endpoint. ``code`` is ``ok`` or an error's."""

    def __init__(self) -> None:
        self._requests = Counter(
            "rayscribe_requests", "Requests answered; task is transcribe, translate or live.", tag_keys=("task", "code")
        )
        self._in_flight = Gauge("rayscribe_requests_in_hand", "Requests in flight, including uploads.")
        self._live_sessions = Gauge("rayscribe_live_sessions", "Open sessions of live audio.")
        self._audio = Counter("rayscribe_audio_seconds", "Seconds of audio transcribed.", tag_keys=("task",))
        self._seconds = Histogram(
            "rayscribe_request_seconds", "Seconds from the end of an upload to the end of its answer.", SECONDS
        )
        self._first_text = Histogram(
            "rayscribe_first_text_seconds", "Seconds from the end of an upload to the first text of a stream.", SECONDS
        )
        self._rtfx = Histogram("rayscribe_rtfx", "Seconds of audio per second of a request.", RTFX)

    def in_flight(self, requests: int) -> None:
        self._in_flight.set(requests)

    def live_sessions(self, sessions: int) -> None:
        self._live_sessions.set(sessions)

    def refused(self, task: str, code: str) -> None:
        self._requests.inc(1, {"task": task, "code": code})

    def first_text(self, seconds: float) -> None:
        self._first_text.observe(seconds)

    def answered(self, task: str, audio_s: float, seconds: float) -> None:
        self._requests.inc(1, {"task": task, "code": "ok"})
        self._seconds.observe(seconds)
        if audio_s:
            self._audio.inc(audio_s, {"task": task})
            self._rtfx.observe(audio_s / max(seconds, 1e-6))

    def received_live(self, audio_s: float) -> None:
        self._requests.inc(1, {"task": LIVE, "code": "ok"})
        if audio_s:
            self._audio.inc(audio_s, {"task": LIVE})


class EngineMetrics:
    """Of one Transcriber replica."""

    def __init__(self) -> None:
        self._queued = Gauge("rayscribe_queued_audio_seconds", "Seconds of audio pending or being decoded.")
        self._output = Counter("rayscribe_output_tokens", "Tokens generated.")
        self._drafted = Counter("rayscribe_draft_tokens", "Tokens proposed by speculative decoding.")
        self._accepted = Counter("rayscribe_accepted_draft_tokens", "Draft tokens that the model accepted.")

    def queued(self, audio_s: float) -> None:
        self._queued.set(audio_s)

    def add_usage(self, usage: Usage) -> None:
        counts = (
            (self._output, usage.output_tokens),
            (self._drafted, usage.draft_tokens),
            (self._accepted, usage.accepted_draft_tokens),
        )
        for counter, tokens in counts:
            if tokens:  # Ray's counters refuse an increment of 0
                counter.inc(tokens)

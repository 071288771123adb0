"""What the endpoint counts. Ray exports it for Prometheus, all replicas of a node at one port.

Ray puts ``ray_`` before each name and Serve adds the labels ``application``, ``deployment`` and ``replica``.
The rate of ``rayscribe_audio_seconds`` is the RTFx of the whole endpoint. vLLM's own metrics and Serve's
(``ray_serve_…``) are exported beside these.
"""

from ray.serve.metrics import Counter, Gauge, Histogram

from speech.transcript import Usage

SECONDS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
RTFX = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


class RequestMetrics:
    """Of the requests, counted where they come in. ``code`` is ``ok`` or that of the error."""

    def __init__(self) -> None:
        self._requests = Counter(
            "rayscribe_requests", "Requests answered; task is transcribe, translate or live.", tag_keys=("task", "code")
        )
        self._in_hand = Gauge("rayscribe_requests_in_hand", "Requests being answered, uploads among them.")
        self._audio = Counter("rayscribe_audio_seconds", "Seconds of audio transcribed.", tag_keys=("task",))
        self._seconds = Histogram(
            "rayscribe_request_seconds", "Seconds from the end of an upload to the end of its answer.", SECONDS
        )
        self._first_text = Histogram(
            "rayscribe_first_text_seconds", "Seconds from the end of an upload to the first text of a stream.", SECONDS
        )
        self._rtfx = Histogram("rayscribe_rtfx", "Seconds of audio for each second that a request took.", RTFX)

    def in_hand(self, requests: int) -> None:
        self._in_hand.set(requests)

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
        self._requests.inc(1, {"task": "live", "code": "ok"})
        if audio_s:
            self._audio.inc(audio_s, {"task": "live"})


class EngineMetrics:
    """Of one engine replica."""

    def __init__(self) -> None:
        self._queued = Gauge("rayscribe_queued_audio_seconds", "Seconds of audio that the engine has in hand.")
        self._output = Counter("rayscribe_output_tokens", "Tokens written.")
        self._drafted = Counter("rayscribe_draft_tokens", "Tokens proposed by speculative decoding.")
        self._accepted = Counter("rayscribe_accepted_draft_tokens", "Proposed tokens that the model agreed to.")

    def queued(self, audio_s: float) -> None:
        self._queued.set(audio_s)

    def spent(self, usage: Usage) -> None:
        counts = (
            (self._output, usage.output_tokens),
            (self._drafted, usage.draft_tokens),
            (self._accepted, usage.accepted_draft_tokens),
        )
        for counter, tokens in counts:
            if tokens:  # Ray's counters take no zero
                counter.inc(tokens)

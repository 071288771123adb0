"""The page at /, in a browser, on the endpoint's HTTP over a canned backend (``canned.py``)."""

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from serve.settings import ServeSettings
from speech.errors import AudioError, EngineError
from speech.formats import TranscriptFormat, render_transcript
from speech.models.families import GRANITE_4_0
from speech.recording import Recording
from speech.transcript import Segment, Transcript
from tests.serve.canned import CannedBackend, served
from tests.serve.conftest import Served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PAGE = Path("serve/playground")
MODEL = "ibm-granite/granite-4.0-1b-speech"
DURATION_S = 12.0
WAIT_MS = 10_000
SEGMENTS = (
    Segment(0, None, 0.5, 2.0, "good morning"),
    Segment(1, None, 2.5, 4.0, "a <b>& --> c"),
    Segment(0, None, 6.25, 11.0, "goodbye"),
)
LINES = [segment.text for segment in SEGMENTS]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stereo call: one tone a channel, at different times."""
    rate = 8000
    time = np.arange(int(DURATION_S * rate)) / rate
    channels = [np.sin(2 * np.pi * 440 * time) * (time < 6), np.sin(2 * np.pi * 220 * time) * (time > 6)]
    path = tmp_path_factory.mktemp("calls") / "call.wav"
    sf.write(path, 0.5 * np.stack(channels, axis=1), rate, subtype="ULAW")
    return path


@pytest.fixture
def backend() -> CannedBackend:
    return CannedBackend(SEGMENTS, DURATION_S)


@pytest.fixture
def address(backend: CannedBackend) -> Iterator[str]:
    with served(ServeSettings.from_settings({"model": MODEL}), backend) as address:
        yield address


@pytest.fixture(scope="module")
def browser(needs_browser: None) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install Debian's package chromium")
    from playwright.sync_api import sync_playwright

    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *microphone])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page at an address; fails at the end if a script raised an error."""
    contexts, faults = [], []

    def open_page(address: str, **settings: Any) -> Any:
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def page(opened: Callable[..., Any], address: str) -> Any:
    page = opened(address)
    _expect(page.locator("#model")).to_have_text(MODEL)
    return page


def _expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def _transcribe(page: Any, call: Path) -> None:
    """Chooses a call and starts; returns when the transcript is complete."""
    _choose(page, call)
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.get_by_role("status")).to_contain_text("of audio in")


def _choose(page: Any, call: Path) -> None:
    page.get_by_label("Choose a recording").set_input_files(call)
    _expect(page.locator("#length")).to_have_text("0:12")


def _time(page: Any) -> float:
    seconds: float = page.locator("#audio").evaluate("audio => audio.currentTime")
    return seconds


def test_no_other_host_is_contacted(opened: Callable[..., Any], address: str) -> None:
    page = opened("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    _expect(page.locator("#model")).to_have_text(MODEL)
    assert {f"{address}/", f"{address}/app.js", f"{address}/v1/models"} <= set(asked)
    assert all(url.startswith(address) for url in asked)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", "".join(map(Path.read_text, PAGE.iterdir())))
    reached = page.evaluate("fetch('http://localhost:9').then(() => '', error => error.name)")
    assert reached == "TypeError"  # blocked by the content security policy
    assert "connect-src 'self'" in page.content()


def test_lines_appear_as_they_are_transcribed_with_speaker_and_time(
    page: Any, backend: CannedBackend, call: Path
) -> None:
    backend.go_on.clear()
    page.get_by_role("textbox", name="Speakers").fill("Agent, Customer")
    _choose(page, call)
    page.get_by_role("button", name="Transcribe").click()
    lines = page.locator("#lines li")
    _expect(lines).to_have_count(1)  # the others are pending
    _expect(page.get_by_role("button", name="Stop")).to_be_visible()
    backend.go_on.set()
    _expect(page.get_by_role("status")).to_have_text(re.compile(r"^3 lines, 0:12 of audio in \d"))
    _expect(lines.locator("p")).to_have_text(LINES)
    _expect(lines.locator("strong")).to_have_text(["Agent", "Customer", "Agent"])
    _expect(lines.locator("button")).to_have_text(["0:00", "0:02", "0:06"])
    assert backend.uploads == [call.read_bytes()]


def test_speakers_without_names_are_shown_by_channel(page: Any, call: Path) -> None:
    _transcribe(page, call)
    _expect(page.locator("#lines strong")).to_have_text(["Channel 1", "Channel 2", "Channel 1"])
    _expect(page.get_by_text("Channel 2")).to_be_visible()


def test_the_form_offers_what_the_model_supports_and_sends_it(page: Any, backend: CannedBackend, call: Path) -> None:
    language, task = page.get_by_label("Language"), page.get_by_label("Task")
    offered = language.locator("option").evaluate_all("options => options.map((option) => option.value)")
    assert set(offered) == GRANITE_4_0.languages
    _expect(page.get_by_label("Model")).to_be_hidden()  # there is one
    assert language.input_value() == "en"
    language.select_option(label="German")
    _expect(task.locator("option")).to_have_text(["Transcribe", "Translate to English"])
    task.select_option(label="Translate to English")
    page.get_by_label("Keywords").fill(" Kuhn, Acorn Insurance,")
    page.get_by_label("Channels").select_option(label="A speaker each")
    page.get_by_role("textbox", name="Speakers").fill("Frau Kuhn, Herr Acker")
    _expect(page.get_by_label("Punctuation and capitals")).to_be_hidden()  # not a capability of this model
    _transcribe(page, call)
    [asked] = backend.requests
    assert (asked.audio, asked.speakers) == ("call.wav", ("Frau Kuhn", "Herr Acker"))
    assert asked.options.model_dump(exclude_defaults=True) == {
        "language": "de",
        "task": "translate",
        "target_language": "en",
        "keywords": ("Kuhn", "Acorn Insurance"),
        "channels": "split",
    }


def test_one_of_several_models_is_chosen_and_detects_the_language(
    opened: Callable[..., Any], backend: CannedBackend, call: Path
) -> None:
    whisper = "openai/whisper-small"
    settings = ServeSettings.from_settings({"models": [{"model": MODEL, "names": "granite"}, {"model": whisper}]})
    with served(settings, backend) as address:
        page = opened(address)
        models, language = page.get_by_label("Model"), page.get_by_label("Language")
        _expect(models.locator("option")).to_have_text([MODEL, whisper])
        assert language.input_value() == "en"
        models.select_option(label=whisper)
        _expect(page.locator("#model")).to_have_text(whisper)
        assert language.input_value() == "auto"
        _expect(page.get_by_label("Task").locator("option")).to_have_text(["Transcribe", "Translate to English"])
        _transcribe(page, call)
        [asked] = backend.requests
        assert asked.options.language == "auto"


def test_clicking_a_line_plays_it(page: Any, call: Path) -> None:
    _transcribe(page, call)
    line = page.locator("#lines li").nth(2)
    line.click()
    _expect(page.get_by_role("button", name="Pause")).to_be_visible()
    _expect(line).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Pause").click()
    assert SEGMENTS[2].start_s <= _time(page) < SEGMENTS[2].end_s


def test_everything_works_by_keyboard(page: Any, call: Path) -> None:
    page.locator("body").press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    _choose(page, call)
    names = ["record", "language", "task", "keywords", "channels", "speakers", "start"]
    for name in names:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    page.keyboard.press("Enter")
    _expect(page.get_by_role("status")).to_contain_text("3 lines")
    for name in ("play", "speed", "waveform"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    slider = page.get_by_role("slider", name="Position in the recording")
    page.keyboard.press("ArrowRight")
    _expect(slider).to_have_attribute("aria-valuetext", "0:05 of 0:12")
    page.keyboard.press("End")
    _expect(slider).to_have_attribute("aria-valuenow", "12.0")
    page.keyboard.press("Home")
    _expect(slider).to_have_attribute("aria-valuenow", "0.0")
    for _ in ("TXT", "SRT", "VTT", "JSON", "lines"):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    _expect(page.get_by_role("button", name="0:02, play from here")).to_be_focused()
    page.keyboard.press("Enter")
    _expect(page.locator("#lines li").nth(1)).to_have_attribute("aria-current", "true")
    page.keyboard.press("Home")
    _expect(page.get_by_role("button", name="0:00, play from here")).to_be_focused()


def test_downloads_equal_the_servers_formats(page: Any, call: Path) -> None:
    page.get_by_role("textbox", name="Speakers").fill("Agent")  # the other channel has no name
    _transcribe(page, call)
    named = tuple(replace(segment, speaker="Agent") if segment.channel == 0 else segment for segment in SEGMENTS)
    transcript = Transcript(Recording(id="call", audio="call.wav"), MODEL, " ".join(LINES), named)
    buttons: list[tuple[str, TranscriptFormat]] = [("TXT", "text"), ("SRT", "srt"), ("VTT", "vtt")]
    for button, format in buttons:
        name, content = _downloaded(page, button)
        assert name == f"call.{button.lower()}"
        assert content == render_transcript(transcript, format)
    name, content = _downloaded(page, "JSON")
    assert name == "call.json"
    written = json.loads(content)
    assert (written["text"], written["duration"]) == (" ".join(LINES), DURATION_S)
    assert written["segments"][1] == {"channel": 1, "speaker": None, "start": 2.5, "end": 4.0, "text": LINES[1]}


def _downloaded(page: Any, button: str) -> tuple[str, str]:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text()


def test_the_waveform_has_a_lane_per_channel_and_the_colours_of_speakers(page: Any, call: Path) -> None:
    _choose(page, call)
    grey = _colours(page)
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.get_by_role("status")).to_contain_text("3 lines")
    blue, orange = _colours(page)
    assert grey == ["none", "none"]
    assert (blue, orange) == ("blue", "orange")


def _colours(page: Any) -> list[str]:
    """The colour of the first segment of each lane, by its average pixel."""
    found: list[str] = page.locator("#waveform").evaluate(
        """(canvas, spans) => spans.map(([lane, start, end]) => {
          const [x, y] = [start * canvas.width, (lane * canvas.height) / 2];
          const { data } = canvas.getContext("2d").getImageData(x, y, (end - start) * canvas.width, canvas.height / 2);
          let [red, blue] = [0, 0];
          for (let at = 0; at < data.length; at += 4) {
            red += data[at] * data[at + 3];
            blue += data[at + 2] * data[at + 3];
          }
          return blue > 1.5 * red ? "blue" : red > 1.5 * blue ? "orange" : "none";
        })""",
        [[segment.channel, segment.start_s / DURATION_S, segment.end_s / DURATION_S] for segment in SEGMENTS[:2]],
    )
    return found


def test_stop_cancels_the_request(page: Any, backend: CannedBackend, call: Path) -> None:
    backend.go_on.clear()
    _choose(page, call)
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.locator("#lines li")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    _expect(page.get_by_role("status")).to_have_text("Stopped.")
    assert backend.cancelled.wait(WAIT_MS / 1000)
    _expect(page.locator("#lines li")).to_have_count(1)  # received lines stay


def test_errors_are_shown(page: Any, backend: CannedBackend, call: Path) -> None:
    backend.failure, backend.refuses = AudioError("unreadable", "call.wav is not audio"), True
    _choose(page, call)
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.get_by_role("alert")).to_have_text("call.wav is not audio")
    backend.failure, backend.refuses = EngineError("engine_refused", "the clip is too long"), False
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.get_by_role("alert")).to_have_text("the clip is too long")
    _expect(page.locator("#lines p")).to_have_text(LINES)  # lines before the error
    backend.failure = None
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.get_by_role("status")).to_contain_text("3 lines")
    _expect(page.get_by_role("alert")).to_be_hidden()


def test_overload_shows_when_to_retry(opened: Callable[..., Any], backend: CannedBackend, call: Path) -> None:
    backend.go_on.clear()
    with served(ServeSettings.from_settings({"model": MODEL, "max_requests": 1}), backend) as address:
        first, second = opened(address), opened(address)
        for page in (first, second):
            _choose(page, call)
            page.get_by_role("button", name="Transcribe").click()
            _expect(first.locator("#lines li")).to_have_count(1)
        _expect(second.get_by_role("alert")).to_contain_text(re.compile(r"Try again in \d+ seconds"))


def test_the_page_asks_for_an_api_key(
    opened: Callable[..., Any], backend: CannedBackend, call: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough-for-anybody\n")
    with served(ServeSettings.from_settings({"model": MODEL, "api_keys": str(keys)}), backend) as address:
        page = opened(address)
        asked = page.get_by_role("dialog", name="This server asks for a key")
        for key in ("wrong", keys.read_text().strip()):
            _expect(asked).to_be_visible()
            page.get_by_label("API key").fill(key)
            page.get_by_label("API key").press("Enter")
        _expect(page.locator("#model")).to_have_text(MODEL)
        _expect(asked).to_be_hidden()
        _transcribe(page, call)


def test_a_file_that_the_browser_cannot_play_is_transcribed(page: Any, call: Path, tmp_path: Path) -> None:
    unplayable = tmp_path / "call.gsm"
    unplayable.write_bytes(b"no sound for a browser")
    page.get_by_label("Choose a recording").set_input_files(unplayable)
    _expect(page.get_by_role("status")).to_contain_text("cannot play")
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.get_by_role("status")).to_contain_text("3 lines")
    _expect(page.locator("#length")).to_have_text("0:12")  # from the server
    assert page.get_by_role("button", name="Play", exact=True).is_disabled()
    page.locator("#lines li").first.click()  # nothing to play


def test_a_file_over_the_limit_is_not_sent(opened: Callable[..., Any], backend: CannedBackend, tmp_path: Path) -> None:
    big = tmp_path / "big.wav"
    big.write_bytes(bytes((1 << 20) + 1))
    with served(ServeSettings.from_settings({"model": MODEL, "max_upload_mib": 1}), backend) as address:
        page = opened(address)
        _expect(page.locator("#model")).to_have_text(MODEL)
        page.get_by_label("Choose a recording").set_input_files(big)
        _expect(page.get_by_role("alert")).to_contain_text("takes up to 1.0 MB")
        assert page.get_by_role("button", name="Transcribe").is_disabled()


def test_the_microphone_is_recorded_as_wav(page: Any, backend: CannedBackend) -> None:
    page.get_by_role("button", name="Use the microphone").click()
    _expect(page.get_by_role("button", name="Stop")).to_contain_text("0:01")  # of the browser's test tone
    page.get_by_role("button", name="Stop").click()
    _expect(page.locator("#playing-name")).to_have_text("recording.wav")
    page.get_by_role("button", name="Transcribe").press("Enter")
    _expect(page.get_by_role("status")).to_contain_text("3 lines")
    samples, rate = sf.read(io.BytesIO(backend.uploads[0]))
    assert (rate, samples.ndim) == (16_000, 1)
    assert 0.5 < len(samples) / rate < WAIT_MS / 1000
    assert np.abs(samples).max() > 0.01


def test_a_file_can_be_dropped_on_the_page(page: Any, call: Path) -> None:
    page.evaluate(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.wav"));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }""",
        list(call.read_bytes()),
    )
    _expect(page.locator("#playing-name")).to_have_text("dropped.wav")
    _expect(page.locator("#length")).to_have_text("0:12")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(opened: Callable[..., Any], address: str, call: Path, scheme: str) -> None:
    page = opened(address, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme=scheme)
    _transcribe(page, call)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for button in page.locator("button:visible").all():
        assert button.bounding_box()["height"] >= 24  # WCAG 2.2, 2.5.8
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) == (scheme == "dark")


def test_every_control_has_a_name_and_the_transcript_is_announced(page: Any, call: Path) -> None:
    _transcribe(page, call)
    told = page.locator("body").aria_snapshot()
    for line in told.splitlines():
        if re.search(r"- (button|textbox|combobox|slider|checkbox)\b", line):
            assert '"' in line, line
    assert re.search(r'- log "Transcript":\n', told)
    assert page.get_by_role("log").get_by_role("listitem").count() == 3


def test_a_stereo_call_on_the_whole_endpoint_shows_both_speakers(opened: Callable[..., Any], demo: Served) -> None:
    """Ray Serve, the Listener and the demo model behind it."""
    page = opened(demo.url)
    page.get_by_role("textbox", name="Speakers").fill("Agent, Customer")
    page.get_by_label("Choose a recording").set_input_files("demo/samples/billing-001.wav")
    page.get_by_role("button", name="Transcribe").click()
    _expect(page.get_by_role("status")).to_contain_text("0:32 of audio in", timeout=12 * WAIT_MS)
    speakers = page.locator("#lines strong").all_inner_texts()
    assert set(speakers) == {"Agent", "Customer"}
    assert speakers != sorted(speakers)  # they take turns
    assert all(page.locator("#lines p").all_inner_texts())


# WCAG 2.2, 1.4.3 and 1.4.11: what is read, and what shows where a field is.


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize(
    ("name", "ratio"),
    [(name, 4.5) for name in ("ink", "quiet", "bad", "voice-0", "voice-1", "voice-2", "voice-3")] + [("edge", 3.0)],
)
def test_colours_have_enough_contrast(scheme: int, name: str, ratio: float) -> None:
    style = (PAGE / "style.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    for ground in ("paper", "surface"):
        darker, lighter = sorted(_luminance(colours[each]) for each in (name, ground))
        assert (lighter + 0.05) / (darker + 0.05) >= ratio


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

/** The page: the form, the recording and the transcript. */

import { ApiError, listModels, transcribe } from "./api.js";
import { clock, FORMATS } from "./formats.js";
import { hasMicrophone, record } from "./microphone.js";
import { Player } from "./player.js";
import { TranscriptView } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const KEY = "rayscribe-api-key"; // in sessionStorage, of this tab only

const player = new Player((segment) => view.activate(segment));
const view = new TranscriptView($("lines"), (segment) => player.playFrom(segment));

let models = []; // the server's ModelEntry of each model, with its capabilities
let model = null; // the chosen one
let file = null;
let transcript = null;
let running = null; // the AbortController of the request in flight
let recording = null;

// The model, and the choices that it supports.

async function connect() {
  try {
    models = (await listModels(sessionStorage.getItem(KEY))).filter(({ id, root }) => id === root);
  } catch (error) {
    return fail(error);
  }
  fill($("models"), models.map(({ id }) => [id, id]));
  $("models").closest("label").hidden = models.length === 1;
  showModel();
}

function showModel() {
  model = models.find(({ id }) => id === $("models").value);
  $("model").textContent = model.id;
  const { languages, capabilities, detects_language } = model.rayscribe;
  const named = languages.map((code) => [code, languageName(code)]).sort(([, a], [, b]) => a.localeCompare(b));
  fill($("language"), detects_language ? [["auto", "Detect"], ...named] : named);
  $("language").value = detects_language ? "auto" : languages.includes("en") ? "en" : languages[0];
  showTasks();
  $("keywords").disabled = !capabilities.includes("keywords");
  for (const name of ["punctuation", "speaker_tags"]) $(name).closest("label").hidden = !capabilities.includes(name);
}

function showTasks() {
  const asked = $("language").value;
  const pairs = model.rayscribe.translations.filter(([spoken]) => asked === "auto" || spoken === asked);
  const targets = [...new Set(pairs.map(([, into]) => into))];
  const before = $("task").value;
  fill($("task"), [["", "Transcribe"], ...targets.map((into) => [into, `Translate to ${languageName(into)}`])]);
  $("task").value = targets.includes(before) ? before : "";
}

const languageName = (code) => new Intl.DisplayNames(["en"], { type: "language" }).of(code);

function fill(select, choices) {
  select.replaceChildren(...choices.map(([value, label]) => new Option(label, value)));
}

const listed = (text) => text.split(",").map((part) => part.trim());

function asked() {
  const into = $("task").value;
  return {
    model: model.id,
    language: $("language").value,
    translate: Boolean(into),
    target_language: into,
    keywords: listed($("keywords").value).filter(Boolean),
    channels: $("channels").value,
    speakers: $("speakers").value.trim() ? listed($("speakers").value) : [],
    punctuation: $("punctuation").checked && "true",
    speaker_tags: $("speaker_tags").checked && "true",
  };
}

// The recording.

async function choose(chosen) {
  running?.abort();
  running = null;
  showRunning(false);
  file = chosen;
  transcript = null;
  view.clear();
  showAlert("");
  $("file-name").textContent = file.name;
  $("file-note").textContent = `${megabytes(file.size)} · choose another`;
  document.body.classList.add("chosen");
  $("empty").hidden = true;
  $("player").hidden = false;
  $("transcript").hidden = true;
  $("status").textContent = "";
  const limit = model?.rayscribe.max_upload_bytes ?? Infinity;
  $("start").disabled = file.size > limit;
  if (file.size > limit) showAlert(`The file has ${megabytes(file.size)}; this server takes up to ${megabytes(limit)}.`);
  const playable = await player.load(file);
  if (file === chosen && !playable && !transcript) {
    $("status").textContent = "This browser cannot play the file. The server may read it all the same.";
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

async function toggleRecording() {
  if (recording) return stopRecording();
  try {
    recording = await record();
  } catch {
    return showAlert("The browser gave no microphone. Allow it for this page, or choose a file.");
  }
  showAlert("");
  document.body.classList.add("recording");
  const begun = performance.now();
  (function tick() {
    if (!recording) return;
    $("record-label").textContent = `Stop · ${clock((performance.now() - begun) / 1000)}`;
    $("record").style.setProperty("--level", recording.level());
    requestAnimationFrame(tick);
  })();
}

async function stopRecording() {
  const ended = recording;
  recording = null;
  document.body.classList.remove("recording");
  $("record-label").textContent = "Use the microphone";
  $("record").style.removeProperty("--level");
  await choose(await ended.stop());
  $("start").focus();
}

// The transcript.

async function run() {
  if (!model) await connect();
  if (!model) return;
  const controller = new AbortController();
  const begun = performance.now();
  const request = asked();
  const { model: name, language, target_language } = request;
  running = controller;
  transcript = { file: file.name, model: name, language: target_language || language, duration: null, text: "", segments: [] };
  const merged = ["mix", "first"].includes(request.channels);
  view.clear();
  showAlert("");
  showRunning(true);
  $("status").textContent = "Sending and listening…";
  // On a phone the player is below the form.
  if ($("player").getBoundingClientRect().top > innerHeight / 2) $("player").scrollIntoView();
  try {
    for await (const event of transcribe(file, request, sessionStorage.getItem(KEY), controller.signal)) {
      controller.signal.throwIfAborted();
      if (event.type === "transcript.text.delta") take(event, merged);
      if (event.type === "transcript.text.done") finish(event, (performance.now() - begun) / 1000);
    }
  } catch (error) {
    if (running === controller) fail(error); // otherwise another file was chosen, and this request was aborted
  } finally {
    if (running === controller) {
      running = null;
      showRunning(false);
    }
  }
}

function take({ delta, segment }, merged) {
  transcript.text += delta;
  transcript.segments.push(segment);
  view.add(segment);
  if (transcript.segments.length === 1) {
    $("status").textContent = "Transcribing…";
    $("transcript").hidden = false;
  }
  if (player.duration) $("progress").value = segment.end / player.duration;
  player.show(transcript.segments, { lanes: Math.max(channelsOf(transcript), merged ? 1 : player.peaks.length) });
}

function finish({ text, duration }, seconds) {
  Object.assign(transcript, { text, duration });
  if (!player.playable) player.setDuration(duration);
  player.show(transcript.segments, { lanes: channelsOf(transcript) });
  const lines = transcript.segments.length;
  $("status").textContent = lines
    ? `${lines} ${lines === 1 ? "line" : "lines"}, ${clock(duration)} of audio in ${seconds.toFixed(1)} s`
    : "No speech was found in this recording.";
}

const channelsOf = ({ segments }) => Math.max(1, ...segments.map(({ channel }) => channel + 1));

function showRunning(on) {
  document.body.classList.toggle("running", on);
  $("start").textContent = on ? "Stop" : "Transcribe";
  $("progress").hidden = !on;
  $("progress").removeAttribute("value");
  for (const button of $("downloads").querySelectorAll("button")) button.disabled = on;
}

function fail(error) {
  $("status").textContent = "";
  if (error.name === "AbortError") {
    $("status").textContent = "Stopped.";
  } else if (error instanceof ApiError) {
    const again = error.retryAfter ? ` Try again in ${error.retryAfter} seconds.` : "";
    if (error.status === 401) $("key").showModal();
    else showAlert(`${error.message}${again}`);
  } else {
    showAlert("This page has a fault. The browser's console says where.");
    throw error;
  }
}

function showAlert(message) {
  $("alert").textContent = message;
  $("alert").hidden = !message;
}

function download(format) {
  const { type, write } = FORMATS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(transcript)], { type }));
  link.download = `${file.name.replace(/\.[^.]+$/, "")}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // Safari reads the URL asynchronously
}

// Event handlers.

$("models").addEventListener("change", showModel);
$("language").addEventListener("change", showTasks);
$("file").addEventListener("change", ({ target }) => target.files[0] && choose(target.files[0]));
$("record").addEventListener("click", toggleRecording);
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else if (!$("start").disabled) run();
});
$("downloads").addEventListener("click", ({ target }) => target.dataset.format && download(target.dataset.format));
$("key").addEventListener("submit", () => {
  sessionStorage.setItem(KEY, $("key-value").value);
  showAlert("");
  connect();
});
$("key").addEventListener("cancel", () => showAlert("Without a key this server transcribes nothing. Reload the page to give one."));
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // the browser would navigate to the file
    document.body.classList.toggle("dragging", type === "dragover");
    if (type === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}
if (!hasMicrophone()) {
  $("record").disabled = true;
  $("record-note").hidden = false;
  $("record-note").textContent = "Browsers give a microphone to https and localhost alone.";
}
connect();

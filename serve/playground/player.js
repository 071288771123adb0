/** Playback: the recording with its waveform, play button, clock and speed. */

import { clock } from "./formats.js";
import { MAX_WAVEFORM_S, peaksOf } from "./sound.js";
import { Waveform } from "./waveform.js";

const $ = (id) => document.getElementById(id);

/** Plays one file at a time; calls `moved(segment)` with the segment at the playback position, or undefined. */
export class Player {
  constructor(moved) {
    this.moved = moved;
    this.audio = $("audio");
    this.waveform = new Waveform($("waveform"), (seconds) => this.seek(seconds));
    $("play").addEventListener("click", () => this.toggle());
    $("speed").addEventListener("change", ({ target }) => (this.audio.playbackRate = target.value));
    for (const type of ["play", "pause", "seeked"]) this.audio.addEventListener(type, () => this.follow());
    document.addEventListener("keydown", (event) => {
      if (event.key !== " " || ![document.body, $("waveform")].includes(event.target)) return;
      event.preventDefault(); // scrolling
      this.toggle();
    });
  }

  /** Loads another file; resolves to whether the browser can play it. */
  async load(file) {
    URL.revokeObjectURL(this.audio.src);
    this.file = file;
    this.peaks = [];
    this.playable = false;
    this.setDuration(0);
    this.show([], { lanes: 1 });
    $("playing-name").textContent = file.name;
    $("play").disabled = true;
    this.audio.src = URL.createObjectURL(file);
    this.audio.playbackRate = $("speed").value;
    await Promise.race(["loadedmetadata", "error"].map((type) => next(this.audio, type)));
    if (this.file !== file) return false; // another file was chosen meanwhile
    this.playable = !this.audio.error;
    $("play").disabled = !this.playable;
    if (this.playable && Number.isFinite(this.audio.duration)) {
      this.setDuration(this.audio.duration);
      if (this.audio.duration <= MAX_WAVEFORM_S) this.showPeaks(file);
    }
    return this.playable;
  }

  async showPeaks(file) {
    const { channels } = await peaksOf(file).catch(() => ({ channels: [] })); // then a flat line is drawn
    if (this.file !== file) return;
    this.peaks = channels;
    this.show(this.segments, { lanes: Math.max(this.lanes, channels.length) });
  }

  /** Draws segments, one lane a channel. */
  show(segments, { lanes }) {
    this.segments = segments;
    this.lanes = lanes;
    this.waveform.update({ segments, lanes, peaks: this.peaks });
  }

  setDuration(seconds) {
    this.duration = seconds;
    $("length").textContent = seconds ? clock(seconds) : "–:––";
    this.waveform.update({ duration: seconds, position: 0, active: null });
  }

  playFrom(segment) {
    if (!this.playable) return;
    this.seek(segment.start);
    this.audio.play();
  }

  seek(seconds) {
    if (this.playable) this.audio.currentTime = seconds;
  }

  toggle() {
    if (this.playable) this.audio.paused ? this.audio.play() : this.audio.pause();
  }

  /** Updates the display to the playback position, on every frame while it plays. */
  follow() {
    const { paused, currentTime } = this.audio;
    document.body.classList.toggle("playing", !paused);
    $("play").setAttribute("aria-label", paused ? "Play" : "Pause");
    $("now").textContent = clock(currentTime);
    const active = this.segments.findLast(({ start, end }) => start <= currentTime && currentTime < end);
    this.waveform.update({ position: currentTime, active });
    this.moved(active);
    cancelAnimationFrame(this.frame);
    if (!paused) this.frame = requestAnimationFrame(() => this.follow());
  }
}

const next = (target, type) => new Promise((resolve) => target.addEventListener(type, resolve, { once: true }));

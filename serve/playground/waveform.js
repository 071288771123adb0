/** The waveform: a lane for each channel, segments in the colours of their speakers. */

import { clock } from "./formats.js";

const BAR = 2; // CSS pixels, and half as much between bars
const MIN_SCALE = 0.02; // full scale of the drawing at least, so that a silent recording is drawn flat
const STEPS = { ArrowLeft: -5, ArrowRight: 5, PageDown: -30, PageUp: 30, Home: -Infinity, End: Infinity }; // seconds

/**
 * Draws on a canvas that is also the position's slider: calls `seek(seconds)` for clicks, drags and keys.
 *
 * `update` takes any of: duration and position in seconds; peaks, one array for each channel; lanes, their
 * number; segments { channel, start, end, voice }; active, the segment that is playing.
 */
export class Waveform {
  constructor(canvas, seek) {
    this.canvas = canvas;
    this.shown = { duration: 0, position: 0, peaks: [], lanes: 1, segments: [], active: null };
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());

    const seekTo = (event) => {
      const { left, width } = canvas.getBoundingClientRect();
      seek(this.clamped(((event.clientX - left) / width) * this.shown.duration));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      seekTo(event);
    });
    canvas.addEventListener("pointermove", (event) => canvas.hasPointerCapture(event.pointerId) && seekTo(event));
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in STEPS)) return;
      event.preventDefault();
      seek(this.clamped(this.shown.position + STEPS[event.key]));
    });
  }

  update(changes) {
    Object.assign(this.shown, changes);
    const { position, duration } = this.shown;
    this.canvas.setAttribute("aria-valuemax", duration.toFixed(1));
    this.canvas.setAttribute("aria-valuenow", position.toFixed(1));
    this.canvas.setAttribute("aria-valuetext", `${clock(position)} of ${clock(duration)}`);
    this.draw();
  }

  clamped(seconds) {
    return Math.max(0, Math.min(this.shown.duration, seconds));
  }

  draw() {
    const { canvas, shown } = this;
    const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio];
    if (!width || !shown.duration) return;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const colours = getComputedStyle(canvas);
    const x = (seconds) => (seconds / shown.duration) * width;
    const laneHeight = height / shown.lanes;

    for (let lane = 0; lane < shown.lanes; lane++) {
      const top = lane * laneHeight;
      const segments = shown.segments.filter(({ channel }) => shown.lanes === 1 || channel === lane);
      for (const segment of segments) {
        pen.fillStyle = colours.getPropertyValue(`--voice-${segment.voice}`);
        pen.globalAlpha = segment === shown.active ? 0.28 : 0.12;
        pen.beginPath();
        pen.roundRect(x(segment.start), top + 1, Math.max(2, x(segment.end) - x(segment.start)), laneHeight - 2, 4);
        pen.fill();
      }
      this.drawBars(pen, lane, top, laneHeight, width, (seconds) => {
        const segment = segments.find(({ start, end }) => start <= seconds && seconds < end);
        return colours.getPropertyValue(segment ? `--voice-${segment.voice}` : "--wave");
      });
    }
    pen.globalAlpha = 1;
    pen.fillStyle = colours.getPropertyValue("--ink");
    pen.fillRect(Math.min(width - 2, x(shown.position)), 0, 2, height);
  }

  drawBars(pen, lane, top, laneHeight, width, colourAt) {
    const { peaks, lanes, duration, position } = this.shown;
    const drawn = lanes === 1 ? peaks : peaks.slice(lane, lane + 1);
    const loudest = Math.max(MIN_SCALE, ...peaks.map((channel) => channel.reduce((a, b) => Math.max(a, b), 0)));
    for (let left = 0; left < width; left += 1.5 * BAR) {
      const peak = Math.max(0, ...drawn.map((channel) => highest(channel, left / width, (left + 1.5 * BAR) / width)));
      const barHeight = Math.max(BAR, (peak / loudest) * (laneHeight - 8));
      const seconds = (left / width) * duration;
      pen.fillStyle = colourAt(seconds);
      pen.globalAlpha = seconds < position ? 1 : 0.6;
      pen.beginPath();
      pen.roundRect(left, top + (laneHeight - barHeight) / 2, BAR, barHeight, BAR / 2);
      pen.fill();
    }
  }
}

/** The highest peak between two fractions of the length. */
function highest(peaks, from, to) {
  const first = Math.floor(from * peaks.length);
  return peaks.subarray(first, Math.max(first + 1, Math.floor(to * peaks.length))).reduce((a, b) => Math.max(a, b), 0);
}

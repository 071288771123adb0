/** The transcript as a list: a line for each segment, which plays it when clicked. */

import { clock, speakerOf } from "./formats.js";

const VOICES = 4; // colours; a fifth speaker has the first's

/**
 * Fills an <ol>; calls `play(segment)` for the line that is clicked.
 *
 * The list is one tab stop; the arrow keys, Home and End move between lines.
 */
export class TranscriptView {
  constructor(list, play) {
    this.list = list;
    this.play = play;
    this.clear();
    list.addEventListener("keydown", (event) => this.move(event));
  }

  clear() {
    this.list.replaceChildren();
    this.list.classList.remove("several");
    this.lines = new Map(); // segment → its line
    this.voices = new Map(); // channel and speaker → number of a colour
    this.last = null;
    this.active = null;
  }

  /** Appends a line, and sets the segment's `voice`. */
  add(segment) {
    const who = `${segment.channel} ${segment.speaker}`;
    if (!this.voices.has(who)) this.voices.set(who, this.voices.size % VOICES);
    segment.voice = this.voices.get(who);
    const before = this.last;
    this.last = segment;
    if (before && before.channel !== segment.channel) this.list.classList.add("several");

    const line = document.createElement("li");
    line.classList.add(`voice-${segment.voice}`);
    line.classList.toggle("same", before?.voice === segment.voice);
    line.classList.toggle("nameless", !segment.speaker);
    line.append(this.timeButton(segment), element("strong", speakerOf(segment, true)), element("p", segment.text));
    line.addEventListener("click", () => getSelection().isCollapsed && this.play(segment)); // otherwise text is being selected
    this.list.append(line);
    this.lines.set(segment, line);
  }

  timeButton(segment) {
    const button = element("button", clock(segment.start));
    button.type = "button";
    button.tabIndex = this.lines.size ? -1 : 0;
    button.setAttribute("aria-label", `${clock(segment.start)}, play from here`);
    return button;
  }

  /** Marks the line that is playing, or none, and scrolls it into view. */
  activate(segment) {
    if (segment === this.active) return;
    this.lines.get(this.active)?.removeAttribute("aria-current");
    this.active = segment;
    const line = this.lines.get(segment);
    line?.setAttribute("aria-current", "true");
    line?.scrollIntoView({ block: "nearest" });
  }

  move(event) {
    const buttons = [...this.list.querySelectorAll("button")];
    const at = buttons.indexOf(event.target);
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || !buttons[to]) return;
    event.preventDefault();
    buttons[at].tabIndex = -1;
    buttons[to].tabIndex = 0;
    buttons[to].focus();
  }
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

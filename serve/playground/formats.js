/**
 * A transcript in the server's formats (speech/formats.py), without another request.
 *
 * A transcript is { text, segments: [{ channel, speaker, start, end, text }] }, times in seconds; its other fields
 * go into the JSON unchanged.
 */

export const FORMATS = {
  txt: { type: "text/plain", write: ({ text }) => `${text}\n` },
  srt: { type: "application/x-subrip", write: srt },
  vtt: { type: "text/vtt", write: vtt },
  json: { type: "application/json", write: json },
};

/** The speaker's name, or "Channel N" if there are several channels, or "". */
export function speakerOf(segment, several) {
  return segment.speaker || (several ? `Channel ${segment.channel + 1}` : "");
}

/** A time as 0:07, 12:30 or 1:02:03. */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

function srt(transcript) {
  return cues(transcript)
    .map(({ start, end, speaker, text }, index) => {
      return `${index + 1}\n${time(start, ",")} --> ${time(end, ",")}\n${speaker && `${speaker}: `}${text}\n`;
    })
    .join("\n");
}

function vtt(transcript) {
  const voice = (speaker) => speaker && `<v ${escaped(speaker)}>`;
  return `WEBVTT\n${cues(transcript)
    .map(({ start, end, speaker, text }) => {
      return `\n${time(start, ".")} --> ${time(end, ".")}\n${voice(speaker)}${escaped(text)}\n`;
    })
    .join("")}`;
}

function json(transcript) {
  const segments = transcript.segments.map(({ channel, speaker, start, end, text }) => ({ channel, speaker, start, end, text }));
  return `${JSON.stringify({ ...transcript, segments }, null, 2)}\n`;
}

function cues({ segments }) {
  const several = new Set(segments.map((segment) => segment.channel)).size > 1;
  return segments
    .map((segment) => ({ ...segment, text: oneLine(segment.text), speaker: oneLine(speakerOf(segment, several)) }))
    .filter(({ text }) => text);
}

// An empty line ends a cue; an arrow marks its times.
const oneLine = (text) => text.replaceAll("-->", "→").trim().replace(/\s+/g, " ");

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function time(seconds, mark) {
  const milliseconds = Math.round(seconds * 1000);
  const parts = [Math.floor(milliseconds / 3600000), Math.floor(milliseconds / 60000) % 60, Math.floor(milliseconds / 1000) % 60];
  return `${parts.map((part) => String(part).padStart(2, "0")).join(":")}${mark}${String(milliseconds % 1000).padStart(3, "0")}`;
}

/** What the browser makes of an audio file: samples, and from them the peaks of a waveform. */

const PEAKS = 2000; // more than a wide screen shows
const RATE = 8000; // enough to be seen, and the least that browsers decode to
// Browsers decode a file whole, at its own rate: an hour of stereo is over a gigabyte.
export const LONGEST_SEEN_S = 45 * 60;

/** The file as an AudioBuffer at `rate`; rejects what the browser cannot decode. */
export async function decoded(file, rate) {
  return new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
}

/** The loudest samples of a file over its length: { duration, channels: one array of 0…1 for each }. */
export async function peaksOf(file) {
  const audio = await decoded(file, RATE);
  const channels = Array.from({ length: audio.numberOfChannels }, (_, channel) => peaks(audio.getChannelData(channel)));
  return { duration: audio.duration, channels };
}

function peaks(samples) {
  const found = new Float32Array(Math.min(PEAKS, samples.length));
  for (let index = 0; index < samples.length; index++) {
    const at = Math.floor((index * found.length) / samples.length);
    found[at] = Math.max(found[at], Math.abs(samples[index]));
  }
  return found;
}

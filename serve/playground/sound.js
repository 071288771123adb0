/** Decodes an audio file in the browser: samples, and the peaks of a waveform. */

const PEAKS = 2000; // more than a wide screen shows
const RATE = 8000; // Hz, the lowest that browsers decode to; enough for a waveform
// Browsers decode a file whole, at its own rate: an hour of stereo is over a gigabyte.
export const MAX_WAVEFORM_S = 45 * 60;

/** The file as an AudioBuffer at `rate`; rejects what the browser cannot decode. */
export async function decoded(file, rate) {
  return new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
}

/** A file's peaks over time: { duration, channels: for each channel an array of 0…1 }. */
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

/** Records the microphone as WAV: browsers cannot seek in what MediaRecorder writes. */

import { decoded } from "./sound.js";

const RATE = 16000; // Hz, the models' sample rate

/** Whether the browser offers a microphone: only on https and localhost. */
export const hasMicrophone = () => Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder);

/**
 * Starts recording, once the browser has permission.
 *
 * Returns { level(), stop() }: the current peak level, from 0 to 1; and stop, which resolves to a File.
 */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
  const ended = new Promise((resolve) => recorder.addEventListener("stop", resolve));
  const meter = levelMeter(stream);
  recorder.start();
  return {
    level: meter.level,
    async stop() {
      recorder.stop();
      await ended;
      meter.close();
      stream.getTracks().forEach((track) => track.stop());
      const audio = await decoded(new Blob(parts), RATE);
      return new File([wav(audio.getChannelData(0), RATE)], "recording.wav", { type: "audio/wav" });
    },
  };
}

function levelMeter(stream) {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  return {
    level() {
      analyser.getFloatTimeDomainData(samples);
      return samples.reduce((loudest, sample) => Math.max(loudest, Math.abs(sample)), 0);
    },
    close: () => context.close(),
  };
}

/** A WAV file: a header of 44 bytes and 16-bit PCM, one channel. */
function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const ascii = (offset, text) => [...text].forEach((letter, index) => view.setUint8(offset + index, letter.charCodeAt(0)));
  ascii(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  ascii(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format that follow
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a frame
  view.setUint16(34, 16, true); // bits a sample
  ascii(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, index) => view.setInt16(44 + 2 * index, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return view.buffer;
}

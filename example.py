"""One recording to text, without Ray: python example.py [AUDIO [MODEL [ENGINE]]]

The Listener decodes the audio and cuts its speech into clips; the Transcriber has an engine decode them.
"""

import asyncio
import sys

from speech.engines.base import EngineConfig, start_engine
from speech.listener import Listener
from speech.preflight import preflight
from speech.recording import Recording
from speech.transcriber import Transcriber


def main(audio: str = "demo/samples/billing-001.wav", model: str = "demo/model", engine: str = "vllm") -> None:
    config = EngineConfig.model_validate({"model": model, "engine": engine})
    recording = Recording(id=audio, audio=audio, speakers=("agent", "customer"))
    family = preflight(config, recording.options, loads_here=True)
    listened = Listener(clip_s=family.clip_s).listen(recording)
    running = start_engine(config, family)
    try:
        transcriber = Transcriber(running, family, model, config.concurrent_clips)
        transcript = asyncio.run(transcriber.transcribe(recording, listened))
    finally:
        running.stop()
    for segment in transcript.segments:
        print(f"{segment.start_s:7.2f} {segment.speaker or segment.channel}: {segment.text}")


if __name__ == "__main__":  # vLLM's processes import this file again
    main(*sys.argv[1:])

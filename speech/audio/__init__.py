"""From the bytes of a recording to the clips that an engine decodes."""

SAMPLE_RATE = 16_000  # Hz; what the VAD and every model here were trained on

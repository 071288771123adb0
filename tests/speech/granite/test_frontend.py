"""The front end on the demo checkpoint: as Transformers computes it, and independent of the batch."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, GraniteSpeechForConditionalGeneration
from transformers.models.granite_speech_plus import GraniteSpeechPlusEncoderConfig
from transformers.models.granite_speech_plus.modeling_granite_speech_plus import GraniteSpeechPlusCTCEncoder

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest
from speech.granite.conformer import Conformer
from speech.granite.frontend import MAX_BLOCKS, EncodedClip, FrontEnd
from speech.granite.packing import Packing
from speech.granite.weights import UnknownWeightsError, Weights, read_tensors

pytestmark = pytest.mark.engine

MODEL = "demo/model"
CPU = torch.device("cpu")
FRAME = SAMPLE_RATE // 50  # samples of an encoder frame
# Of values about 1. Sums in another order, and products in float32, differ by so much.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def front_end() -> FrontEnd:
    return FrontEnd.load(MODEL, CPU, torch.float32)


@pytest.fixture(scope="module")
def clips(sample_clips: list[ClipRequest]) -> list[np.ndarray]:
    """Whole clips, and cuts whose lengths are about multiples of a block, of a window and of a frame."""
    longest = np.concatenate([clip.samples for clip in sample_clips[:12]])
    # A clip of FRAME * n - 1 samples has n frames: one for each 20 ms begun.
    lengths = [FRAME * frames - 1 for frames in (1, 2, 14, 15, 16, 199, 200, 201, 207, 208, 400, 401, 600)]
    lengths += [FRAME * 200 - 161, FRAME * 200 - 160, FRAME * 200]
    return [clip.samples for clip in sample_clips[:40]] + [longest[-length:] for length in lengths]


@pytest.fixture(scope="module")
def encoded(front_end: FrontEnd, clips: list[np.ndarray]) -> list[EncodedClip]:
    return front_end.encode(clips)


def test_embeddings_and_reading_are_those_of_transformers(encoded: list[EncodedClip], clips: list[np.ndarray]) -> None:
    model: Any = GraniteSpeechForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval().model
    extractor = AutoProcessor.from_pretrained(MODEL).audio_processor
    with torch.inference_mode():
        for samples, clip in zip(clips, encoded, strict=True):
            features = extractor(torch.from_numpy(samples.astype(np.float32) / 32768.0)[None])["input_features"]
            states = model.encoder(features).last_hidden_state
            torch.testing.assert_close(clip.embeddings, model.projector(states)[0], rtol=0, atol=TOLERANCE)
            posteriors = model.encoder.out(states)[0].softmax(-1)
            torch.testing.assert_close(clip.hypothesis.log_posteriors.exp(), posteriors, rtol=0, atol=TOLERANCE)


def test_a_clip_does_not_depend_on_its_batch(
    front_end: FrontEnd, clips: list[np.ndarray], encoded: list[EncodedClip]
) -> None:
    rng = random.Random(0)
    noise = (np.random.default_rng(0).standard_normal(FRAME * 200 - 1) * 10000).astype(np.int16)
    for _ in range(10):
        chosen = rng.choices(range(len(clips)), k=rng.randint(1, 20))
        batch = [samples for index in chosen for samples in (noise, clips[index])]
        for index, clip in zip(chosen, front_end.encode(batch)[1::2], strict=True):
            torch.testing.assert_close(clip.embeddings, encoded[index].embeddings, rtol=0, atol=TOLERANCE)
            assert clip.hypothesis.text == encoded[index].hypothesis.text


def test_passes_have_every_clip_once_and_no_more_blocks_than_allowed(front_end: FrontEnd) -> None:
    rng = random.Random(0)
    for _ in range(50):
        samples = [rng.randint(SAMPLE_RATE // 2, 30 * SAMPLE_RATE) for _ in range(rng.randint(1, 60))]
        passes = list(front_end.passes(samples))
        assert [count for part in passes for count in samples[part]] == samples
        for part in passes:
            assert sum(-(-(count // 160 + 1) // 400) for count in samples[part]) <= MAX_BLOCKS["cpu"]


def test_speech_plus_gives_earlier_layers_to_the_projector() -> None:
    torch.manual_seed(0)
    config = GraniteSpeechPlusEncoderConfig(
        num_layers=4, hidden_dim=32, num_heads=2, dim_head=16, output_dim=20, cat_hidden_layers=[0, 2]
    )
    reference = GraniteSpeechPlusCTCEncoder(config).eval()
    weights = Weights({name: tensor.detach() for name, tensor in reference.state_dict().items()})
    features = torch.randn(450, config.input_dim)
    packing = Packing([450], config.context_size, CPU)
    with torch.inference_mode():
        found = Conformer(config, weights)(packing.pack(features), packing).flatten(0, 1)[packing.rows]
        expected = reference(features[None]).last_hidden_state[0]
    assert found.shape == (450, 3 * 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("change", ["missing", "added"])
def test_a_checkpoint_with_other_tensors_is_refused(change: str) -> None:
    from transformers import AutoConfig

    tensors = read_tensors(Path(MODEL), ("encoder", "projector"), CPU, torch.float32)
    if change == "missing":
        del tensors["encoder.layers.1.conv.norm.bias"]
    else:
        tensors["encoder.layers.1.attn.to_q.lora_A.weight"] = torch.zeros(1)
    with pytest.raises(UnknownWeightsError, match=r"layers\.1\.(conv\.norm\.bias|attn\.to_q\.lora_A)"):
        FrontEnd(AutoConfig.from_pretrained(MODEL), log_mel=None, tensors=tensors)  # type: ignore[arg-type]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownWeightsError, match="encoder"):
        read_tensors(tmp_path, ("encoder",), CPU, torch.float32)


def test_a_pass_that_does_not_fit_the_memory_is_made_in_parts(
    clips: list[np.ndarray], encoded: list[EncodedClip], monkeypatch: pytest.MonkeyPatch
) -> None:
    front_end, together = FrontEnd.load(MODEL, CPU, torch.float32), []
    encode = front_end._encode

    def on_a_small_gpu(waveforms: list[torch.Tensor]) -> list[EncodedClip]:
        if len(waveforms) > 3:
            raise torch.OutOfMemoryError
        together.append(len(waveforms))
        return encode(waveforms)

    monkeypatch.setattr(front_end, "_encode", on_a_small_gpu)
    found = front_end.encode(clips[:20])
    assert sum(together) == 20
    assert front_end._max_blocks < MAX_BLOCKS["cpu"]
    for clip, expected in zip(found, encoded, strict=False):
        torch.testing.assert_close(clip.embeddings, expected.embeddings, rtol=0, atol=TOLERANCE)

"""Granite Speech for vLLM, with a batch-invariant encoder (``speech.granite.encoder``).

Subclasses of vLLM's own models, registered in their place by ``speech.granite.plugin``.
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.granite_speech import (
    GraniteSpeechDummyInputsBuilder,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechMultiModalProcessor,
    GraniteSpeechProcessingInfo,
)
from vllm.model_executor.models.granite_speech_plus import GraniteSpeechPlusForConditionalGeneration
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.multimodal import MULTIMODAL_REGISTRY

from speech.granite import ctc
from speech.granite.encoder import BatchInvariantEncoder, similar_lengths
from speech.granite.runner import check_model


class BatchInvariantAudio:
    """Encodes clips in batches of similar length; the embeddings of a clip do not depend on its batch."""

    config: PreTrainedConfig
    encoder: BatchInvariantEncoder
    projector: torch.nn.Module
    # ctc.CtcHypothesis by the embeddings returned for its clip. vLLM keeps those very tensors in its encoder cache:
    # a hypothesis lives as long as they do, is found again after a cache hit, and needs no id of the clip.
    # None: CTC decoding is off.
    _ctc_hypotheses: WeakTensorKeyDictionary | None = None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]  # of vLLM's model
        # vLLM's proposers with a draft model read this attribute of any multimodal target model.
        self.config.image_token_index = self.config.audio_token_index
        check_model(self)

    def enable_ctc(self) -> WeakTensorKeyDictionary:
        """Turns CTC decoding on for all clips from now on; returns the hypotheses by embeddings."""
        if self._ctc_hypotheses is None:
            self._ctc_hypotheses = WeakTensorKeyDictionary()
        return self._ctc_hypotheses

    def _build_encoder(
        self, config: PreTrainedConfig, quant_config: QuantizationConfig | None, prefix: str
    ) -> BatchInvariantEncoder:
        return BatchInvariantEncoder(config=config, quant_config=quant_config, prefix=prefix)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Audio embeddings of each clip, shape (audio tokens, LLM hidden), in the order given."""
        features, sizes = kwargs.get("input_features"), kwargs.get("audio_embed_sizes")
        if features is None:
            return []
        assert isinstance(features, torch.Tensor | list)
        assert isinstance(sizes, torch.Tensor)
        weight = self.encoder.input_linear.weight
        clips = [clip.reshape(-1, clip.shape[-1]).to(weight.dtype) for clip in features]
        audio_tokens = sizes.flatten().tolist()
        embeddings: list[torch.Tensor | None] = [None] * len(clips)
        for group in similar_lengths([len(clip) for clip in clips]):
            batch = pad_sequence([clips[index] for index in group], batch_first=True)
            lengths = torch.tensor([len(clips[index]) for index in group], device=batch.device)
            states = self.encoder(batch, lengths)
            projected = self.projector(states)
            for row, index in enumerate(group):
                embeddings[index] = projected[row, : audio_tokens[index]]
            if self._ctc_hypotheses is not None:
                hypotheses = ctc.decode(self.encoder.ctc_logits(states), [len(clips[index]) for index in group])
                for index, hypothesis in zip(group, hypotheses, strict=True):
                    self._ctc_hypotheses[embeddings[index]] = hypothesis
        return tuple(embedding for embedding in embeddings if embedding is not None)


@MULTIMODAL_REGISTRY.register_processor(
    GraniteSpeechMultiModalProcessor, info=GraniteSpeechProcessingInfo, dummy_inputs=GraniteSpeechDummyInputsBuilder
)
class BatchInvariantGraniteSpeech(BatchInvariantAudio, GraniteSpeechForConditionalGeneration):
    """Granite Speech 3.x, 4.0 and 4.1."""


@MULTIMODAL_REGISTRY.register_processor(
    GraniteSpeechMultiModalProcessor, info=GraniteSpeechProcessingInfo, dummy_inputs=GraniteSpeechDummyInputsBuilder
)
class BatchInvariantGraniteSpeechPlus(BatchInvariantAudio, GraniteSpeechPlusForConditionalGeneration):
    """Granite Speech 4.1 plus."""

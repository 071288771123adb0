"""Writes the demo model as GGUF, for llama.cpp: python -m demo.to_gguf [FOLDER]

Two files, as llama.cpp wants them: the language model with its vocabulary, and ``mmproj``, encoder and projector.
Names of keys and tensors are the ``gguf`` package's own; what llama.cpp expects in them is as in its converter
(conversion/granite.py of ggml-org/llama.cpp, which also converts the checkpoints of IBM): queries and keys with the
halves of each head interleaved, BatchNorm as scale and offset, keys and values of the encoder apart. All is float32, so
that llama.cpp computes what Transformers does.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file

MODEL = Path("demo/model")
FOLDER = Path("out/demo-gguf")
LANGUAGE_MODEL, MMPROJ = "granite-speech-demo-f32.gguf", "mmproj-model-f32.gguf"
NORM_EPS = 1e-5  # of the encoder's norms: PyTorch's default, not in the config

Tensors = Iterator[tuple[str, torch.Tensor]]


def write(folder: Path = FOLDER) -> None:
    """Writes both files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.float() for name, tensor in load_file(MODEL / "model.safetensors").items()}
    _write_language_model(folder / LANGUAGE_MODEL, tensors)
    _write_mmproj(folder / MMPROJ, tensors)


def _write_language_model(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    config = json.loads((MODEL / "config.json").read_text())["text_config"]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GRANITE])
    writer.add_name("Granite Speech demo")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GRANITE, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    _write(writer, names, _language_model(tensors, heads))


def _language_model(tensors: dict[str, torch.Tensor], heads: dict[str, int]) -> Tensors:
    """The language model's tensors; the output layer is tied to the embeddings."""
    for name, tensor in tensors.items():
        if not name.startswith("language_model."):
            continue
        count = heads.get(name.split(".")[-2])
        # Transformers rotates the first half of a head against the second, llama.cpp each value against the next.
        tensor = tensor if count is None else tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        yield name.removeprefix("language_model."), tensor


def _add_vocabulary(writer: gguf.GGUFWriter, config: dict[str, int]) -> None:
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    assert len(tokens) == config["vocab_size"]
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("gpt-2")  # its pattern of words
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((MODEL / "chat_template.jinja").read_text())


def _write_mmproj(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    encoder, projector = config["encoder_config"], config["projector_config"]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ])
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name("Granite Speech demo")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_audio_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.GRANITE_SPEECH)
    writer.add_audio_projection_dim(config["text_config"]["hidden_size"])
    writer.add_audio_embedding_length(encoder["hidden_dim"])
    writer.add_audio_feed_forward_length(encoder["hidden_dim"] * encoder["feedforward_mult"])
    writer.add_audio_block_count(encoder["num_layers"])
    writer.add_audio_head_count(encoder["num_heads"])
    writer.add_audio_num_mel_bins(encoder["input_dim"])
    writer.add_audio_attention_layernorm_eps(NORM_EPS)
    writer.add_audio_chunk_size(encoder["context_size"])
    writer.add_audio_conv_kernel_size(encoder["conv_kernel_size"])
    writer.add_audio_max_pos_emb(encoder["max_pos_emb"])
    writer.add_audio_projector_window_size(config["window_size"])
    writer.add_audio_projector_downsample_rate(config["downsample_rate"])
    writer.add_audio_projector_head_count(projector["num_attention_heads"])
    layers = max(encoder["num_layers"], projector["num_hidden_layers"])
    _write(writer, gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers), _encoder(tensors))


def _encoder(tensors: dict[str, torch.Tensor]) -> Tensors:
    """The tensors of encoder and projector."""
    for name, tensor in tensors.items():
        if name.startswith("language_model.") or "batch_norm" in name:
            continue
        if name.endswith("to_kv.weight"):
            keys, values = tensor.chunk(2)
            yield name.replace("to_kv", "to_k"), keys
            yield name.replace("to_kv", "to_v"), values
        else:
            yield name, tensor.squeeze() if "_conv" in name else tensor
    for prefix in [name.removesuffix(".running_var") for name in tensors if name.endswith(".running_var")]:
        scale = tensors[f"{prefix}.weight"] / torch.sqrt(tensors[f"{prefix}.running_var"] + NORM_EPS)
        yield f"{prefix}.weight", scale
        yield f"{prefix}.bias", tensors[f"{prefix}.bias"] - scale * tensors[f"{prefix}.running_mean"]


def _write(writer: gguf.GGUFWriter, names: gguf.TensorNameMap, tensors: Tensors) -> None:
    for name, tensor in tensors:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"the gguf package has no name for {name}"
        writer.add_tensor(found, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))

"""A folder of GGUF files: a language model, and ``mmproj``, which has the encoder and the projector of its audio."""

from functools import cached_property
from pathlib import Path
from typing import Any

from speech.errors import UsageError

HOP = 160  # samples between frames of the spectrogram
PROJECTOR = "granite_speech"


class GgufFolder:
    """The two files that llama.cpp needs of a Granite Speech.

    Args:
        folder: with one file named ``mmproj*.gguf``, as llama.cpp's converter writes, and one other.

    Raises:
        UsageError: ``unknown_model`` where they are not there or of another model.
    """

    def __init__(self, folder: str) -> None:
        if not Path(folder).is_dir():
            raise UsageError(
                "unknown_model",
                f"{folder} is no folder here: the llamacpp engine needs one with the GGUF files of a Granite Speech",
            )
        files = sorted(Path(folder).glob("*.gguf"))
        mmproj = [file for file in files if file.name.startswith("mmproj")]
        others = [file for file in files if file not in mmproj]
        if len(mmproj) != 1 or len(others) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise UsageError(
                "unknown_model",
                f"{folder} must have two GGUF files, a Granite Speech and its mmproj*.gguf; it has {found}",
            )
        [self.mmproj], [self.language_model] = mmproj, others

    @property
    def name(self) -> str:
        """What folder, file and metadata call the model."""
        file = self.language_model.absolute()
        return f"{file.parent.name} {file.name} {self._metadata.get('general.name', '')}"

    def check(self) -> None:
        """
        Raises:
            UsageError: ``unknown_model`` unless ``mmproj`` is that of a Granite Speech.
        """
        found = self._metadata.get("clip.projector_type") or self._metadata.get("clip.audio.projector_type")
        if found != PROJECTOR:
            raise UsageError(
                "unknown_model",
                f"{self.mmproj} is not of a Granite Speech (projector {found!r}); the llamacpp engine runs no other",
            )

    def audio_tokens(self, samples: int) -> int:
        """Tokens of the prompt that stand for a clip of so many samples."""
        keys = ("clip.audio.projector.window_size", "clip.audio.projector.downsample_rate")
        window, rate = (self._metadata[key] for key in keys)
        frames = (samples // HOP + 1) // 2  # the spectrogram's, two at a time
        return -(-frames // window) * (window // rate)

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """The metadata of ``mmproj``, by key."""
        try:
            from gguf import GGUFReader

            fields = GGUFReader(self.mmproj).fields
        except ModuleNotFoundError as error:
            raise UsageError(
                "bad_engine", f"the llamacpp engine needs {error.name}: pip install 'rayscribe[llamacpp]'"
            ) from error
        except ValueError as error:
            raise UsageError("unknown_model", f"{self.mmproj} cannot be read as GGUF: {error}") from error
        return {key: field.contents() for key, field in fields.items()}

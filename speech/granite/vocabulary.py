"""The text of a tokenizer's tokens, one by one."""

from typing import Protocol


class Tokenizer(Protocol):
    """As much of a Hugging Face tokenizer as is used here."""

    @property
    def all_special_ids(self) -> list[int]: ...

    def get_vocab(self) -> dict[str, int]: ...


_SPECIAL = "\0"


class Vocabulary:
    """The text of a tokenizer's tokens, in its own alphabet (``Ġ`` for a space, and the like)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens: dict[str, int] = tokenizer.get_vocab()
        self._texts = {token: text for text, token in self._tokens.items()}
        # Special tokens have no text: a character that no text has, so that no draft resumes within one.
        self._texts |= dict.fromkeys(tokenizer.all_special_ids, _SPECIAL)

    def text_of(self, token: int) -> str:
        """A token's text; empty for an id that only pads the embedding table."""
        return self._texts.get(token, "")

    def byte_length_of(self, token: int) -> int:
        """Bytes of the token in a decoded text, UTF-8: a character each in the alphabet of byte-level BPE."""
        text = self.text_of(token)
        return 0 if text == _SPECIAL else len(text)

    def token_of(self, text: str) -> int | None:
        """The token with exactly this text, if there is one."""
        return self._tokens.get(text)

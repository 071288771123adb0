"""Who may use the endpoint: API keys, of which only hashes are held."""

import hashlib
import hmac
from pathlib import Path

from speech.errors import UsageError

HASHED = "sha256:"


class ApiKeys:
    """The keys of a file, one a line, as they are or as ``sha256:HEX``; lines that begin with # are notes.

    The file is read again when it has changed, so that a secret that is rotated counts at once.

    Raises:
        UsageError: ``bad_api_keys`` where there is no such file, or no key in it.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._read_at: int | None = None
        self._hashes: list[bytes] = []
        self._refresh()

    def admit(self, key: str) -> bool:
        """Whether ``key`` is one of them. All are compared, in constant time: the time it takes tells nothing."""
        self._refresh()
        presented = hashlib.sha256(key.encode()).digest()
        return sum(hmac.compare_digest(presented, known) for known in self._hashes) > 0

    def _refresh(self) -> None:
        try:
            changed_at = self._path.stat().st_mtime_ns
            if changed_at == self._read_at:
                return
            lines = [line.strip() for line in self._path.read_text().splitlines()]
            hashes = [_hash(line) for line in lines if line and not line.startswith("#")]
        except (OSError, ValueError) as error:  # no text of the file: it may hold a key
            raise UsageError("bad_api_keys", f"cannot read keys from {self._path}: {type(error).__name__}") from error
        if not hashes:
            raise UsageError("bad_api_keys", f"{self._path} holds no key")
        self._hashes, self._read_at = hashes, changed_at


def _hash(line: str) -> bytes:
    if line.startswith(HASHED):
        digest = bytes.fromhex(line.removeprefix(HASHED))
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError("not a SHA-256")
        return digest
    return hashlib.sha256(line.encode()).digest()

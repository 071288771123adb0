"""A folder of numbered JSON files, of which the one with the highest number counts: FOLDER/00000007.json.

The next number is created if it does not exist, which only one of several processes can. It then removes earlier ones.
"""

import json
from typing import Any

from storage.filesystem import Storage
from storage.uris import join


class NumberedFiles:
    """The files of one folder. Picklable."""

    def __init__(self, folder: str, storage: Storage) -> None:
        self._folder, self._storage = folder, storage

    def numbers(self) -> list[int]:
        """In ascending order."""
        names = (uri.rsplit("/", 1)[-1] for uri in self._storage.list(self._folder))
        return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The highest number and the content of its file; None if there is no file."""
        while numbers := self.numbers():
            content = self._storage.read_json(self._uri(numbers[-1]))
            if content is not None:  # else a higher one was created since the listing, and this one removed
                return numbers[-1], content
        return None

    def create(self, number: int, content: dict[str, Any]) -> bool:
        """Writes a file that does not exist; False if it does. Equal content counts as written by this call."""
        return self._storage.create_bytes(self._uri(number), json.dumps(content).encode())

    def write(self, number: int, content: dict[str, Any]) -> None:
        """Writes or overwrites a file."""
        self._storage.write_bytes(self._uri(number), json.dumps(content).encode())

    def remove_below(self, limit: int) -> None:
        """Removes the files with numbers below ``limit``."""
        for number in self.numbers():
            if number < limit:
                self._storage.remove(self._uri(number))

    def _uri(self, number: int) -> str:
        return join(self._folder, f"{number:08}.json")

"""Which of several models takes a recording: the first of ``models`` that matches its row and has what it asks for.

    models:
      - model: ibm-granite/granite-4.0-1b-speech
        languages: [en, fr, de, es, pt, ja]
      - model: nvidia/parakeet-tdt-0.6b-v3
        engine: encoder
        where: {tier: cheap}
      - model: openai/whisper-large-v3

Where the language is to be detected, the first model that can do so takes the recording; ``choose_model`` is asked
again with the language that it finds.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator

from speech.engines.base import EngineConfig
from speech.errors import RequestError
from speech.models.checkpoint import family_of
from speech.models.families import Family
from speech.recording import AUTO, Options, as_list, row_options

ANY = "any"
MAX_KNOWN = 10_000  # combinations of options that are remembered


class ModelRule(EngineConfig):
    """One model with the settings of its engine, and the recordings that it takes."""

    languages: tuple[str, ...] = Field((), description="languages that it takes (default: any that the model has)")
    where: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="columns of the manifest, each with the value or the values that it must have"
    )

    @field_validator("languages", mode="before")
    @classmethod
    def _split_languages(cls, value: Any) -> Any:
        languages = as_list(value)
        if languages == [ANY]:
            return ()
        # YAML reads the code of Norwegian as false.
        return ["no" if each is False else each for each in languages] if isinstance(languages, list) else languages

    @field_validator("where", mode="before")
    @classmethod
    def _fold_values(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        lists = {name: each if isinstance(each, list | tuple) else [each] for name, each in value.items()}
        return {str(name): [_folded(each) for each in values] for name, values in lists.items()}

    @cached_property
    def family(self) -> Family:
        """The model's family, as the engine runs it.

        Raises:
            UsageError: as of ``family_of``.
        """
        return family_of(self.model, self.engine)

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether a row's columns have the values of ``where``."""
        return all(_folded(row.get(name)) in values for name, values in self.where.items())

    def check(self, options: Options) -> None:
        """Refuses what the model does not have, or is not to take.

        Raises:
            RequestError: as of ``Family.check``.
        """
        self.family.check(options)
        if self.languages and options.language not in (*self.languages, AUTO):
            raise RequestError(
                "unsupported_language",
                f"{self.model} is given {', '.join(sorted(self.languages))} alone, not {options.language!r}",
            )


def choose_model(rules: Sequence[ModelRule], options: Options, row: Mapping[str, Any]) -> int:
    """The position of the rule that takes a recording.

    Args:
        rules: in order of preference.
        options: of the recording.
        row: its columns of the manifest.

    Raises:
        RequestError: ``no_model`` where no rule matches the row; else the code of the last one that does, with what
            each of them lacks.
    """
    matching = [(position, rule) for position, rule in enumerate(rules) if rule.matches(row)]
    if not matching:
        raise RequestError("no_model", "no entry of 'models' has a 'where' that this row meets: add one without")
    refusals = []
    for position, rule in matching:
        try:
            if options.language != AUTO or len(matching) == 1:
                rule.check(options)
            else:
                # Another model may be the one that transcribes, and have the other options.
                rule.family.check_detection()
        except RequestError as refused:
            refusals.append(refused)
        else:
            return position
    raise RequestError(refusals[-1].code, "; ".join(dict.fromkeys(refusal.message for refusal in refusals)))


class ModelChoice:
    """``choose_model`` for many rows of a manifest, of which most have the same options.

    Args:
        rules: in order of preference.
        defaults: options of rows that do not set them.
    """

    def __init__(self, rules: Sequence[ModelRule], defaults: Options) -> None:
        self._rules, self._defaults = rules, defaults
        self._known: dict[str, int] = {}
        self._columns = {*Options.model_fields, *(name for rule in rules for name in rule.where)}

    def of(self, row: Mapping[str, Any]) -> int:
        """The position of the row's rule; 0 for a row that none takes, which fails with its code where it is heard."""
        if len(self._rules) == 1:
            return 0
        cells = {name: row[name] for name in self._columns & row.keys()}
        key = json.dumps(cells, default=str, sort_keys=True)
        if key not in self._known:
            if len(self._known) >= MAX_KNOWN:  # keywords of their own in every row
                self._known.clear()
            self._known[key] = self._choose(cells)
        return self._known[key]

    def _choose(self, cells: Mapping[str, Any]) -> int:
        try:
            return choose_model(self._rules, row_options(cells, self._defaults), cells)
        except RequestError:
            return 0


def _folded(value: Any) -> str:
    """A cell as text: CSV has no numbers and no booleans, JSON and YAML do."""
    return "" if value is None else str(value).strip().casefold()

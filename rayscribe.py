"""The command line: parses arguments, calls a package, prints the result or one line of error."""

import argparse
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from speech.errors import RayscribeError, UsageError
from speech.json_objects import RepeatedNameError, parse_json

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from cluster.settings import Settings
    from pipelines.job import Job
    from pipelines.summary import Summary

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_SOME_FAILED = 0, 1, 2, 3
# Options with secrets are not safe on a command line, which every user of the machine can read.
STORAGE_OPTIONS_VARIABLE = "RAYSCRIBE_STORAGE_OPTIONS"
NO_FLAGS = frozenset({"models"})  # a list of groups of settings: in the YAML of --config alone
EXIT_BY_SIGNAL = 128  # and the signal's number, as shells have it

STOPPED = "stopped; what is done is kept, and the same command again continues"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (see the README).

    All other packages are imported within: a signal in these tenths of a second ends it like one later, without a
    traceback.
    """
    # SIGTERM (spot preemption) must unwind the run, so that it releases the lease on its output.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    command = None
    try:
        parsed = _parser().parse_args(arguments)
        command = parsed.command
        if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that are not UTF-8
            sys.stdout.reconfigure(errors="backslashreplace")
        code: int = command(parsed)
        return code
    except UsageError as error:
        return _print_error(error.message, EXIT_USAGE)
    except RayscribeError as error:
        return _print_error(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _stopped(command, signal.SIGINT)
    except SystemExit as ended:
        if ended.code == signal.SIGTERM:
            return _stopped(command, signal.SIGTERM)
        raise


def _stopped(command: Callable[[argparse.Namespace], int] | None, number: signal.Signals) -> int:
    """The exit code after a signal. Before a command has begun there is nothing to say."""
    code = EXIT_BY_SIGNAL + number
    if command is None:
        return code
    return _print_error(STOPPED if command in (_transcribe, _retry) else "stopped", code)


def _transcribe(parsed: argparse.Namespace) -> int:
    from pipelines.job import Job

    job = Job.from_settings(_settings(parsed, Job))
    from pipelines.run import run

    summary = run(job)
    summary.print(job.output)
    return _finished(job, summary)


def _retry(parsed: argparse.Namespace) -> int:
    from pipelines.job import Job
    from pipelines.output import Output
    from pipelines.run import retry
    from storage.filesystem import Storage

    settings = _settings(parsed, Job)
    asked = Output(parsed.output, Storage(settings.get("storage_options"))).require_job()
    instead = {"model": "models", "models": "model"}  # one model in place of several, or several in place of one
    before = {name: value for name, value in asked["settings"].items() if instead.get(name) not in settings}
    job = Job.from_settings({"manifest": asked["manifest"], **before, **settings})
    summary = retry(job)
    summary.print(parsed.output)
    return _finished(job, summary)


def _finished(job: "Job", summary: "Summary") -> int:
    """The exit code of a run that has come to its end."""
    return EXIT_SOME_FAILED if summary.any_failed and not job.accept_failed else EXIT_OK


def _status(parsed: argparse.Namespace) -> int:
    from pipelines.status import read_status

    read_status(parsed.output, _storage_options(parsed)).print(each_failure=parsed.failed)
    return EXIT_OK


def _export(parsed: argparse.Namespace) -> int:
    from pipelines.export import export

    exported = export(parsed.output, parsed.format, parsed.to, _storage_options(parsed))
    print(f"{exported.files} transcripts in {parsed.to}")
    if exported.shortened:
        print(f"{exported.shortened} ids are too long for a file name: cut, and ended with a hash of the id")
    return EXIT_OK


def _serve(parsed: argparse.Namespace) -> int:
    from serve.settings import ServeSettings

    settings = ServeSettings.from_settings(_settings(parsed, ServeSettings))
    from serve.server import run

    run(settings)
    return EXIT_OK


def _evaluate(parsed: argparse.Namespace) -> int:
    from pipelines.evaluate import evaluate

    evaluate(parsed.output, parsed.manifest, _storage_options(parsed)).print()
    return EXIT_OK


def _doctor(parsed: argparse.Namespace) -> int:
    from cluster.doctor import DoctorSettings, examine

    settings = DoctorSettings.from_settings(
        {name: value for name, value in vars(parsed).items() if name in DoctorSettings.flat_fields()}
    )
    return examine(settings.model, cluster=settings.cluster)


def _plan(parsed: argparse.Namespace) -> int:
    from planning.estimate import estimate
    from planning.report import print_plan
    from planning.settings import PlanSettings
    from planning.simulation import simulate
    from storage.filesystem import Storage

    settings = PlanSettings.from_settings(_settings(parsed, PlanSettings))
    rates = settings.known_rates()
    if settings.calibrate:
        from planning.calibrate import calibrate

        rates = settings.known_rates(calibrate(settings.calibrate, settings.engine_config, rates))
        if settings.rates:
            Storage().write_bytes(settings.rates, rates.to_json().encode())
    planned = settings.workload(), settings.machines(), rates
    expected = estimate(*planned, settings.faults())
    print_plan(*planned, expected, simulate(*planned, settings.faults()))
    return EXIT_OK


class _Parser(argparse.ArgumentParser):
    """Refuses arguments in one line, as all else is refused. argparse would print every option first."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("bad_option", f"{message} ({self.prog} --help explains)")


def _parser() -> argparse.ArgumentParser:
    from cluster.settings import ClusterConfig
    from pipelines.job import Job
    from planning.settings import PlanSettings
    from serve.settings import ServeSettings
    from speech.formats import TranscriptFormat

    fields = Job.flat_fields()
    parser = _Parser(prog="rayscribe", description="Bulk speech transcription on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    transcribe = commands.add_parser("transcribe", help="a manifest of recordings in, Parquet transcripts out")
    transcribe.set_defaults(command=_transcribe)
    transcribe.add_argument("manifest", nargs="?", default=argparse.SUPPRESS, help=fields["manifest"].description)
    _add_settings(transcribe, {name: field for name, field in fields.items() if name != "manifest"})
    _add_keywords_file(transcribe)

    retry = commands.add_parser("retry", help="transcribe again only the recordings that failed in an output")
    retry.set_defaults(command=_retry)
    retry.add_argument("output", help="the output folder of a run, whose manifest and options are used again")
    _add_settings(retry, {name: field for name, field in fields.items() if name != "output"})
    _add_keywords_file(retry)

    status = commands.add_parser("status", help="how many recordings are done, and which failed and why")
    status.set_defaults(command=_status)
    status.add_argument("output", help="the output folder of a run, finished or not")
    status.add_argument("--failed", action="store_true", help="name each failed recording")
    _add_flag(status, "storage_options", fields["storage_options"])

    evaluate = commands.add_parser("evaluate", help="word error rate against the manifest's reference transcripts")
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("output", help="the output folder of a run")
    evaluate.add_argument("--manifest", help="a manifest with the reference transcripts, if not the one of the run")
    _add_flag(evaluate, "storage_options", fields["storage_options"])

    export = commands.add_parser("export", help="the transcripts of an output as files, one a recording")
    export.set_defaults(command=_export)
    export.add_argument("output", help="the output folder of a run")
    export.add_argument("--format", required=True, choices=get_args(TranscriptFormat), help="text, subtitles or JSON")
    export.add_argument("--to", required=True, metavar="DIR", help="folder for the files, on a disk or in a bucket")
    _add_flag(export, "storage_options", fields["storage_options"])

    serve = commands.add_parser("serve", help="an endpoint for OpenAI's clients, and a page to try it")
    serve.set_defaults(command=_serve)
    _add_settings(serve, ServeSettings.flat_fields())

    plan = commands.add_parser("plan", help="how long a backfill will take, what it will cost, and what limits it")
    plan.set_defaults(command=_plan)
    _add_settings(plan, PlanSettings.flat_fields())

    doctor = commands.add_parser("doctor", help="checks this machine; prints the command that fixes each problem")
    doctor.set_defaults(command=_doctor)
    for name in ("model", *ClusterConfig.model_fields):
        _add_flag(doctor, name, fields[name])
    return parser


def _add_settings(parser: argparse.ArgumentParser, fields: Mapping[str, "FieldInfo"]) -> None:
    for name, field in fields.items():
        if name not in NO_FLAGS:
            _add_flag(parser, name, field)
    parser.add_argument("--config", metavar="FILE", help="YAML of any of these options; flags win over it")


def _add_keywords_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keywords-file", metavar="FILE", help="keywords, one a line")


def _add_flag(parser: argparse.ArgumentParser, name: str, field: "FieldInfo") -> None:
    """Adds a flag for a setting, with name, choices and help from the field that defines it."""
    kind: Any = field.annotation
    choices = get_args(kind) if get_origin(kind) is Literal else None
    given = "" if field.is_required() or not field.default or field.default_factory else f" (default: {field.default})"
    arguments: dict[str, Any] = {"help": f"{field.description}{given}".replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        arguments["action"] = argparse.BooleanOptionalAction
    elif choices:
        arguments["choices"] = choices
    else:
        arguments["metavar"] = "JSON|@FILE" if name == "storage_options" else name.upper()
    parser.add_argument(f"--{name.replace('_', '-')}", **arguments)


def _settings(parsed: argparse.Namespace, kind: "type[Settings]") -> dict[str, Any]:
    """The settings of --config, overridden by those given as flags."""
    known = kind.flat_fields()
    flags = {name: value for name, value in vars(parsed).items() if name in known}
    if getattr(parsed, "keywords_file", None):
        if "keywords" in flags:
            raise UsageError("bad_option", "give --keywords or --keywords-file, not both")
        flags["keywords"] = [line for line in _read(parsed.keywords_file).splitlines() if line.strip()]
    settings = (_yaml(parsed.config) if parsed.config else {}) | flags
    if "storage_options" in known and ("storage_options" in flags or "storage_options" not in settings):
        settings["storage_options"] = _storage_options(parsed)
    return settings


def _yaml(path: str) -> dict[str, Any]:
    import yaml

    text = _read(path)
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError("bad_config", f"{path}{place} is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UsageError("bad_config", f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UsageError("bad_config", f"{path} should hold options as 'name: value' lines")
    root = yaml.compose(text, yaml.SafeLoader)
    for name, _ in root.value if isinstance(root, yaml.MappingNode) else ():  # not in an empty file
        name.value = _setting(name.value)
    if repeated := next(_repeated_names(root), None):
        raise UsageError("bad_config", f"{path} gives {repeated!r} more than once")
    return {_setting(name): value for name, value in settings.items()}


def _setting(name: Any) -> str:
    """The name of a setting that is written as its flag is."""
    return str(name).replace("-", "_")


def _repeated_names(node: Any) -> Iterator[str]:
    """Names that a mapping in a tree of YAML's nodes has more than once; of these YAML's loader takes the last."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_names(item)
    if isinstance(node, yaml.MappingNode):
        names = Counter(str(name.value) for name, _ in node.value)
        yield from (name for name, count in names.items() if count > 1)
        for _, value in node.value:
            yield from _repeated_names(value)


def _storage_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options of --storage-options, else of the environment: JSON, or @FILE with JSON."""
    source, text = "--storage-options", getattr(parsed, "storage_options", None)
    if text is None:
        source, text = STORAGE_OPTIONS_VARIABLE, os.environ.get(STORAGE_OPTIONS_VARIABLE, "{}")
    if text.startswith("@"):
        source, text = text[1:], _read(text[1:])
    try:
        options = parse_json(text)
    except RepeatedNameError as error:
        raise UsageError("bad_option", f"{source} is ambiguous: {error}") from None
    except json.JSONDecodeError as error:  # the text may contain a secret: name the position only
        raise UsageError("bad_option", f"{source} is not JSON (at character {error.pos})") from None
    if not isinstance(options, dict):
        raise UsageError("bad_option", f"{source} should be a JSON object")
    return options


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("not_found", f"cannot read {path}: {error}") from error


def _print_error(message: str, code: int) -> int:
    print(f"rayscribe: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Fuzzing: damaged recordings of every format, given to a Listener; counts the outcomes.

    python -m bench.fuzz [--files 1000] [--seed 0] [--workers 2]

``testing.fuzzing`` makes the files and runs them. A failing one can be reproduced: ``python -m bench.fuzz
--only NUMBER --keep FILE``. Prints a table of the outcomes and, last, one line of JSON; the exit code is 1 if any
file failed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from testing.fuzzing import damaged_file, fuzz, intact_files


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="try the file of this number alone")
    parser.add_argument("--keep", type=Path, help="with --only: write the file here")
    parsed = parser.parse_args()
    if parsed.only is not None and parsed.keep:
        parsed.keep.write_bytes(damaged_file(intact_files(), parsed.seed, parsed.only)[1])
    start = time.perf_counter()
    numbers = range(parsed.files) if parsed.only is None else [parsed.only]
    answers, failures = fuzz(numbers, parsed.seed, parsed.workers)
    seconds = time.perf_counter() - start
    table = Table("outcome", "files")
    for answer, count in answers.most_common():
        table.add_row(answer, str(count))
    Console().print(table)
    for failure in failures:
        print(f"file {failure.number} of seed {parsed.seed}, made of {failure.source}: {failure.outcome}")
    result = {"files": len(numbers), "seed": parsed.seed, "failures": len(failures), "seconds": round(seconds, 1)}
    print(json.dumps(result | {"answers": dict(answers)}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())

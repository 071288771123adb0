"""Memory of the endpoint while many large uploads arrive slowly.

    python -m bench.uploads [--model demo/model] [--uploads 64] [--mib 2048] [--seconds 60]

Starts ``rayscribe serve`` with room for uploads of that size, and offers it so many at once, without a
Content-Length that would have them refused at once. Each sends a MiB now and then, until the endpoint refuses it
(``--max-uploads-mib``) or the time is over. Prints the anonymous memory of all processes of the endpoint before and at
its highest, beside the bytes that were received; last, one line of JSON.
"""

import argparse
import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from bench.serve_load import server
from serve.settings import MIB

PAUSE_S = 0.5
BOUNDARY = "upload"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="call.wav"\r\n'
    "Content-Type: audio/wav\r\n\r\n"
).encode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--uploads", type=int, default=64, help="at once")
    parser.add_argument("--mib", type=int, default=2048, help="size of each")
    parser.add_argument("--seconds", type=float, default=60.0)
    parsed = parser.parse_args(arguments)
    command = ["-m", "rayscribe", "serve", "--model", parsed.model, "--port", "{port}"]
    command += ["--max-upload-mib", str(parsed.mib), "--max-requests", str(2 * parsed.uploads)]
    with server(command, "listening at") as url:
        processes = psutil.Process().children(recursive=True)
        before = _anonymous_mib(processes)
        answers, sent_mib, peak = asyncio.run(_offer(url, processes, parsed.uploads, parsed.mib, parsed.seconds))
    table = Table("", "MiB", title=f"{parsed.uploads} uploads of {parsed.mib} MiB")
    for name, value in (("received", sent_mib), ("anonymous memory before", before), ("at its highest", peak)):
        table.add_row(name, f"{value:,.0f}")
    Console().print(table)
    print(f"answers: {', '.join(f'{count} × {status}' for status, count in sorted(answers.items()))}")
    print(json.dumps({"received_mib": sent_mib, "before_mib": before, "peak_mib": peak, "answers": answers}))


async def _offer(
    url: str, processes: list[psutil.Process], uploads: int, mib: int, seconds: float
) -> tuple[Counter[str], int, float]:
    """The answers, the MiB sent, and the highest anonymous memory."""
    answers: Counter[str] = Counter()
    until = time.monotonic() + seconds
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield HEAD
        piece = bytes(MIB)
        for _ in range(mib):
            yield piece
            sent += 1
            await asyncio.sleep(PAUSE_S)
            if time.monotonic() > until:
                return

    async def upload(client: httpx.AsyncClient) -> None:
        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        try:
            answer = await client.post("/v1/audio/transcriptions", content=body(), headers=headers)
            answers[str(answer.status_code)] += 1
        except httpx.HTTPError as error:
            answers[type(error).__name__] += 1

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=uploads)) as client:
        offered = asyncio.gather(*(upload(client) for _ in range(uploads)))
        peak = 0.0
        while not offered.done():
            peak = max(peak, await asyncio.to_thread(_anonymous_mib, processes))
            await asyncio.sleep(0.2)
    return answers, sent, peak


def _anonymous_mib(processes: list[psutil.Process]) -> float:
    """Anonymous memory of processes, in MiB: neither files nor the object store, which are limited by themselves."""
    kib = 0
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as status:
            kib += sum(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    return kib / 1024


if __name__ == "__main__":
    main()

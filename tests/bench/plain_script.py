"""Fetch certificates as a short script would: ``plain_script.py LIST KEY``, 32 at once.

No ledger, no fsync, no check of what came; each line of the list is a URL and a file's name. It is
the least that a program on the same HTTP client can cost. See :mod:`tests.bench.peers`.
"""

import asyncio
import sys
from pathlib import Path

import aiohttp

AT_ONCE = 32


async def main(list_file: str, key: str) -> None:
    """Fetch what is on the list."""
    lines = iter(Path(list_file).read_text().splitlines())
    headers = {"Authorization": f"Bearer {key}"}

    async def worker(session: aiohttp.ClientSession) -> None:
        for line in lines:
            url, name = line.split()
            async with session.get(url) as response:
                response.raise_for_status()
                Path(name).write_bytes(await response.read())

    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker(session))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

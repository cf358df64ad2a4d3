"""Our own path, through the public SDK, in the kernel's environment.

`agents`: one agent per client in the load of closed loops; else one agent has them all.
"""

from __future__ import annotations

import os
import sys

from line import serve_async

from aios_sdk import AsyncAgent


class KernelPeer:
    def __init__(self, url: str, *, agents: bool) -> None:
        self._url = url
        self._agents = agents
        self._open: list[AsyncAgent] = []

    async def open(self, clients: int) -> None:
        count = clients if self._agents else 1
        self._open = [
            await AsyncAgent(f"bench-{number}", url=self._url).open() for number in range(count)
        ]

    async def all(self, texts: list[str]) -> list[str]:
        return [result.text for result in await self._open[0].tool.echo.map(texts)]

    async def one(self, client: int, text: str) -> str:
        return (await self._open[client % len(self._open)].tool.echo(text)).text

    async def close(self) -> None:
        for agent in self._open:
            await agent.aclose()


if __name__ == "__main__":
    serve_async(lambda: KernelPeer(os.environ["BENCH_REDIS"], agents=sys.argv[1] == "agents"))

"""A load generator in a process of its own: keeps N connections busy with one event a request, and reports as JSON.

`python -m tests.bench.load HOST PORT WRITE_KEY CONNECTIONS SECONDS SEED`
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time

import uvloop


def body(seed: str, number: int) -> bytes:
    """An event of about 500 bytes."""
    return json.dumps(
        {
            "type": "track",
            "event": "Product Viewed",
            "messageId": f"{seed}-{number}",
            "anonymousId": f"a-{seed}-{number % 20_000}",
            "properties": {
                "product_id": f"sku-{number % 5_000}",
                "name": "A record with a long and pleasant name",
                "category": "vinyl",
                "brand": "Melodiya",
                "price": 1500,
                "url": "https://shop.example/p/1",
                "position": number % 40,
                "filler": "x" * 150,
            },
        }
    ).encode()


class Load:
    def __init__(self, host: str, port: int, key: str, seed: str) -> None:
        self._host, self._port, self._seed = host, port, seed
        basic = base64.b64encode(f"{key}:".encode()).decode()
        self._head = (
            f"POST /v1/track HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {basic}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._number = 0
        self.answers: dict[int, int] = {}
        self.seconds: list[float] = []

    async def connection(self, until: float) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        while time.perf_counter() < until:
            self._number += 1
            data = body(self._seed, self._number)
            began = time.perf_counter()
            writer.write(self._head + str(len(data)).encode() + b"\r\n\r\n" + data)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(
                next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
            )
            await reader.readexactly(length)
            self.seconds.append(time.perf_counter() - began)
            status = int(head[9:12])
            self.answers[status] = self.answers.get(status, 0) + 1
        writer.close()


async def main(host: str, port: str, key: str, connections: str, seconds: str, seed: str) -> None:
    load = Load(host, int(port), key, seed)
    began = time.perf_counter()
    await asyncio.gather(*(load.connection(began + float(seconds)) for _ in range(int(connections))))
    took = time.perf_counter() - began
    load.seconds.sort()
    print(
        json.dumps(
            {
                "answers": load.answers,
                "per_second": round(load.answers.get(200, 0) / took, 1),
                "p50_ms": round(load.seconds[len(load.seconds) // 2] * 1000, 2),
                "p99_ms": round(load.seconds[len(load.seconds) * 99 // 100] * 1000, 2),
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))

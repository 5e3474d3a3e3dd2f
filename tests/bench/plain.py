"""The plain way, to measure against: FastAPI, pydantic, one awaited send a request (acks=all, idempotent)."""

import os
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from fastapi import FastAPI
from pydantic import BaseModel


class Track(BaseModel):
    messageId: str  # noqa: N815
    anonymousId: str  # noqa: N815
    event: str
    properties: dict[str, object] = {}


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with AIOKafkaProducer(
        bootstrap_servers=os.environ["KAFKA"], acks="all", enable_idempotence=True
    ) as app.state.producer:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/track")
async def track(event: Track) -> dict[str, bool]:
    await app.state.producer.send_and_wait("plain", event.model_dump_json().encode(), event.anonymousId.encode())
    return {"success": True}

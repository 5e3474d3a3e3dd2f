"""Files of the inbox: written whole or not at all, a message once however often it is written."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import msgspec

from services.dispatch.channels.base import Exchange, Result


def write_once(folder: Path, name: str, content: bytes) -> None:
    """Writes `folder/name` by way of a temporary name; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.{os.getpid()}"
    unfinished.write_bytes(content)
    unfinished.replace(folder / name)


def write_note(folder: Path, exchange: Exchange) -> Result:
    """A message that is not a mail, as a JSON file that carries the message's id as its name."""
    note = {
        "message": str(exchange.message),
        "to": exchange.address,
        "title": exchange.rendered.subject or None,
        "text": exchange.rendered.text,
        "links": exchange.rendered.urls,
        "at": exchange.at.isoformat(),
    }
    content = msgspec.json.format(msgspec.json.encode(note), indent=2)
    write_once(folder, file_name(exchange.message), content)
    return Result("sent", f"written to {folder.name}")


def file_name(message: UUID) -> str:
    """The name under which `write_note` writes."""
    return f"{message}.json"

"""What ingest itself refuses of an import's batch is told to whoever imports, event by event."""

from __future__ import annotations

import json

from services.importing.sending import Batch, Refusal, Sender
from tests.support.ingesting import serving


def event(number: int, *, bad: bool) -> bytes:
    named = {} if bad else {"userId": f"u-{number}"}  # an event that names nobody is refused
    return json.dumps({"type": "track", "event": "A", "messageId": f"m-{number}", **named}).encode()


async def test_every_event_that_ingest_refuses_is_known_with_its_line_and_reason(database_url: str) -> None:
    bad = {*range(50, 110), 299}
    batch = Batch(0, 300, [event(n, bad=n in bad) for n in range(300)], [(n + 1, f"k-{n}") for n in range(300)])
    async with serving(database_url) as dripline:
        sender = Sender(dripline.http, dripline.keys.server_write_key, patience=5)
        refused = await sender.send(batch)
        taken = {taken.message_id for taken in await dripline.events()}
    assert sorted(one.line - 1 for one in refused) == sorted(bad)
    assert all(isinstance(one, Refusal) and "userId" in one.reason and "/batch/" not in one.reason for one in refused)
    assert taken == {f"m-{n}" for n in range(300) if n not in bad}

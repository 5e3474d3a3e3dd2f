"""What comes back from sending, as events: they stand on the person's timeline like everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog

from services.dispatch.store.calls import Chosen
from services.dispatch.store.ledgers import Sent
from shared.bus.base import Outgoing
from shared.db import Tx
from shared.events import EVENTS, MAX_HOPS, Event, cloud_headers, encode, internal_event
from shared.outbox import write_free

log = structlog.get_logger(__name__)


def feedback(message: Chosen | Sent, prefix: str, what: str, key: str, at: datetime, **more: Any) -> Event:
    """`"Email Sent"` and its like. `key`: what it is a record of besides the message: a repeat has the same id."""
    properties: dict[str, Any] = {
        "message_id": str(message.id),
        "run_id": str(message.run),
        "rule": message.rule_name,
        "channel": message.channel,
        "step": message.step,
        "template": message.template,
    }
    return internal_event(
        f"{prefix} {what}",
        key=f"{message.id}/{key}",
        origin=message.origin,
        at=at,
        properties=properties | {name: value for name, value in more.items() if value is not None},
        hops=message.hops + 1,
    )


async def publish(tx: Tx, events: Sequence[Event]) -> bool:
    """Writes the events into the outbox, last in the transaction; says whether there was anything to publish.

    An event further than MAX_HOPS from what a client sent is dropped: rules that answer each other must come to an end.
    """
    outgoing = []
    for event in events:
        if event.hops > MAX_HOPS:
            log.warning("feedback.too_many_hops", event_name=event.name, hops=event.hops, event_id=str(event.id))
            continue
        outgoing.append(_record(event))
    if not outgoing:
        return False
    return bool(await write_free(tx, "dispatch", events[0].origin, outgoing))


def _record(event: Event) -> Outgoing:
    headers: Mapping[str, bytes] = cloud_headers(
        event.id, "dripline/dispatch", event.name, event.occurred_at, str(event.origin)
    )
    return Outgoing(EVENTS, str(event.origin).encode(), encode(event), dict(headers))

"""What profile publishes on `profile-events`."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Raw

from services.profile.people import Placed, Regrouping
from services.profile.person_facts import FactsWire
from shared.bus.base import Outgoing
from shared.events import PROFILE_EVENTS, ProfileErased, ProfileMerged, ProfileSplit, cloud_headers, encode
from shared.ids import derived_id

SOURCE = "dripline/profile"
_encode = msgspec.json.Encoder().encode
# What is the same for every event; see `shared.events.cloud_headers`.
HEADERS = {
    "ce_specversion": b"1.0",
    "ce_source": SOURCE.encode(),
    "ce_type": b"dripline.profile.event",
    "content-type": b"application/json",
}


class EventWire(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="record", tag="event"):
    """`shared.events.ProfileEvent` as it is published: the event's JSON is passed on as it came."""

    event: Raw
    learned_at: datetime
    profile: UUID
    nodes: list[UUID]
    facts: FactsWire
    order_key: str | None = None
    first: bool = False


def event_record(placed: Placed, facts: FactsWire, first: bool) -> Outgoing:
    """The event, whose it is and what is known after it; keyed by the profile."""
    incoming, subject = placed.incoming, str(placed.profile)
    value = _encode(
        EventWire(
            event=Raw(incoming.value),
            learned_at=placed.learned_at,
            profile=placed.profile,
            nodes=placed.nodes,
            facts=facts,
            order_key=incoming.found.order_key,
            first=first,
        )
    )
    key = subject.encode()
    headers = {
        **HEADERS,
        "ce_id": str(incoming.event.id).encode(),
        "ce_time": placed.learned_at.isoformat().encode(),
        "ce_subject": key,
    }
    return Outgoing(PROFILE_EVENTS, key, value, headers)


def change_records(change: Regrouping) -> list[Outgoing]:
    """*Profile Merged* and *Profile Split*, each under both keys."""
    records: list[Outgoing] = []
    for old, new in sorted(change.aliases.items()):
        merged = ProfileMerged(
            id=derived_id("merged", old, new, change.at.isoformat()),
            winner=new,
            loser=old,
            nodes=change.after[new],
            learned_at=change.at,
        )
        records += _under_both(merged, merged.id, "dripline.profile.merged", change.at, new, old)
    for old, nodes in change.before.items():
        home = change.aliases.get(old, old)
        for new, members in change.after.items():
            left = sorted(set(nodes) & set(members))
            if new != home and left:
                split = ProfileSplit(
                    id=derived_id("split", old, new, change.at.isoformat()),
                    profile=home,
                    new_profile=new,
                    nodes=left,
                    learned_at=change.at,
                )
                records += _under_both(split, split.id, "dripline.profile.split", change.at, home, new)
    return records


def erased_record(profile: UUID, nodes: list[UUID], at: datetime) -> Outgoing:
    """*Profile Erased*, under the profile's key: behind everything that was published of this person before."""
    record = ProfileErased(
        id=derived_id("erased", profile, at.isoformat()), profile=profile, nodes=sorted(nodes), learned_at=at
    )
    headers = cloud_headers(record.id, SOURCE, "dripline.profile.erased", at, str(profile))
    return Outgoing(PROFILE_EVENTS, str(profile).encode(), encode(record), headers)


def _under_both(
    record: ProfileMerged | ProfileSplit, identity: UUID, kind: str, at: datetime, one: UUID, other: UUID
) -> list[Outgoing]:
    value = encode(record)
    return [
        Outgoing(PROFILE_EVENTS, str(key).encode(), value, cloud_headers(identity, SOURCE, kind, at, str(key)))
        for key in (one, other)
    ]

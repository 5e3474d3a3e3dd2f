"""The guard of an intent: under which condition it is still right to send; and which events concern an addressed run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.triggers.run import Run
from shared.conditions import EventMatch, match_holds
from shared.events import Guard
from shared.facts.model import EventFact

if TYPE_CHECKING:
    from services.triggers.rule import Rule

# Events that speak of one address: for a run about an address only those about the same one count.
ABOUT_AN_ADDRESS = frozenset({"Subscription Requested", "Subscription Confirmed", "Consent Granted", "Unsubscribed"})


def about_the_address(run: Run, event: EventFact) -> bool:
    """False for an event that speaks of another address than the one the run is about."""
    if not run.subject or event.name not in ABOUT_AN_ADDRESS:
        return True
    named = event.properties.get("address")
    asked = run.event.properties.get("address") if run.event else None
    return named is None or _plain(named) in (_plain(asked), _plain(run.addressed.address if run.addressed else None))


def _plain(address: Any) -> str:
    return str(address or "").strip().casefold()


def guard_of(rule: Rule, run: Run) -> Guard:
    """The guard for what the step at `run.path` sends: stop and goal since entry, the entry's condition, every `if`
    around the step."""
    until = [*rule.stop_matches, *([rule.goal.match] if rule.goal else [])]
    conditions = [{"not": document} for document in rule.stop_documents]
    if rule.enter.condition_document is not None:
        conditions.insert(0, rule.enter.condition_document)
    conditions += rule.flow.guards(run.path)
    return Guard(
        since=run.entered_at, until=[_as_document(match, run) for match in _once(until)], conditions=conditions
    )


def _once(matches: list[EventMatch]) -> list[EventMatch]:
    return [match for index, match in enumerate(matches) if match not in matches[:index]]


def _as_document(match: EventMatch, run: Run) -> dict[str, Any]:
    document: dict[str, Any] = match.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    if run.subject and match.event in ABOUT_AN_ADDRESS and run.addressed is not None:
        named = (
            {run.addressed.address, str(run.event.properties.get("address"))} if run.event else {run.addressed.address}
        )
        document["where"] = {**document.get("where", {}), "address": {"in": sorted(named)}}
    return document


def stops(rule: Rule, run: Run, event: EventFact) -> bool:
    """Whether the event is one that `stop` names for this run (when it counts is the caller's matter)."""
    return about_the_address(run, event) and any(
        match_holds(m, event.name, event.properties) for m in rule.stop_matches
    )

"""How the management API shows things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from services.triggers.catalogue import Catalogue
from services.triggers.diffing import differences
from services.triggers.editing import Saved
from services.triggers.presets import Preset
from services.triggers.preview import Preview
from services.triggers.queue import ItemKind
from services.triggers.rule import Rule, read
from services.triggers.why import Answer


def page(
    rows: Sequence[Any], limit: int, show: Callable[[Any], dict[str, Any]], cursor: Callable[[Any], Any]
) -> dict[str, Any]:
    """A list with the cursor of its next page; `rows` holds one more than `limit` if there is one."""
    shown = rows[:limit]
    return {"items": [show(row) for row in shown], "next": cursor(shown[-1]) if len(rows) > limit else None}


def saved(one: Saved) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "version": one.version,
        "state": one.state,
        "valid_from": one.valid_from,
        "result": one.result,
        "differences": one.differences,
    }


def rule(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "kind": row["kind"],
        "title": row["document"].get("title", ""),
        "state": row["state"],
        "version": row["version"],
        "newest_version": row["newest"],
        "valid_from": row["valid_from"],
        "author": row["author"],
        "made_at": row["made_at"],
        "document": row["document"],
    }


def versions(rows: Sequence[Any], changes: Sequence[Any], limit: int) -> dict[str, Any]:
    """Versions, newest first, each with what it changed in the one before and since when it was in force."""
    items = []
    for index, row in enumerate(rows[:limit]):
        before = rows[index + 1]["document"] if index + 1 < len(rows) else None
        items.append(
            {
                "version": row["version"],
                "author": row["author"],
                "made_at": row["made_at"],
                "differences": differences(before, row["document"]) if before is not None else [],
                "document": row["document"],
                "states": [
                    {"state": change["state"], "valid_from": change["valid_from"], "author": change["author"]}
                    for change in changes
                    if change["version"] == row["version"]
                ],
            }
        )
    return {"items": items, "next": items[-1]["version"] if len(rows) > limit else None}


def run(row: Any) -> dict[str, Any]:
    state = row["state"]
    return {
        "id": row["id"],
        "rule": row["rule"],
        "rule_name": row["rule_name"],
        "version": row["version"],
        "number": row["number"],
        "ghost": row["ghost"],
        "entered_at": row["entered_at"],
        "event": state.get("event"),
        "path": state.get("path", []),
        "due": state.get("due"),
        "ended_at": row["ended_at"],
        "ended_as": row["ended_as"],
        "ended_why": state.get("ended_why"),
        "goal_at": row["goal_at"],
        "closes_at": state.get("closes_at"),
        "revenue": money(row["revenue"]),
    }


def decision(row: Any) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        "at": row["at"],
        "made_at": row["made_at"],
        "rule": row["rule"],
        "rule_name": row["rule_name"],
        "version": row["version"],
        "run": row["run"],
        "run_before": row["run_before"],
        "run_after": row["run_after"],
        "what": row["what"],
        "why": row["why"],
        "cause": row["cause"],
        "profile": row["profile"],
        "seen": row["seen"],
        "effects": row["effects"],
    }


def answer(one: Answer) -> dict[str, Any]:
    return {
        "entered": one.entered,
        "code": one.code,
        "why": one.why,
        "asked_at": one.asked_at,
        "run": one.run,
        "event": one.event,
        "seen": one.seen,
    }


def why(run_row: Any, decided: Sequence[Any]) -> dict[str, Any]:
    """A run with its decisions, the first first; `decided`: newest first."""
    shown = [decision(row) for row in reversed(decided)]
    return {"run": run(run_row), "why": next((one["why"] for one in shown if one["why"]), ""), "decisions": shown}


def preset(one: Preset, known: Catalogue) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "description": one.description,
        "parameters": [
            {"name": name, "title": parameter.title, "at": parameter.at, "default": one.default(name)}
            for name, parameter in one.parameters.items()
        ],
        "missing": known.missing(read(one.document)),
    }


def preview(rule: Rule, found: Preview, inside: Sequence[Any], missing: dict[str, list[str]]) -> dict[str, Any]:
    """`matching` is None where not everybody could be looked at; then the number lies between the two bounds."""
    return {
        "at": found.at,
        "entry": rule.enter.trigger,
        "next_moment": found.next_moment,
        "condition": rule.enter.condition_document,
        "people": found.people,
        "matching": found.at_least if found.at_least == found.at_most else None,
        "at_least": found.at_least,
        "at_most": found.at_most,
        "would_enter": found.would_enter,
        "inside": [{"step": row["step"], "version": row["version"], "people": row["people"]} for row in inside],
        "samples": found.samples,
        "missing": missing,
    }


def aside(row: Any) -> dict[str, Any]:
    """What was put aside; what the event said is not shown."""
    return {
        "node": row["node"],
        "id": row["id"],
        "kind": ItemKind(row["kind"]).name.lower(),
        "due": row["due"],
        "rule": row["rule"],
        "rule_name": row["rule_name"],
        "run": row["run"],
        "event": row["event"],
        "reason": row["reason"],
    }


def differences_of(stored: dict[str, Any], wanted: Rule, inside: Sequence[Any]) -> dict[str, Any]:
    """What an edit would change, and what becomes of the people inside: moves | finishes | ends | stays."""
    changes = differences(stored, wanted.document)

    def becomes(step: str | None) -> str:
        if not changes:
            return "stays"
        if wanted.on_edit == "move" and step is not None and wanted.flow.find(step) is not None:
            return "moves"
        return "ends" if wanted.on_edit == "stop" else "finishes"

    people = [
        {"step": row["step"], "version": row["version"], "people": row["people"], "becomes": becomes(row["step"])}
        for row in inside
    ]
    return {"differences": changes, "inside": people}


def backtest(
    rule: Rule, version: int | None, since: datetime, until: datetime, found: dict[str, Any]
) -> dict[str, Any]:
    """What the rule would have done; `version` None: of a document that is not saved."""
    return {"rule_name": rule.name, "version": version, "since": since, "until": until, **found}


def report(row: Any, figures: Sequence[Any], failed: int) -> dict[str, Any]:
    """Figures of both arms; `goals`, `goal_rate` and `revenue` are of runs whose goal window has closed. `left_out`: runs of
    people who turned out to be in both arms, and runs that ended as merged."""
    arms = {("held_out" if one["ghost"] else "treated"): _arm(one) for one in figures if one["ghost"] is not None}
    empty: dict[str, Any] = {
        "entered": 0,
        "inside": 0,
        "goals": 0,
        "revenue": 0.0,
        "closed": 0,
        "goal_rate": None,
        "ended": {},
    }
    return {
        "id": row["id"],
        "name": row["name"],
        "entered": sum(arm["entered"] for arm in arms.values()),
        "left_out": sum(one["entered"] for one in figures if one["ghost"] is None),
        "failed": failed,
        "treated": arms.get("treated", empty),
        "held_out": arms.get("held_out", empty),
    }


def _arm(one: Any) -> dict[str, Any]:
    closed = one["closed"]
    return {
        "entered": one["entered"],
        "inside": one["inside"],
        "goals": one["goals"],
        "revenue": money(one["revenue"]),
        "closed": closed,
        "goal_rate": round(one["goals"] / closed, 4) if closed else None,
        "ended": one["ended"],
    }


def money(value: Any) -> float | None:
    """A number with two decimals at most."""
    return None if value is None else float(round(Decimal(value), 2))

"""Deriving decisions again from what is stored: rule version, run before, T, membership as of T, rows learned by T.

A difference means that something that was decided cannot be explained by what is stored. There must be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from services.triggers import engine, idle, loading
from services.triggers.effects import summary_of
from services.triggers.omitted import Omitted, omitted
from services.triggers.queue import Item, ItemKind
from services.triggers.run import Decided, Known, Refused, Run
from services.triggers.steps.base import Happened, Version, World
from services.triggers.store import decisions as store
from services.triggers.store.rules import RuleBook
from services.triggers.versions import Rules
from shared import channels
from shared.conditions import Needs
from shared.db import Database, Tx
from shared.facts.model import EventFact, Facts
from shared.ids import derived_id
from shared.settings import Settings, load

BATCH = 200
BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Difference:
    """One decision that comes out differently now. `field`: what differs (`effects`, `run`, `nodes`, …)."""

    seq: int
    rule: UUID
    run: UUID | None
    at: datetime
    field: str
    stored: Any
    derived: Any

    def __str__(self) -> str:
        moment = self.at.strftime("%Y-%m-%d %H:%M:%S.%f")
        return f"decision {self.seq} at {moment}: {self.field} was {self.stored!r}, derived {self.derived!r}"


async def derive_again(
    database: Database, since: datetime, until: datetime, settings: Settings | None = None
) -> Derived:
    """Derives the decisions with T in [since, until) again, and looks for entries that had to be and are not; `settings`: the
    deployment's, by default read from the environment (its zone and country decide)."""
    chosen = settings or load()
    channels.declare(chosen.channels_path)
    world = World(zone=ZoneInfo(chosen.shop_timezone), country=chosen.shop_country)
    found = await derive(database, world, since, until)
    found.omitted = await omitted(database, world, since, until)
    return found


@dataclass
class Derived:
    """`count` decisions were derived again, `entries` of them entries, of which `draws` by a rule that holds people out, and
    `intents` intents among their effects; `erased` more tell of somebody who was erased or purged since."""

    count: int = 0
    entries: int = 0
    draws: int = 0
    intents: int = 0
    erased: int = 0
    differences: list[Difference] = field(default_factory=list)
    omitted: Omitted = field(default_factory=Omitted)

    def take(self, rows: Sequence[Any], rules: Rules) -> None:
        """Counts what these rows are."""
        entered = [row for row in rows if row["run"] is not None and row["run_before"] == 0]
        self.count += len(rows)
        self.entries += len(entered)
        self.draws += sum(1 for row in entered if _version(rules, row).document.holdout)
        self.intents += sum("intended" in effect for row in rows for effect in row["effects"])


async def derive(database: Database, world: World, since: datetime, until: datetime) -> Derived:
    """Derives every decision with T in [since, until) again.

    Reads in transactions of its own, some hundred decisions each.
    """
    book, place, found = RuleBook(), (BEGINNING, 0), Derived()
    while True:
        async with database.transaction("repeatable_read") as tx:
            rows = await store.decisions_between(tx, since, until, place, BATCH)
            if not rows:
                found.differences += [_gap(row) for row in await store.incomplete_runs(tx, since, until)]
                return found
            gone = await store.erased_nodes(tx, sorted({node for row in rows for node in row["nodes"]}))
            kept = [row for row in rows if not row["erased"] and gone.isdisjoint(row["nodes"])]
            if kept:
                rules = await book.read(tx)
                found.differences += await _derive(tx, kept, rules, world)
                found.take(kept, rules)
        place = (rows[-1]["at"], rows[-1]["seq"])
        found.erased += len(rows) - len(kept)


def _gap(row: Any) -> Difference:
    return Difference(0, row["rule"], row["id"], row["entered_at"], "number of decisions", row["number"], row["count"])


@dataclass
class _Material:
    rules: Rules
    world: World
    whose: dict[loading.Moment, loading.Whose]
    facts: dict[loading.Moment, Facts]
    events: dict[UUID, EventFact]
    before: dict[tuple[UUID, int], Run]
    known: dict[int, list[Known]]
    idle: dict[loading.Key, Sequence[Happened]]


async def _derive(tx: Tx, rows: Sequence[Any], rules: Rules, world: World) -> list[Difference]:
    material = await _load(tx, rows, rules, world)
    found: list[Difference] = []
    for row in rows:
        found += _compare(row, material)
    return found


async def _load(tx: Tx, rows: Sequence[Any], rules: Rules, world: World) -> _Material:
    moments = [_moment(row) for row in rows]
    whose = await loading.whose_were(tx, moments)
    needs: dict[loading.Moment, Needs] = {}
    for row, moment in zip(rows, moments, strict=True):
        needs[moment] = needs.get(moment, Needs()) | _version(rules, row).document.needs
    ids = [UUID(row["cause"]["event"]) for row in rows if "event" in row["cause"]]
    everybody = sorted({node for row in rows for node in row["nodes"]})
    events = await store.events_by_id(tx, ids, everybody)
    entries = [row for row in rows if row["run_before"] == 0]
    known = await store.known_before(tx, [(row["rule"], row["nodes"], row["seq"]) for row in entries])
    later = [(row["run"], row["seq"]) for row in rows if row["run_before"] > 0]
    asked = [_idle_item(row) for row in entries if row["cause"]["kind"] == "idle"]
    idle_whose = {(item.node, item.due): whose[item.node, item.due] for item in asked if (item.node, item.due) in whose}
    return _Material(
        rules=rules,
        world=rules.world(world),
        whose=whose,
        facts=await loading.facts_as_of(tx, needs),
        events=events,
        before=await store.states_before(tx, later),
        known={row["seq"]: found for row, found in zip(entries, known, strict=True)},
        idle=await loading.idle_events(
            tx, [item for item in asked if (item.node, item.due) in idle_whose], rules, idle_whose
        ),
    )


def _moment(row: Any) -> loading.Moment:
    return row["node"], row["at"]


def _version(rules: Rules, row: Any) -> Version:
    return rules.version(row["rule"], row["version"])


def _idle_item(row: Any) -> Item:
    id = derived_id("idle", row["rule"], row["at"])
    return Item(node=row["node"], id=id, kind=ItemKind.IDLE, due=row["at"], rule=row["rule"])


# ── one decision ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _compare(row: Any, material: _Material) -> list[Difference]:
    def difference(field: str, stored: Any, derived: Any) -> Difference:
        return Difference(row["seq"], row["rule"], row["run"], row["at"], field, stored, derived)

    whose = material.whose.get(_moment(row))
    if whose is None or list(whose.nodes) != list(row["nodes"]):
        return [difference("nodes", [str(n) for n in row["nodes"]], [str(n) for n in whose.nodes] if whose else None)]
    found = _entry(row, material) if row["run_before"] == 0 else _step(row, material)
    if row["run"] is None:
        derived = found.why if isinstance(found, Refused) and found.code == "failed" else repr(found)
        return [] if derived == row["why"] else [difference("why", row["why"], derived)]
    if not isinstance(found, Decided):
        return [difference("run", row["what"], found.why if isinstance(found, Refused) else found)]
    compared = {
        "what": (row["what"], found.what),
        "effects": (row["effects"], [summary_of(effect) for effect in found.effects]),
        "seen": (row["seen"], store.plain(found.seen)),
        "run": (row["after"], store.plain(found.run)),
    }
    return [difference(field, stored, derived) for field, (stored, derived) in compared.items() if stored != derived]


def _entry(row: Any, material: _Material) -> Decided | Refused | str:
    """Somebody entered: was the rule in force, had the timer to fire, would they enter again?"""
    version = material.rules.active(row["rule"], row["at"])
    if version is None or version.number != row["version"]:
        return f"version {version.number if version else 'none'} was in force"
    cause, document = row["cause"], version.document
    event = material.events.get(UUID(cause["event"])) if "event" in cause else None
    match cause["kind"]:
        case "event":
            if event is None or event.learned_at != row["at"] or not document.enter.matches(event):
                return "no such event enters"
        case "idle":
            item = _idle_item(row)
            answer = idle.ask(document, row["at"], material.idle.get((item.node, item.id), ()))
            if not isinstance(answer, idle.Quiet) or event is None or answer.last.id != event.id:
                return f"the idle timer's answer is {type(answer).__name__}"
    key = str(event.id) if event is not None else row["at"].isoformat()
    asking = engine.Asking(version=version, at=row["at"], origin=row["node"], key=key, event=event)
    return engine.enter(asking, material.known.get(row["seq"], []), material.facts[_moment(row)], material.world)


def _step(row: Any, material: _Material) -> Decided | str:
    """Something happened to a run."""
    run = material.before.get((row["run"], row["seq"]))
    if run is None or run.number != row["run_before"]:
        return f"the run had version {run.number if run else None} before"
    if row["cause"]["kind"] in ("step", "goal", "event", "removed") and (target := _mover(row, run, material)):
        return f"the run had to go on by version {target.number} first"
    stimulus = _stimulus(row, run, material)
    if stimulus is None:
        return "what caused it is not stored"
    paused = bool(row["cause"].get("paused"))
    facts, version = material.facts[_moment(row)], _version(material.rules, row)
    found = engine.advance(run, stimulus, row["at"], facts, version, material.world, paused=paused)
    return found or "the run is not concerned"


def _mover(row: Any, run: Run, material: _Material) -> Version | None:
    """The version that an edit had taken the run along to by then, if it found its step there."""
    target = material.rules.mover(run.rule, run.version, row["at"]) if run.live else None
    return target if target is not None and target.document.flow.find(run.path[-1]) is not None else None


def _stimulus(row: Any, run: Run, material: _Material) -> engine.Stimulus | None:
    if row["cause"]["kind"] == "moved":
        return engine.Moved(material.rules.version(run.rule, run.version))
    if row["what"] == "dropped":
        return engine.Removed("dropped", row["why"], row["cause"]["window"])
    if row["what"] in ("merged", "purged"):
        return engine.Removed(row["what"], row["why"])
    removed = material.rules.removal(run.rule, run.version, row["at"]) if run.live else None
    match row["cause"]["kind"]:
        case "goal":
            return engine.WindowClosed()
        case "step":
            return engine.Removed(*removed) if removed else engine.StepDue()
        case "event":
            event = material.events.get(UUID(row["cause"]["event"]))
            if removed or event is None:
                return engine.Removed(*removed) if removed else None
            return engine.Happened(event=event, moment=_counted(row, event))
    return engine.Removed(*removed) if removed else None


def _counted(row: Any, event: EventFact) -> datetime:
    """When the event counts, as its record said: an earlier report of the same order may have come to light since, or be
    somebody else's, so the decision says which moment it knew."""
    told = row["cause"].get("moment")
    return datetime.fromisoformat(told) if told else event.learned_at

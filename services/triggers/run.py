"""A run: one person's way through one version of a rule; and what a decision about it may want done."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from shared.events import Addressed, Cancelled, Event, Intended, Outcome

# How a run ends. `goal` and `stopped` by an event or condition; `finished` and `stop_step` by its steps.
ENDS = (
    "goal",
    "stopped",
    "finished",
    "stop_step",
    "merged",
    "edited",
    "archived",
    "purged",
    "erased",
    "dropped",
    "failed",
)

Effect = Intended | Cancelled | Outcome | Event


class Snapshot(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The event by which a run was entered, as templates see it."""

    id: UUID
    name: str
    node: UUID
    occurred_at: datetime
    learned_at: datetime
    properties: dict[str, Any] = {}


class OpenIntent(msgspec.Struct, kw_only=True):
    """An intent that may still wait in dispatch: until `until` it has to be cancelled when the run ends early."""

    message: UUID
    until: datetime


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The whole state of a run; stored as it is, so that a decision can be derived again.

    `number`: the run's version, one higher with each decision. `path`: where it stands, as step ids and branches in turn
    (`["wait-for", "then", "send-thanks"]`); empty once it has ended. `since`: the T at which that step began, `due`: when
    its timer fires; `begun` is false while the rule is paused in front of the step. `subject`: the node of the address a
    subscription is about; a person may have one live run a rule, of a transactional one a rule and subject. `closes_at`:
    end of the goal window; `closed_at`: when its outcome was told.
    """

    id: UUID
    rule: UUID
    version: int
    origin: UUID
    entry_key: str
    entered_at: datetime
    draw: Decimal
    number: int = 0
    ghost: bool = False
    event: Snapshot | None = None
    addressed: Addressed | None = None
    subject: str = ""
    hops: int = 0
    path: list[str] = []
    since: datetime | None = None
    due: datetime | None = None
    begun: bool = True
    offer: str | None = None
    intents: list[OpenIntent] = []
    ended_at: datetime | None = None
    ended_as: str | None = None
    ended_why: str | None = None
    goal_at: datetime | None = None
    closes_at: datetime | None = None
    closed_at: datetime | None = None

    @property
    def live(self) -> bool:
        return self.ended_at is None

    @property
    def watching(self) -> bool:
        """The goal window is open."""
        return self.closes_at is not None and self.closed_at is None

    @property
    def open(self) -> bool:
        """Something may still happen to it."""
        return self.live or self.watching

    def forget_address(self) -> None:
        """What the run says of the address it is about is taken out; the subject, a node's id, stays."""
        self.addressed = None
        if self.event is not None:
            said = {key: value for key, value in self.event.properties.items() if key != "address"}
            self.event = msgspec.structs.replace(self.event, properties=said)

    def copy(self) -> Run:
        """A copy that may be changed without changing this one."""
        return msgspec.structs.replace(self, path=list(self.path), intents=list(self.intents))


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What another entry must know of a run: enough for `again`, the arm and the key. `erased`: its person was erased since;
    whoever has come back under the same node is somebody new."""

    id: UUID
    rule: UUID
    origin: UUID
    entered_at: datetime
    ghost: bool
    subject: str
    ended_at: datetime | None
    ended_as: str | None
    erased: bool = False

    @classmethod
    def of(cls, run: Run) -> Known:
        return cls(
            id=run.id,
            rule=run.rule,
            origin=run.origin,
            entered_at=run.entered_at,
            ghost=run.ghost,
            subject=run.subject,
            ended_at=run.ended_at,
            ended_as=run.ended_as,
        )


class Decided(msgspec.Struct, kw_only=True):
    """What the engine decided: the run after it, what it wants done, and the values it saw.

    `what` is one word for the record: entered, advanced, goal, stopped, finished, outcome, failed …; `why` a sentence.
    """

    run: Run
    effects: list[Effect]
    seen: list[dict[str, Any]]
    what: str
    why: str = ""


class Refused(msgspec.Struct, kw_only=True):
    """Nobody enters. `code` for programs, `why` for a marketer; `seen` are the values looked at."""

    code: str
    why: str
    seen: list[dict[str, Any]] = []

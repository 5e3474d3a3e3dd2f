"""What decisions are made from: whose nodes were, facts as of each moment, the rules. `loading` reads it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.triggers.steps.base import Happened, World
from services.triggers.versions import Rules
from shared.facts.model import Facts

Moment = tuple[UUID, datetime]  # a node, and when it is asked about
Key = tuple[UUID, UUID]  # of an item: node and id


@dataclass(frozen=True)
class Whose:
    """Whose a node was at a moment."""

    profile: UUID
    nodes: tuple[UUID, ...]


@dataclass
class Material:
    """What was loaded for a batch of people."""

    rules: Rules
    world: World
    whose: Mapping[Moment, Whose]
    facts: Mapping[Moment, Facts]
    # by idle item (node, id): its rule's entry and stop events, with the moment at which they count
    happened: Mapping[Key, Sequence[Happened]]

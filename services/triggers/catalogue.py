"""What a rule names must be there when it is activated: templates and offers, which are dispatch's own.

Dispatch publishes their names (`platform.catalogue`); nobody reads its tables. What is archived afterwards is caught when
a message is claimed (*no-template*, *no-offer*).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from services.triggers.rule import Rule
from services.triggers.steps.base import Mention
from shared.conditions.errors import nearest


@dataclass(frozen=True)
class Catalogue:
    """The names there are. `templates`: by name what the template is for: marketing | transactional | confirmation."""

    templates: dict[str, str]
    offers: frozenset[str]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str | None]]) -> Catalogue:
        """From rows of (kind, name, purpose)."""
        rows = list(rows)
        return cls(
            templates={name: str(purpose) for kind, name, purpose in rows if kind == "template"},
            offers=frozenset(name for kind, name, _ in rows if kind == "offer"),
        )

    def faults(self, rule: Rule) -> list[dict[str, Any]]:
        """What keeps the rule from being activated, each `{"pointer", "detail"}`; empty if nothing does."""
        found = [(mention.pointer, self._fault(mention, rule)) for step in rule.flow for mention in step.mentions]
        return [{"pointer": f"#{pointer}", "detail": detail} for pointer, detail in found if detail]

    def _fault(self, mention: Mention, rule: Rule) -> str:
        known: Iterable[str] = self.templates if mention.kind == "template" else self.offers
        if mention.name not in known:
            meant = nearest(mention.name, sorted(known))
            hint = f": did you mean {meant!r}?" if meant else f": make it first (POST /v1/{mention.kind}s)"
            return f"there is no {mention.kind} {mention.name!r}{hint}"
        if mention.kind == "template" and rule.kind == "marketing" and self.templates[mention.name] == "transactional":
            return f"the template {mention.name!r} is transactional and need not have a way out; the rule is marketing"
        if mention.kind == "template" and rule.kind == "transactional" and self.templates[mention.name] == "marketing":
            return f"the template {mention.name!r} is marketing; the rule is transactional: make one of them what the other is"
        return ""

    def missing(self, rule: Rule) -> dict[str, list[str]]:
        """The names in the rule that are not there, by kind."""
        named = {mention for step in rule.flow for mention in step.mentions}
        return {
            "templates": sorted({m.name for m in named if m.kind == "template"} - self.templates.keys()),
            "offers": sorted({m.name for m in named if m.kind == "offer"} - self.offers),
        }

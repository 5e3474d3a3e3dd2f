"""What the routes of triggers have in common."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Query, Request

from services.triggers.documents import LONGEST, DocumentError, parse_document, parse_documents
from services.triggers.editing import no_such_rule
from services.triggers.store import decisions as decision_store
from services.triggers.store import rules as rule_store
from shared import cdp
from shared.auth import Principal, scope
from shared.db import Tx
from shared.errors import Problem
from shared.service import Context

Reader = Annotated[Principal, Depends(scope("read"))]
Marketer = Annotated[Principal, Depends(scope("marketing"))]
Limit = Annotated[int, Query(ge=1, le=200)]
FIRST_YEAR, LAST_YEAR = 1900, 9000
BODY = {"requestBody": {"required": True, "content": {"application/json": {}, "application/yaml": {}}}}
OPTIONAL_BODY = {"requestBody": {"required": False, "content": {"application/json": {}, "application/yaml": {}}}}


# ── documents ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def document_of(request: Request) -> Any:
    """The one document of the body."""
    return _readable(parse_document, await body_of(request))


async def documents_of(request: Request) -> list[Any]:
    """The rules of the body: `{"rules": [document, …]}`, or YAML documents one after the other."""
    found = _readable(parse_documents, await body_of(request))
    if len(found) == 1 and isinstance(found[0], dict) and isinstance(found[0].get("rules"), list):
        found = found[0]["rules"]
    for index, one in enumerate(found):
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            detail = "a rule is a mapping with a name"
            raise Problem(422, "The rules are not valid", errors=[{"pointer": f"#/{index}", "detail": detail}])
    return found


async def body_of(request: Request) -> bytes:
    body = await request.body()
    if len(body) > 4 * LONGEST:
        raise Problem(413, "The body is too large", f"A rule's document has at most {LONGEST} characters.")
    return body


def _readable(parse: Any, body: bytes) -> Any:
    try:
        return parse(body)
    except DocumentError as error:
        raise Problem(400, "The body is neither YAML nor JSON", str(error)) from error


# ── rules and people ──────────────────────────────────────────────────────────────────────────────────────────────────
async def found_rule(tx: Tx, reference: str) -> Any:
    """The row of a rule, by id or name; a 404 if there is none."""
    row = await rule_store.find_rule(tx, reference)
    if row is None:
        raise no_such_rule(reference)
    return row


@dataclass(frozen=True)
class Who:
    """A person, by a profile id of any time or by identifiers as a person writes them; several must be the same person's."""

    profile: UUID | None = None
    user_id: str | None = None
    card: str | None = None
    external_id: str | None = None
    email: str | None = None
    phone: str | None = None
    anonymous_id: str | None = None

    @property
    def identifiers(self) -> list[tuple[str, str]]:
        """Those that were given, as (kind, value)."""
        kinds = ("user_id", "card", "external_id", "email", "phone", "anonymous_id")
        return [(kind, value) for kind in kinds if (value := getattr(self, kind)) is not None]

    @property
    def asked(self) -> bool:
        """Whether anybody is asked for."""
        return self.profile is not None or bool(self.identifiers)

    def __str__(self) -> str:
        named = ([f"profile {self.profile}"] if self.profile else []) + [kind for kind, _ in self.identifiers]
        return " and ".join(named)

    async def nodes(self, context: Context, tx: Tx) -> list[UUID]:
        """The person's present nodes; none if nobody is known by all that was given."""
        profiles = []
        if self.profile is not None:
            profiles.append((await cdp.current_profiles(tx, [self.profile])).get(self.profile, self.profile))
        if self.identifiers:
            country = context.settings.shop_country
            nodes = await cdp.nodes_by_identifier(tx, context.node_namespace, country, self.identifiers)
            if None in nodes:
                return []
            owners = await cdp.people_of(tx, [(node, None) for node in nodes if node is not None])
            profiles += [owner.profile if owner else UUID(int=0) for owner in owners]
        if len(set(profiles)) != 1:
            return []
        return await decision_store.nodes_of_profile(tx, profiles[0])

    async def known(self, context: Context, tx: Tx) -> list[UUID]:
        """The same; a 422 where nobody is asked for, a 404 where nobody is found."""
        if not self.asked:
            detail = "say whom: profile, user_id, card, external_id, email, phone or anonymous_id"
            error = {"parameter": "profile", "in": "query", "detail": detail}
            raise Problem(422, "The request is not valid", errors=[error])
        nodes = await self.nodes(context, tx)
        if not nodes:
            raise Problem(404, "No such profile", f"There is nobody with this {self}.")
        return nodes


Person = Annotated[Who, Depends()]


def zoned(context: Context, moment: datetime | None, name: str = "at") -> datetime:
    """The moment of a query, by default now; a 422 if it has no zone, or lies where nobody can look back or ahead from."""
    detail = ""
    if moment is not None and moment.tzinfo is None:
        detail = "needs a zone"
    elif moment is not None and not FIRST_YEAR <= moment.year <= LAST_YEAR:
        detail = f"must lie between the years {FIRST_YEAR} and {LAST_YEAR}"
    if detail:
        error = {"parameter": name, "in": "query", "detail": detail}
        raise Problem(422, "The request is not valid", errors=[error])
    return moment or context.clock.now()


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def cursor_of(moment: datetime, last: object) -> str:
    """Where a page ended."""
    return base64.urlsafe_b64encode(f"{moment.isoformat()} {last}".encode()).decode()


def after_cursor(cursor: str | None, kind: Any) -> Any:
    """What `cursor_of` made, its second part as `kind`; a 422 for anything else."""
    if cursor is None:
        return None
    try:
        moment, last = base64.urlsafe_b64decode(cursor).decode().split(" ")
        return datetime.fromisoformat(moment), kind(last)
    except ValueError:
        raise Problem(422, "The request is not valid", "The cursor is not one that a list gave.") from None

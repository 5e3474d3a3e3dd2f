"""What adapters are told by API, between its three forms: the document, the row (secrets apart and sealed), the instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pydantic
from pydantic import SecretStr

from services.dispatch.channels.base import Adapter, AdapterSettings
from services.dispatch.secrets import Sealer, Unsealable
from services.dispatch.store.adapters import Told


class Unusable(Exception):
    """What the adapter was told cannot be used; the text says why and what to do."""


class SettingsReader:
    """Rows → instances. What is kept between calls is keyed by the whole row, so a change is seen with the row itself."""

    def __init__(self, kinds: Mapping[str, type[Adapter]], sealer: Sealer) -> None:
        self._kinds, self._sealer = kinds, sealer
        self._read: dict[str, tuple[bytes, AdapterSettings]] = {}

    def read(self, told: Told) -> AdapterSettings:
        """Raises Unusable."""
        row = msgspec.json.encode([told.settings, told.secrets])
        known = self._read.get(told.name)
        if known is not None and known[0] == row:
            return known[1]
        settings = self._parse(told)
        self._read[told.name] = (row, settings)
        return settings

    def _parse(self, told: Told) -> AdapterSettings:
        kind = self._kinds.get(told.name)
        if kind is None or kind.settings_type is None:
            raise Unusable("there is no such adapter in this process, or it takes no settings")
        try:
            return kind.settings_type.model_validate(
                {**told.settings, **self._sealer.open(told.name, told.secrets)}, strict=False
            )
        except Unsealable as problem:
            raise Unusable(str(problem)) from None
        except pydantic.ValidationError as problem:
            fields = ", ".join(".".join(str(part) for part in item["loc"]) for item in problem.errors())
            raise Unusable(f"this version asks for other settings (see {fields}): tell them again") from None


def secret_fields(kind: type[AdapterSettings]) -> frozenset[str]:
    """The fields that are written and never read back."""
    return frozenset(name for name, field in kind.model_fields.items() if "SecretStr" in str(field.annotation))


def split(settings: AdapterSettings) -> tuple[dict[str, Any], dict[str, str]]:
    """(what may be read back, the secrets), both as they are stored."""
    secret = secret_fields(type(settings))
    public = settings.model_dump(mode="json", exclude=set(secret))
    values = {name: getattr(settings, name) for name in secret}
    return public, {name: one.get_secret_value() for name, one in values.items() if isinstance(one, SecretStr)}


def merged(kind: type[AdapterSettings], document: Mapping[str, Any], kept: Mapping[str, str]) -> dict[str, Any]:
    """The document with the secrets that it leaves out as they are kept; null takes one away."""
    secret = secret_fields(kind)
    return {**{name: value for name, value in kept.items() if name in secret and name not in document}, **document}

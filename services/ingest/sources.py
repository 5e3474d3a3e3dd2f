"""Sources, their write keys, and the cache that answers whose key a request carries.

The cache holds all keys that count. It is brought up to date by a signal when a key changes, by a look at the version
every second, and by a request with a key that it does not know. Without the database it stays usable for ten minutes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from uuid import UUID

import msgspec

from services.ingest.parse import Source
from services.ingest.reading import WRITE_KEY
from shared.clock import pause
from shared.errors import is_transient
from shared.ids import RandomBits
from shared.log import get_logger
from shared.wake import Wake

KEYS_CHANGED = "ingest:keys"  # signal: sources or keys changed
USABLE_WITHOUT_DATABASE = 600.0  # seconds
LOOK_EVERY = 1.0  # seconds between two looks at the version
LOOK_AGAIN_FOR_UNKNOWN = 0.25  # seconds: strangers with wrong keys cause at most four looks a second

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

log = get_logger(__name__)


class KnownKey(msgspec.Struct, frozen=True):
    """A key that counts, until `valid_until` if that is set. `former_secret` counts until `former_until`."""

    hash: bytes
    source: UUID
    name: str
    kind: str
    valid_until: datetime | None = None
    signing_secret: str | None = None
    former_secret: str | None = None
    former_until: datetime | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """All keys that count, as of a version."""

    version: int
    keys: list[KnownKey]


class KeysUnknown(ConnectionError):
    """The database could not be asked about keys for too long; a ConnectionError, so that it counts as transient."""


def new_key(bits: RandomBits) -> str:
    """A write key: `c` and 24 of [a-z0-9], 124 random bits."""
    number, letters = bits(256), []
    for _ in range(24):
        number, index = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "c" + "".join(letters)


def new_signing_secret(bits: RandomBits) -> str:
    """A signing secret: 64 hexadecimal digits; as text it is the key of the HMAC."""
    return f"{bits(256):064x}"


def key_hash(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).digest()


def key_hint(key: str) -> str:
    """What is shown of a key that is not shown again."""
    return f"{key[:4]}…{key[-3:]}"


class KeyCache:
    """Answers whose key it is, from memory.

    `load`: reads all keys that count; `version`: reads the version alone. `now`: business time, for keys that end.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Snapshot]],
        version: Callable[[], Awaitable[int]],
        now: Callable[[], datetime],
        wake: Wake,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._version, self._now, self._wake, self._monotonic = load, version, now, wake, monotonic
        self._keys: dict[bytes, tuple[KnownKey, Source]] = {}
        self._known_version = -1
        self._looked_at = float("-inf")
        self._looked_for_unknown_at = float("-inf")
        self._looking = asyncio.Lock()
        self._failing = False
        self._next_look: asyncio.Task[None] | None = None

    def find(self, key: str) -> Source | None:
        """The source of a key that counts now. Raises KeysUnknown when the cache is too old to say."""
        if self._monotonic() - self._looked_at > USABLE_WITHOUT_DATABASE:
            raise KeysUnknown("keys have not been compared with the database for ten minutes")
        if not WRITE_KEY.fullmatch(key) or not (found := self._keys.get(key_hash(key))):
            return None
        known, source = found
        if known.valid_until is None and known.former_until is None:
            return source
        now = self._now()
        if known.valid_until is not None and now >= known.valid_until:
            return None
        if known.former_until is not None and now >= known.former_until:
            return msgspec.structs.replace(source, signing_secrets=source.signing_secrets[:1])
        return source

    async def find_fresh(self, key: str) -> Source | None:
        """Like `find`, but looks into the database before it says no: the key may have been made a moment ago."""
        if (source := self.find(key)) or not WRITE_KEY.fullmatch(key):
            return source
        await self._look_again()
        if self._failing:
            raise KeysUnknown("an unknown key cannot be looked up: the database is not there")
        return self.find(key)

    async def refresh(self) -> None:
        """Compares the version and reads the keys if it differs. Raises what the database raises."""
        async with self._looking:
            begun = self._monotonic()
            if await self._version() != self._known_version:
                snapshot = await self._load()
                self._keys = {key.hash: (key, _source(key)) for key in snapshot.keys}
                self._known_version = snapshot.version
            self._looked_at = begun

    async def _look_again(self) -> None:
        """Waits for a look into the database that begins from now on; those who wait together share it."""
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._delayed_look())
        await asyncio.shield(self._next_look)

    async def _delayed_look(self) -> None:
        await pause(max(0.0, self._looked_for_unknown_at + LOOK_AGAIN_FOR_UNKNOWN - self._monotonic()))
        self._looked_for_unknown_at = self._monotonic()
        self._next_look = None
        await self._try_refresh()

    async def _try_refresh(self) -> None:
        """Refreshes; remembers, and says once, that the database is not there."""
        try:
            await self.refresh()
            self._failing = False
        except Exception as problem:
            if not is_transient(problem):
                raise
            if not self._failing:
                log.warning("keys cannot be compared with the database", error=str(problem))
            self._failing = True

    async def check(self) -> None:
        """Raises KeysUnknown when keys can no longer be judged (for readyz)."""
        self.find("")

    async def loop(self) -> None:
        """Keeps the cache up to date until it is cancelled."""
        listener = self._wake.listen([KEYS_CHANGED])
        try:
            while True:
                await listener.wait(LOOK_EVERY)
                await self._try_refresh()
        finally:
            listener.close()


def _source(key: KnownKey) -> Source:
    secrets = tuple(secret for secret in (key.signing_secret, key.former_secret) if secret)
    return Source(key.source, key.name, "secret" if key.kind == "secret" else "public", secrets)

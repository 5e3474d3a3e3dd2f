"""The settings of one process, read from the environment once.

Each field below is an environment variable in capitals (`PORT=9000 dripline up`); `SECRETS_DIR` names a folder of
files, one a setting, for what should not stand in the environment (`smtp_url`, `secret_key` …). What marketers
decide (channels, caps, quiet hours per channel, rules) is not here: it is changed by API while Dripline runs.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import available_timezones

import pydantic
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import ConfigurationError
from shared.server_urls import refuse_unusable

ServiceName = Literal["ingest", "profile", "triggers", "dispatch"]
SERVICE_NAMES: tuple[ServiceName, ...] = get_args(ServiceName)
EMBEDDED_PARTITIONS = 8
PARTITIONS = 64


class Settings(BaseSettings):
    """What one process of Dripline is told. Use `load`, which turns mistakes into one sentence each."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True)

    # ── which part of Dripline this process is ────────────────────────────────────────────────────────────────────
    services: Annotated[frozenset[ServiceName], NoDecode] = frozenset(SERVICE_NAMES)
    """The services that this process runs, separated by commas. Default: all four."""

    bus_url: SecretStr | None = None
    """The bus: `postgresql://…` or `kafka://host:port`. Default: a log table in the database."""

    database_url: SecretStr | None = None
    """The PostgreSQL server: `postgresql://user:password@host/db`. Default: an embedded server under `data_dir`."""

    data_dir: Path = Path("data")
    """Folder of the embedded database, the inbox, the credentials of the first start and the erasure journal."""

    erasure_journal: Path | None = None
    """File outside the database that remembers, by keyed hashes, who was erased: a restore applies it before the system
    opens. Default: `erasures.txt` in `data_dir`; `off` keeps none. Back it up on its own."""

    dead_letter_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """Days that dead letters are kept after they were replayed or discarded, and those nobody looked at."""

    partitions: Annotated[int, Field(ge=1, le=1024)] = PARTITIONS
    """Partitions of each bus topic, fixed when it is made. Default: 64, or 8 when bus and database are embedded."""

    # ── where it listens ──────────────────────────────────────────────────────────────────────────────────────────
    host: str = "127.0.0.1"
    """Address to listen on. `0.0.0.0` opens the HTTP API to the network."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """TCP port to listen on; 0 takes a free one."""

    public_url: str = ""
    """The address that people and clients reach, as it stands in the links of messages. Default: `http://host:port`."""

    # ── the shop ──────────────────────────────────────────────────────────────────────────────────────────────────
    shop_name: str = "Dripline Shop"
    """The shop's name: sender of e-mails, `{{ shop.name }}` in templates."""

    shop_timezone: str = "Europe/Moscow"
    """IANA time zone of the shop; counts where a person's own is not known (quiet hours, schedules)."""

    shop_country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "RU"
    """ISO 3166 country by which phone numbers without a country code are read. Never change it: ids derive from it."""

    shop_currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "RUB"
    """ISO 4217 code of the one currency of all amounts. An order in another is dead-lettered."""

    shop_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names that links in messages may lead to, separated by commas. Default: that of `public_url` alone."""

    # ── time limits ───────────────────────────────────────────────────────────────────────────────────────────────
    mark_interval_ms: Annotated[int, Field(ge=10, le=60_000)] = 200
    """Milliseconds between two marks of the watermark: what a marketing decision waits for at least."""

    linger_ms: Annotated[int, Field(ge=0, le=1_000)] = 20
    """Milliseconds that a consumer waits at least after a small batch, so that the next one is larger; on a busy machine it
    waits as long as the batch took, up to 100 ms. 0: never."""

    lease_seconds: Annotated[float, Field(ge=0.5, le=60)] = 3.0
    """Seconds that a lease on a partition lasts without renewal."""

    drain_seconds: Annotated[float, Field(ge=0, le=120)] = 0.0
    """Seconds that a process which was told to stop (SIGTERM) still takes requests, not ready any more: as long as a load
    balancer needs to notice."""

    # ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────
    database_pool_size: Annotated[int, Field(ge=2, le=200)] = 10
    """Connections that each service of this process may hold to the database."""

    max_bytes_in_flight: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    """Bytes of request bodies that ingest takes on at once, and of providers' calls dispatch; beyond it they answer 429."""

    network_bytes_in_flight: Annotated[int, Field(ge=1 << 20)] = 8 << 20
    """Bytes of those that one network (/24, IPv6 /48) may hold with a public key, before any key is known, or with calls to
    `/webhooks`; beyond it gets 429."""

    public_events_per_second: Annotated[int, Field(ge=0)] = 3_000
    """Events a second that one public source may post in the long run, 20 times as many at once; beyond it gets 429. Of
    each process of ingest; 0 is no limit."""

    network_events_per_second: Annotated[int, Field(ge=0)] = 500
    """Events a second that one network (/24, IPv6 /48) may post with one public source, 20 times as many at once; beyond
    it gets 429. Of each process of ingest; 0 is no limit."""

    network_links_per_second: Annotated[int, Field(ge=0)] = 200
    """Links of messages (clicks, pixels, pages) a second that one network (/24, IPv6 /48) may open, 20 times as many at
    once; beyond it a pixel is not counted and the others get 429. Opting out is not among them. Of each process of
    dispatch; 0 is no limit."""

    network_unproven_per_second: Annotated[int, Field(ge=0)] = 50
    """Calls to `/webhooks` without a valid proof, and wrong links, a second that one network (/24, IPv6 /48) may try, 20
    times as many at once; beyond it gets 429. What is proven does not count. Of each process of dispatch; 0 is no limit."""

    # ── sending ───────────────────────────────────────────────────────────────────────────────────────────────────
    smtp_url: SecretStr | None = None
    """`smtp://user:password@host:587`, or `smtps://…`. Default: e-mail stays in the inbox."""

    smtp_from: str = ""
    """Sender's address of e-mails. Default: `shop@` and the host of `public_url`."""

    channels_path: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders with channels and adapters of your own, separated by commas; the same for all services (docs/ADDING.md)."""

    quiet_hours: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")] = "21:00-09:00"
    """Local time of day in which SMS, push, messengers and calls wait. E-mail has none unless its channel sets them."""

    outside_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks such as `10.0.0.0/8`, separated by commas, that providers' addresses may lie in although they are not
    public. Default: none; a channel that is told an address in your own network is refused."""

    # ── secrets ───────────────────────────────────────────────────────────────────────────────────────────────────
    secret_key: SecretStr | None = None
    """Key that signs links in messages. Default: made at the first start and kept in the database."""

    set_in_vain: Annotated[tuple[str, ...], NoDecode] = ()
    """Written by docker-compose.yml alone: the names of secrets that stand in `.env` or the shell, where they do nothing.
    `dripline doctor` and the first lines of the log name them."""

    # ── logs ──────────────────────────────────────────────────────────────────────────────────────────────────────
    log_format: Literal["auto", "console", "json"] = "auto"
    """`console` for people, `json` for machines; `auto` is console in a terminal and JSON elsewhere."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written."""

    @field_validator("services", "shop_hosts", "channels_path", "outside_allow", "set_in_vain", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("bus_url", "smtp_url", "secret_key", mode="before")
    @classmethod
    def _nothing_in_an_empty_file(cls, value: Any) -> Any:
        return (
            value or None
        )  # an empty DATABASE_URL is refused: the embedded server would hide that the real one is not named

    @field_validator("services")
    @classmethod
    def _at_least_one_service(cls, value: frozenset[ServiceName]) -> frozenset[ServiceName]:
        if not value:
            raise ValueError(f"name at least one of {', '.join(SERVICE_NAMES)}")
        return value

    @field_validator("shop_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("is not an IANA time zone such as Europe/Moscow")
        return value

    @field_validator("database_url")
    @classmethod
    def _plain_postgresql_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"^postgres(ql)?://", value.get_secret_value()):
            raise ValueError("must begin with postgresql://")
        return _with_usable_servers(value)

    @field_validator("bus_url")
    @classmethod
    def _known_bus(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not re.match(r"^(postgres(ql)?|kafkas?)://", value.get_secret_value()):
            raise ValueError("must begin with postgresql://, kafka:// or kafkas://")
        return _with_usable_servers(value)

    @field_validator("smtp_url")
    @classmethod
    def _smtp_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        _with_usable_servers(value)
        if value:
            parts = urlsplit(value.get_secret_value())
            if parts.scheme not in ("smtp", "smtps", "smtp+starttls") or not parts.hostname:
                raise ValueError("must look like smtp://user:password@host:587")
        return value

    @field_validator("public_url")
    @classmethod
    def _http_origin(cls, value: str) -> str:
        refuse_unusable(value)
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
            raise ValueError("must look like https://mail.example.com")
        return value.rstrip("/")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fewer_partitions_when_embedded(cls, values: Any) -> Any:
        embedded = not values.get("bus_url") and not values.get("database_url")
        if embedded and values.get("partitions") is None:
            values = {**values, "partitions": EMBEDDED_PARTITIONS}
        return values

    @property
    def uses_embedded_database(self) -> bool:
        """Whether this process starts PostgreSQL itself."""
        return self.database_url is None

    @property
    def origin(self) -> str:
        """`public_url`, or what a browser on this machine would use; without a trailing slash."""
        if self.public_url:
            return self.public_url
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"

    @property
    def link_hosts(self) -> frozenset[str]:
        """Host names that a click may be forwarded to."""
        return frozenset(self.shop_hosts) or frozenset({urlsplit(self.origin).hostname or ""})

    @property
    def sender(self) -> str:
        """The address that e-mails come from."""
        return self.smtp_from or f"shop@{urlsplit(self.origin).hostname}"

    @property
    def lease(self) -> timedelta:
        """`lease_seconds` as a duration."""
        return timedelta(seconds=self.lease_seconds)

    @property
    def mark_interval(self) -> timedelta:
        """`mark_interval_ms` as a duration."""
        return timedelta(milliseconds=self.mark_interval_ms)

    @property
    def linger(self) -> timedelta:
        """`linger_ms` as a duration."""
        return timedelta(milliseconds=self.linger_ms)

    @property
    def inbox_dir(self) -> Path:
        """Where messages land until a channel is configured; e-mail as Maildir."""
        return self.data_dir / "inbox"

    @property
    def erasure_journal_file(self) -> Path | None:
        """`erasure_journal`, or its default; None when there is none."""
        if self.erasure_journal is not None and str(self.erasure_journal) == "off":
            return None
        return self.erasure_journal or self.data_dir / "erasures.txt"

    @property
    def credentials_file(self) -> Path:
        """What the first start wrote for the person who started it: URL and keys, mode 0600."""
        return self.data_dir / "credentials.json"


def load(**overrides: Any) -> Settings:
    """The settings from the environment; `overrides` (from the command line) win, those that are None count as absent.

    :raises ConfigurationError: naming each variable that is wrong and what it should be
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    secrets = os.environ.get("SECRETS_DIR") or None
    if secrets and not Path(secrets).is_dir():
        raise ConfigurationError(f"SECRETS_DIR names {secrets}, which is not a folder.")
    try:
        return Settings(_secrets_dir=secrets, **given)  # type: ignore[call-arg]  # known to BaseSettings.__init__ only
    except pydantic.ValidationError as error:
        complaints = [f"{str(item['loc'][0]).upper()}: {_in_words(item)}" for item in error.errors() if item["loc"]]
        raise ConfigurationError("Wrong setting. " + "; ".join(complaints or [str(error)]) + ".") from None


def _with_usable_servers(value: SecretStr | None) -> SecretStr | None:
    if value:
        refuse_unusable(value.get_secret_value())
    return value


def _in_words(item: Any) -> str:
    """Pydantic's complaint without its prefix; the value itself is left out, it may be a password."""
    return str(item["msg"]).removeprefix("Value error, ")

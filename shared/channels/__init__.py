"""What every service knows of a channel: one file a channel.

Those of the product lie in this folder, a deployment's own in the folders that CHANNELS_PATH names, beside their adapters.
`email.yaml` declares the channel `email`; its fields are those of `Channel`. A process calls `declare` before its services
are made. The names below are views of what is declared at the moment; nobody copies them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
import yaml

from shared.errors import ConfigurationError
from shared.identifiers import KINDS

HERE = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
# What is told of a message of any channel: `Email Sent`, `Email Opened` …
FEEDBACK = ("Sent", "Delivered", "Opened", "Clicked", "Bounced", "Complained", "Failed", "Replied", "Done")


class Channel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A channel, and its row in dispatch's catalogue before anybody changes it (domain.md §2). Money in the shop's currency
    for one unit.

    `address`: which kind of identifier its addresses are (`shared.identifiers.KINDS`). `event`: how its events begin
    ("Email" Sent). `consents`: the channel whose consents hold for this one, too; None: people agree to this one by its own
    name. `reach`, `act`, `lost`: see `choice.Figures`. `quiet`: whether the deployment's quiet hours hold for it. `caps`: as
    the API takes them (`inputs.Cap`), of this channel.
    """

    address: str
    event: Annotated[str, msgspec.Meta(pattern=r"^[A-Z][A-Za-z0-9 ]{0,39}$")]
    unit_cost: Decimal
    reach: Decimal
    act: Decimal
    lost: Decimal
    quiet: bool = True
    caps: tuple[dict[str, Any], ...] = ()
    consents: str | None = None

    def __post_init__(self) -> None:
        if self.address not in KINDS:
            raise ValueError(f"address is one of {', '.join(KINDS)}, not {self.address!r}")
        if self.unit_cost < 0:
            raise ValueError("unit_cost is below 0")
        for name in ("reach", "act", "lost"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1")


_known: dict[str, Channel] = {}
_address_kinds: dict[str, str] = {}
_addresses: set[str] = set()
_complaints: dict[str, str] = {}
_feedback: dict[str, str] = {}

# All channels, by name.
KNOWN: Mapping[str, Channel] = MappingProxyType(_known)
# Channel → the kind of node that is its address, for those that people consent to by their own name.
ADDRESS_KIND: Mapping[str, str] = MappingProxyType(_address_kinds)
# The kinds of identifiers that are an address of some channel.
ADDRESSES: Set[str] = _addresses
# `Email Complained` → the channel under which that takes the consent away.
COMPLAINTS: Mapping[str, str] = MappingProxyType(_complaints)
# The names of feedback events, which only the product itself may publish, by their lower case.
FEEDBACK_NAMES: Mapping[str, str] = MappingProxyType(_feedback)


def declare(folders: Iterable[Path] = ()) -> None:
    """Makes the product's channels and those of `folders` the channels of this process, from now on.

    :raises ConfigurationError: see `read`
    """
    found = read(folders)
    _known.clear()
    _known.update(found)
    _address_kinds.clear()
    _address_kinds.update({name: one.address for name, one in found.items() if one.consents is None})
    _addresses.clear()
    _addresses.update(one.address for one in found.values())
    _complaints.clear()
    _complaints.update({f"{one.event} Complained": one.consents or name for name, one in found.items()})
    _feedback.clear()
    _feedback.update({n.casefold(): n for one in found.values() for n in (f"{one.event} {what}" for what in FEEDBACK)})


def read(folders: Iterable[Path] = ()) -> dict[str, Channel]:
    """The product's channels and those declared in `folders`, by name.

    :raises ConfigurationError: a folder does not exist; a file cannot be read or contradicts another
    """
    files: dict[str, Path] = {}
    for file in _files(folders):
        if file.stem in files:
            raise ConfigurationError(
                f"{file} declares the channel {file.stem}, which there is already: rename the file."
            )
        files[file.stem] = file
    found: dict[str, Channel] = {}
    for name, file in files.items():
        one = _read(file)
        for other, earlier in found.items():
            if earlier.event.casefold() == one.event.casefold():
                raise ConfigurationError(
                    f"{file}: events of {other} begin with {earlier.event!r} already; take another event."
                )
        found[name] = one
    for name, one in found.items():
        _refuse_strange_consents(files[name], one, {other: found[other] for other in found if other != name})
    return found


def _files(folders: Iterable[Path]) -> Iterable[Path]:
    yield from sorted(HERE.glob("*.yaml"))
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"CHANNELS_PATH names {folder}, which is not a folder.")
        yield from sorted(folder.glob("*.yaml"))


def _read(file: Path) -> Channel:
    if not _NAME.fullmatch(file.stem):
        raise ConfigurationError(f"{file}: a channel's name is lower case letters, digits, - and _, at most 40.")
    try:
        return msgspec.convert(yaml.safe_load(file.read_text(encoding="utf-8")), Channel)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as problem:
        raise ConfigurationError(f"The channel in {file} cannot be read: {problem}") from None


def _refuse_strange_consents(file: Path, one: Channel, others: Mapping[str, Channel]) -> None:
    if one.consents is None:
        return
    theirs = others.get(one.consents)
    if theirs is None or theirs.consents is not None:
        names = ", ".join(name for name, other in others.items() if other.consents is None)
        raise ConfigurationError(
            f"{file}: nobody can consent to {one.consents!r}: let consents be one of {names}, or leave it out."
        )
    if theirs.address != one.address:
        raise ConfigurationError(
            f"{file}: consents to {one.consents} are given for a {theirs.address}, and this channel's addresses are of "
            f"the kind {one.address}: both must be of one kind."
        )


declare()

"""Finds the adapters: every file of this folder, and of the folders given besides, that declares `ADAPTER`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType

from services.dispatch.channels.base import Adapter
from shared.channels import KNOWN, Channel, read
from shared.errors import ConfigurationError
from shared.settings import Settings

HERE = Path(__file__).parent
_SELF = ("__init__", "base", "registry")


def find(folders: Iterable[Path] = ()) -> dict[str, type[Adapter]]:
    """All adapters by name. `folders`: where besides this folder they are looked for.

    :raises ConfigurationError: two files declare one name, a folder does not exist, or an adapter and the channels that are
        declared (`shared.channels`) do not fit
    """
    channels = read(folders)
    found: dict[str, type[Adapter]] = {}
    for module in _modules(folders):
        adapter = getattr(module, "ADAPTER", None)
        if adapter is None:
            continue
        if adapter.name in found and found[adapter.name] is not adapter:
            raise ConfigurationError(
                f"Two files declare the channel adapter {adapter.name}: rename the one in {module.__file__}."
            )
        _refuse_strange(adapter, str(module.__file__), channels)
        found[adapter.name] = adapter
    _refuse_unserved(found, channels)
    return found


def _refuse_strange(adapter: type[Adapter], file: str, channels: Mapping[str, Channel]) -> None:
    """What everybody knows of a channel is in its own file; an adapter of none would serve nobody, and nobody be told."""
    channel = channels.get(adapter.channel)
    if channel is None:
        raise ConfigurationError(
            f"{file} serves the channel {adapter.channel}, which no file declares: put {adapter.channel}.yaml beside it "
            f"(docs/ADDING.md), or let it serve one of {', '.join(channels)}."
        )
    if channel.address != adapter.address_kind:
        raise ConfigurationError(
            f"{file} sends to addresses of the kind {adapter.address_kind}, and those of its channel {adapter.channel} are "
            f"of the kind {channel.address}: both must be of one kind."
        )


def _refuse_unserved(adapters: Mapping[str, type[Adapter]], channels: Mapping[str, Channel]) -> None:
    served = {adapter.channel for adapter in adapters.values()}
    if missing := [name for name in channels if name not in served]:
        raise ConfigurationError(
            f"No adapter serves the channel {missing[0]}: put a file with one into a folder of CHANNELS_PATH (docs/ADDING.md)."
        )


def consents() -> dict[str, str]:
    """Under which channel of the consent ledgers each channel's consent stands: its own, unless it shares another's."""
    return {name: one.consents or name for name, one in KNOWN.items()}


def can_serve(kind: type[Adapter], settings: Settings, told: Collection[str]) -> bool:
    """Whether the adapter has what it needs. `told`: the adapters that were told their settings by API."""
    return kind.usable(settings) and (kind.name in told or kind.serves_untold(settings))


def ready(
    adapters: Mapping[str, type[Adapter]], channel: str, settings: Settings, told: Collection[str]
) -> list[type[Adapter]]:
    """The adapters of the channel that have what they need."""
    return [kind for kind in adapters.values() if kind.channel == channel and can_serve(kind, settings, told)]


def side_by_side(
    adapters: Mapping[str, type[Adapter]], channel: str, wanted: str | None, settings: Settings, told: Collection[str]
) -> list[type[Adapter]]:
    """The adapters of a channel, the most preferred first; each takes the addresses that it accepts. The one that the
    channel's row names serves alone. As soon as one of them leaves the machine the inbox takes nothing any more: a message
    whose address nobody accepts must not look sent."""
    usable = ready(adapters, channel, settings, told)
    if wanted is not None:
        return [kind for kind in usable if kind.name == wanted]
    leaving = any(kind.leaves_machine for kind in usable)
    return sorted(
        (kind for kind in usable if kind.leaves_machine == leaving),
        key=lambda kind: (kind.preference, kind.name),
        reverse=True,
    )


def serving(
    adapters: Mapping[str, type[Adapter]],
    channel: str,
    wanted: str | None,
    settings: Settings,
    told: Collection[str] = (),
) -> type[Adapter] | None:
    """The adapter of a channel: the one its row names, else the usable one that is preferred most; None if there is none."""
    return next(iter(side_by_side(adapters, channel, wanted, settings, told)), None)


def taking(candidates: Iterable[type[Adapter]], address: str) -> type[Adapter] | None:
    """The first of them that accepts the address."""
    return next((kind for kind in candidates if kind.accepts(address)), None)


def _modules(folders: Iterable[Path]) -> Iterable[ModuleType]:
    for file in sorted(HERE.glob("*.py")):
        if file.stem not in _SELF:
            yield importlib.import_module(f"{__package__}.{file.stem}")
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"CHANNELS_PATH names {folder}, which is not a folder.")
        for file in sorted(folder.glob("*.py")):
            if file.stem != "__init__":
                yield _from_file(file)


def _from_file(file: Path) -> ModuleType:
    name = f"dripline_channel_{file.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(file):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

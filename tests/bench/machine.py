"""What else weighs on the machine while something is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/stat")
_STEAL = 7  # the column of /proc/stat: time in which the hypervisor gave the processors to others


def stolen() -> Callable[[], dict[str, float]]:
    """Begins to look; what is returned says the share of processor time since then that went to other machines, in
    per cent. Empty where the system does not tell (it is no Linux)."""
    began = _ticks()

    def since() -> dict[str, float]:
        spent = [now - then for now, then in zip(_ticks(), began, strict=True)]
        return {"stolen_percent": round(100 * spent[_STEAL] / sum(spent), 1)} if sum(spent) else {}

    return since


def _ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal of all processors together."""
    return [int(word) for word in _STAT.read_text().split()[1 : _STEAL + 2]] if _STAT.exists() else []

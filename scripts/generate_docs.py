"""The tables in docs/ that are written from the code: metrics, settings, caps, channels.

python scripts/generate_docs.py            writes docs/METRICS.md, and the tables in docs/OPERATIONS.md
python scripts/generate_docs.py --check    fails if they are not what the code says now
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from services.dispatch.api.channels import declared_caps  # noqa: E402
from services.dispatch.inputs import Cap  # noqa: E402
from services.dispatch.policy import DEFAULT_CAPS  # noqa: E402
from shared.channels import KNOWN  # noqa: E402
from shared.metrics import LABELS, catalogue  # noqa: E402
from shared.settings import Settings  # noqa: E402

METRICS = ROOT / "docs" / "METRICS.md"
OPERATIONS = ROOT / "docs" / "OPERATIONS.md"
# Read by the programs below ours, not by shared/settings.py.
BESIDE = {
    "SECRETS_DIR": ("–", "A folder of files, one a setting, named in small letters: `database_url`, `smtp_url` …"),
    "FORWARDED_ALLOW_IPS": (
        "127.0.0.1",
        "Addresses and networks of proxies whose `X-Forwarded-For` is believed, separated by commas.",
    ),
}
METRICS_HEAD = """# Metrics

Every process answers `/metrics` in Prometheus' format, inside the network only. This page is written from
`shared/metrics.py` by `scripts/generate_docs.py`. Besides, there are the usual `process_…` and `python_…`.

No label names a person, an address or an id; these are all labels:
"""


def metrics_page() -> str:
    """docs/METRICS.md."""
    lines = [METRICS_HEAD, "| label | values |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(values)} |" for name, values in LABELS.items()]
    lines += ["", "| metric | type | labels | meaning |", "|---|---|---|---|"]
    for entry in catalogue():
        labels = ", ".join(f"`{label}`" for label in entry.labels) or "–"
        lines.append(f"| `{entry.name}` | {entry.kind} | {labels} | {_cell(entry.meaning)} |")
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """One row a setting: its variable, its default, what it is."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{name.upper()}` | {_default(field)} | {_cell(field.description or '')} |")
    rows += [f"| `{name}` | {default} | {_cell(meaning)} |" for name, (default, meaning) in BESIDE.items()]
    return "\n".join(rows)


def _default(field: Any) -> str:
    value = field.default
    if value is None or value == "" or value == ():
        return "–"
    if isinstance(value, frozenset):
        return "all four"
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def caps_table() -> str:
    """What holds over all channels until somebody changes it."""
    return "\n".join(
        [
            "| who | of | at most |",
            "|---|---|---|",
            *(f"| {_whom(cap)} | {_of(cap)} | {_most(cap)} |" for cap in DEFAULT_CAPS),
        ]
    )


def channels_table() -> str:
    """One row a channel: what it begins with."""
    rows = [
        "| channel | unit cost | reach | act | lost | quiet hours | caps for a person |",
        "|---|---|---|---|---|---|---|",
    ]
    caps_of = declared_caps(KNOWN)
    for name, row in sorted(KNOWN.items()):
        caps = ", ".join(_most(cap) for cap in caps_of[name]) or "–"
        quiet = "`QUIET_HOURS`" if row.quiet else "none"
        rows.append(f"| {name} | {row.unit_cost} | {row.reach} | {row.act} | {row.lost} | {quiet} | {caps} |")
    return "\n".join(rows)


def _whom(cap: Cap) -> str:
    return {"person": "a person", "address": "an address", "network": "a network", "source": "a source"}[cap.scope]


def _of(cap: Cap) -> str:
    return "any message" if cap.purpose is None else f"{cap.purpose} messages"


def _most(cap: Cap) -> str:
    return f"{cap.limit} a day (of the person's own zone)" if cap.per == "day" else f"{cap.limit} in {cap.per}"


TABLES = {"settings": settings_table, "caps": caps_table, "channels": channels_table}


def operations_page() -> str:
    """docs/OPERATIONS.md as it is, with the tables as they should be."""
    page = OPERATIONS.read_text()
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: written by scripts/generate_docs.py -->", f"<!-- end of {name} -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"docs/OPERATIONS.md lacks the lines {begin} and {end}")
        page = f"{head}{begin}\n{table()}\n{end}{tail}"
    return page


def main(arguments: list[str]) -> int:
    """1 when `--check` finds a page that is out of date."""
    stale = []
    for path, text in ((METRICS, metrics_page()), (OPERATIONS, operations_page())):
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in arguments:
            stale.append(str(path.relative_to(ROOT)))
        else:
            path.write_text(text)
    if stale:
        print(f"{' and '.join(stale)}: out of date; run python scripts/generate_docs.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

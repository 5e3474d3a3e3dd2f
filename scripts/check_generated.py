"""Fails if docs/asyncapi.json is not what the code's own types say now."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "asyncapi.json"
LINES_SHOWN = 40


def main() -> int:
    """Compare; 1 and the differences if there are any."""
    done = subprocess.run(
        [sys.executable, "-m", "services", "asyncapi"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        print(f"`python -m services asyncapi` failed:\n{done.stderr.strip()}", file=sys.stderr)
        return 1
    kept = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    if kept == done.stdout:
        return 0
    difference = difflib.unified_diff(kept.splitlines(), done.stdout.splitlines(), "docs/asyncapi.json", "now", "", "")
    print("\n".join(list(difference)[:LINES_SHOWN]), file=sys.stderr)
    print("docs/asyncapi.json is out of date: dripline asyncapi > docs/asyncapi.json", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

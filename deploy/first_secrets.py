"""The files that SECRETS_DIR names: what is missing is made, what is there is kept. Standard library only.

    python deploy/first_secrets.py FOLDER               at a first start: a password for PostgreSQL, and the URLs with it
    python deploy/first_secrets.py FOLDER set NAME      takes a value from standard input, for example smtp_url

Each file holds the setting of its name (docs/OPERATIONS.md); none is ever printed.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

MODE = 0o444  # the folder is a volume that only the containers mount which need it, each with another user


def make_missing(folder: Path) -> list[str]:
    """Writes the files that are not there; returns their names."""
    password_file = folder / "postgres_password"
    password = password_file.read_text().strip() if password_file.exists() else secrets.token_urlsafe(32)
    wanted = {
        "postgres_password": password,
        "database_url": f"postgresql://dripline:{password}@postgres/dripline",
        "smtp_url": "smtp://mail:1025",
    }
    made = [name for name in wanted if not (folder / name).exists()]
    for name in made:
        write(folder / name, wanted[name])
    return made


def write(path: Path, value: str) -> None:
    """Replaces the file as a whole: a reader sees the former value or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value)
    temporary.chmod(MODE)
    temporary.replace(path)


def main(arguments: list[str]) -> int:
    """See above; 2 for a call that is not understood."""
    match arguments:
        case [folder]:
            made = make_missing(Path(folder))
            print(f"made {', '.join(made)}" if made else "all secrets are there")
        case [folder, "set", name] if name.isidentifier() and name == name.lower():
            write(Path(folder) / name, sys.stdin.read().strip())
            print(f"{name} is set; it counts after: docker compose restart ingest profile triggers dispatch")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

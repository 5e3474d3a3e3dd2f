"""The import rules of docs/ARCHITECTURE.md hold in the source, and each check sees a violation when there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import architecture

ROOT = Path(__file__).resolve().parents[2]

# A file that breaks exactly one rule, for each check.
VIOLATIONS = [
    (architecture.services_that_import_another, "services/ingest/api.py", "from services.profile import store"),
    (architecture.services_that_import_another, "services/ingest/api.py", "from services.run import main"),
    (architecture.services_that_import_another, "services/ingest/api.py", "from ..profile.store import write"),
    (architecture.services_that_import_another, "services/ingest/api.py", "def f():\n    import services.dispatch"),
    (architecture.shared_that_imports_upwards, "shared/consumer.py", "import services.run"),
    (architecture.shared_that_imports_upwards, "shared/deep/er.py", "from tests.support import wait"),
    (architecture.demo_that_knows_more_than_http, "demo/shop.py", "from shared.ids import uuid7"),
    (architecture.demo_that_knows_more_than_http, "demo/shop.py", "import asyncpg"),
    (architecture.domain_that_touches_the_world, "services/triggers/engine.py", "import asyncio"),
    (architecture.domain_that_touches_the_world, "services/triggers/steps/send.py", "import httpx"),
    (architecture.domain_that_touches_the_world, "services/profile/identity.py", "from urllib.request import urlopen"),
    (architecture.domain_that_touches_the_world, "shared/facts/fold.py", "from shared import db"),
    (architecture.domain_that_touches_the_world, "shared/facts/__init__.py", "from ..inner import x"),
    (architecture.domain_that_touches_the_world, "services/dispatch/choice.py", "import liquid"),
    (architecture.domain_that_asks_the_world_for_time_or_chance, "shared/facts/fold.py", "t = datetime.now(UTC)"),
    (architecture.domain_that_asks_the_world_for_time_or_chance, "services/dispatch/choice.py", "random.random()"),
    (architecture.rooms_that_import_upwards, "services/ingest/store.py", "from services.ingest.api import router"),
    (architecture.rooms_that_import_upwards, "services/ingest/handlers.py", "from services.ingest import service"),
    (architecture.rooms_that_import_upwards, "services/triggers/engine.py", "from .store import load"),
    (architecture.writes_to_another_schema, "services/triggers/store.py", "Q = 'insert into cdp.profile values (1)'"),
    (architecture.writes_to_another_schema, "services/ingest/store.py", "Q = f'UPDATE dispatch.message SET {x}'"),
    (architecture.looks_at_the_kind_of_bus, "services/run.py", "if url.startswith('kafka://'): pass"),
]
# What is allowed and looks similar.
ALLOWED = {
    "services/run.py": "from services.profile import service\nimport services.ingest.service",
    "services/profile/store.py": "from services.profile import tables\nimport asyncpg\nQ = 'DELETE FROM cdp.profile'",
    "services/profile/handlers.py": "from .store import write\nfrom .identity import merge\nimport asyncio",
    "services/triggers/engine.py": "from shared.facts import State\nfrom shared.errors import Permanent\nimport msgspec",
    "services/triggers/store.py": "Q = 'SELECT 1 FROM cdp.facts FOR UPDATE'\nR = 'UPDATE triggers.run SET a = 1'",
    "services/dispatch/templates.py": "import liquid\nimport random\nx = random.Random(7)",
    "shared/facts/__init__.py": "class State: pass",
    "shared/errors.py": "def f():\n    import asyncpg",
    "demo/shop.py": "import asyncio, httpx\nfrom demo.people import somebody\nfrom . import people",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.mark.parametrize("check", architecture.CHECKS, ids=lambda check: check.__name__)
def test_the_source_holds(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


def test_there_is_a_source_to_check() -> None:
    names = {module.name for module in architecture.modules(ROOT)}
    assert {"shared.errors", "shared.settings"} <= names


@pytest.mark.parametrize(("check", "file", "text"), VIOLATIONS)
def test_a_violation_is_seen(check: Callable[[Path], list[str]], file: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, {"shared/db.py": "import asyncpg", "shared/inner.py": "from shared import db\nx = 1"})
    assert check(tmp_path) == []
    write(tmp_path, {file: text})
    [problem] = check(tmp_path)
    assert problem.startswith(file.removesuffix(".py").removesuffix("/__init__"))


def test_a_second_door_for_outgoing_http_is_seen(tmp_path: Path) -> None:
    write(tmp_path, {"shared/http.py": "import httpx", "demo/shop.py": "import httpx"})
    assert architecture.imports_of_httpx_outside_its_place(tmp_path) == []
    write(tmp_path, {"services/dispatch/channels/sms.py": "import httpx"})
    assert len(architecture.imports_of_httpx_outside_its_place(tmp_path)) == 2


def test_every_check_is_seen_to_fail() -> None:
    seen = {check for check, _, _ in VIOLATIONS} | {architecture.imports_of_httpx_outside_its_place}
    assert seen == set(architecture.CHECKS)


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    write(tmp_path, ALLOWED)
    assert [problem for check in architecture.CHECKS for problem in check(tmp_path)] == []


def test_a_tree_that_is_only_partly_there_passes(tmp_path: Path) -> None:
    assert [problem for check in architecture.CHECKS for problem in check(tmp_path)] == []

"""Who may import whom (docs/ARCHITECTURE.md), read from the source without running it.

Every check takes the root of a source tree and returns one sentence for each line that breaks its rule.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

SERVICES = ("ingest", "profile", "triggers", "dispatch")
ROOTS = ("services", "shared", "demo")
MIGRATIONS = "migrations"

# Modules and folders of the domain: decisions without I/O. Time, ids and chance come in as arguments.
DOMAIN = (
    "shared.facts",
    "shared.conditions",
    "services.profile.identity",
    "services.profile.consent",
    "services.profile.rfm",
    "services.profile.value",
    "services.triggers.rule",
    "services.triggers.engine",
    "services.triggers.run",
    "services.triggers.holdout",
    "services.triggers.backtest",
    "services.triggers.entries",
    "services.triggers.steps",
    "services.dispatch.policy",
    "services.dispatch.choice",
    "services.dispatch.templates",
)
DOMAIN_LIBRARIES = frozenset({"msgspec", "pydantic", "pydantic_core", "annotated_types", "typing_extensions"})
# Libraries that calculate and touch nothing, and the modules that may use them.
EXTRA_LIBRARIES = {
    "services.triggers.entries": {"croniter"},
    "services.dispatch.templates": {"liquid", "mjml", "css_inline", "babel"},
}
IO_STDLIB = frozenset(
    """
    asyncio concurrent ftplib http imaplib mailbox multiprocessing os select selectors shutil signal smtplib socket
    socketserver sqlite3 ssl subprocess tempfile threading urllib.request
    """.split()
)
IO_LIBRARIES = frozenset(
    "aiokafka aiosmtplib alembic apscheduler asyncpg fastapi httpx requests sqlalchemy starlette uvicorn".split()
)
AMBIENT = (
    re.compile(r"^(datetime\.)?datetime\.(now|utcnow|today)$"),
    re.compile(r"^(datetime\.)?date\.today$"),
    re.compile(r"^time\.(time|time_ns|monotonic|monotonic_ns|sleep)$"),
    re.compile(r"^random\.(?!Random$)\w+$"),
    re.compile(r"^uuid\.uuid[14]$"),
    re.compile(r"^(uuid[14]|secrets\.\w+|os\.urandom)$"),
)
# They speak to our own public API, as anybody may.
CLIENTS = ("demo", "services.importing", "services.triggers.cli")
# run → service → api, handlers → store → tables, and the domain below all of them.
RANKS = {"service": 1, "api": 2, "handlers": 2, "store": 3, "tables": 4}
SCHEMAS = {"profile": {"profile", "cdp"}}
COMMON_SCHEMAS = {"platform"}
WRITES = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?|TRUNCATE(?:\s+TABLE)?|MERGE\s+INTO)"
    r"\s+(ingest|profile|triggers|dispatch|cdp)\.\w+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is the module or the name in it, fully qualified."""

    target: str
    line: int
    at_import: bool
    """Whether importing the file runs it: not inside a function, not for type checkers only."""


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module

    def at(self, line: int) -> str:
        return f"{self.name.replace('.', '/')}:{line}"


def modules(root: Path) -> list[Module]:
    """All source files of the product below `root`; folders that are not there count as empty."""
    found = []
    for folder in ROOTS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name, path, _parsed(path, path.stat().st_mtime_ns)))
    return found


@cache
def _parsed(path: Path, changed: int) -> ast.Module:
    """Every check reads every file; `changed` is its time stamp."""
    return ast.parse(path.read_text(), str(path))


def imports(module: Module) -> list[Import]:
    """Every import of the file, wherever it stands, relative ones resolved."""
    return list(_imports(module, module.tree, at_import=True))


def _imports(module: Module, node: ast.AST, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = at_import and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside = False
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _base(module, child)
            yield from (Import(f"{base}.{alias.name}", child.lineno, at_import) for alias in child.names)
        else:
            yield from _imports(module, child, at_import=inside)


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    if module.path.name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def within(name: str, *parents: str) -> bool:
    """Whether the dotted `name` is one of `parents` or below it."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def services_that_import_another(root: Path) -> list[str]:
    """A service knows no other service; what they share is in `shared`."""
    return [
        f"{module.at(found.line)} imports {found.target}: a service imports neither another one nor what runs them"
        for module in modules(root)
        for service in SERVICES
        if within(module.name, f"services.{service}")
        for found in imports(module)
        if within(found.target, "services", "demo", "tests", "scripts")
        and not within(found.target, f"services.{service}")
    ]


def shared_that_imports_upwards(root: Path) -> list[str]:
    """`shared` knows nothing of those who use it."""
    return [
        f"{module.at(found.line)} imports {found.target}: shared imports no service"
        for module in modules(root)
        if within(module.name, "shared")
        for found in imports(module)
        if within(found.target, "services", "demo", "tests", "scripts")
    ]


def demo_that_knows_more_than_http(root: Path) -> list[str]:
    """The simulated shop is a stranger who has only the public HTTP API."""
    return [
        f"{module.at(found.line)} imports {found.target}: demo imports httpx, the standard library and itself"
        for module in modules(root)
        if within(module.name, "demo")
        for found in imports(module)
        if not within(found.target, "demo", "httpx") and not _is_stdlib(found.target)
    ]


def domain_that_touches_the_world(root: Path) -> list[str]:
    """Domain modules import no I/O, neither themselves nor through another module of ours."""
    known = {module.name: module for module in modules(root)}
    reach = lru_cache(maxsize=None)(lambda name: _io_reached_from(known, name))
    problems = []
    for module in known.values():
        if not within(module.name, *DOMAIN) or MIGRATIONS in module.name:
            continue
        for found in imports(module):
            if not _may_be_in_domain(module.name, found.target):
                problems.append(f"{module.at(found.line)} imports {found.target}: the domain touches no I/O")
            elif found.at_import and (way := reach(_file_of(known, found.target))):
                problems.append(f"{module.at(found.line)} imports {found.target}, which leads to {way}")
    return problems


def _may_be_in_domain(name: str, target: str) -> bool:
    if within(target, *ROOTS):
        return True  # followed further by _io_reached_from
    extra = {library for place, libraries in EXTRA_LIBRARIES.items() if within(name, place) for library in libraries}
    if target.partition(".")[0] in DOMAIN_LIBRARIES | extra:
        return True
    return _is_stdlib(target) and not within(target, *IO_STDLIB)


def _io_reached_from(known: dict[str, Module], start: str) -> str:
    """The first library for I/O that importing `start` brings in, with the way there; "" if none."""
    seen, waiting = {start}, [(start, start)]
    while waiting:
        name, way = waiting.pop(0)
        if name not in known:
            continue
        for found in imports(known[name]):
            if not found.at_import:
                continue
            if within(found.target, *IO_LIBRARIES) or within(found.target, "asyncio", "socket", "subprocess"):
                return f"{way} → {found.target.partition('.')[0]}"
            following = _file_of(known, found.target)
            if following not in seen:
                seen.add(following)
                waiting.append((following, f"{way} → {following}"))
    return ""


def _file_of(known: dict[str, Module], target: str) -> str:
    """`shared.facts.model.State` is in the file `shared.facts.model`."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target


def _is_stdlib(target: str) -> bool:
    return target.partition(".")[0] in sys.stdlib_module_names


def domain_that_asks_the_world_for_time_or_chance(root: Path) -> list[str]:
    """Time, ids and chance come in as arguments, or a decision could not be derived again."""
    return [
        f"{module.at(call.lineno)} calls {name}(): time, ids and chance come in as arguments"
        for module in modules(root)
        if within(module.name, *DOMAIN)
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call)
        for name in [ast.unparse(call.func)]
        if any(pattern.match(name) for pattern in AMBIENT)
    ]


def rooms_that_import_upwards(root: Path) -> list[str]:
    """Inside a service: service → api, handlers → store → tables."""
    problems = []
    for module in modules(root):
        parts = module.name.split(".")
        if len(parts) < 3 or parts[0] != "services" or parts[1] not in SERVICES or MIGRATIONS in parts:
            continue
        rank = RANKS.get(parts[2])
        for found in imports(module):
            target = found.target.split(".")
            if target[:2] != parts[:2] or len(target) < 3 or target[2] == parts[2]:
                continue
            other = RANKS.get(target[2])
            is_domain = within(module.name, *DOMAIN)
            if other is not None and (is_domain or (rank is not None and other <= rank)):
                problems.append(
                    f"{module.at(found.line)} imports {found.target}: service → api, handlers → store → tables"
                )
    return problems


def writes_to_another_schema(root: Path) -> list[str]:
    """Each service writes its own schema only; what it knows of others it reads through their views."""
    problems = []
    for module in modules(root):
        service = next((name for name in SERVICES if within(module.name, f"services.{name}")), None)
        if service is None:
            continue
        own = SCHEMAS.get(service, {service}) | COMMON_SCHEMAS
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for written in WRITES.finditer(node.value):
                    if written[1].lower() not in own:
                        problems.append(f"{module.at(node.lineno)} writes {written[0]}: not its schema")
    return problems


def looks_at_the_kind_of_bus(root: Path) -> list[str]:
    """Only shared/bus looks at the scheme of BUS_URL: everybody else must work over both."""
    return [
        f"{module.at(node.lineno)} knows {node.value!r}: only shared/bus looks at the kind of bus"
        for module in modules(root)
        if not within(module.name, "shared.bus")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ("kafka", "kafka://")
    ]


def imports_of_httpx_outside_its_place(root: Path) -> list[str]:
    """Outgoing HTTP has one door, so that its limits and its library can be changed in one place.

    Clients of our own public API, the shop of the demo and the importer, stand outside.
    """
    files = {
        module.name: found.line
        for module in modules(root)
        if not within(module.name, *CLIENTS)
        for found in imports(module)
        if within(found.target, "httpx")
    }
    return [f"{name}:{line} imports httpx, as do others" for name, line in files.items()] if len(files) > 1 else []


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    services_that_import_another,
    shared_that_imports_upwards,
    demo_that_knows_more_than_http,
    domain_that_touches_the_world,
    domain_that_asks_the_world_for_time_or_chance,
    rooms_that_import_upwards,
    writes_to_another_schema,
    looks_at_the_kind_of_bus,
    imports_of_httpx_outside_its_place,
)

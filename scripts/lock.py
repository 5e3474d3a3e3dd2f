"""Writes the lock files: pinned versions with hashes for every platform, and no address of an index in them.

    requirements.lock          what Dripline needs, to run and to be developed
    deploy/requirements.lock   the same without the tools of development, for the image
    deploy/build.lock          what builds the wheel that the image installs
    scripts/uv.lock            uv itself, which installs the others

Options are passed to `uv pip compile`: `make lock ARGS="--upgrade-package fastapi"`; without any, everything is newest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
COMMON = (
    "--universal",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-annotate",
    "--quiet",
    "--python-version=3.11",
)
# What is optional on a machine is in the image: whoever runs it cannot add to it.
IMAGE = ("--extra=smpp", "--extra=web-push")


def main(options: list[str]) -> int:
    """Compile them all; the exit status of the first that fails."""
    compile_ = [str(UV), "pip", "compile", *COMMON, "--custom-compile-command=make lock", *(options or ["--upgrade"])]
    for arguments, given in (
        (["--extra=dev", "pyproject.toml", "--output-file=requirements.lock"], None),
        (["--constraint=requirements.lock", *IMAGE, "pyproject.toml", "--output-file=deploy/requirements.lock"], None),
        (["--constraint=requirements.lock", "-", "--output-file=deploy/build.lock"], "hatchling\n"),
        (["-", "--output-file=scripts/uv.lock"], "uv\n"),
    ):
        done = subprocess.run([*compile_, *arguments], cwd=ROOT, input=given, text=True, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

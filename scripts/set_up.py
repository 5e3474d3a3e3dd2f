"""Makes .venv and installs what the lock file names, checked by hashes. Run by make; needs only Python with venv.

uv does it in seconds; where uv cannot run, pip does it in a minute or two. (Written so that an old Python can still
read it and say what is wrong.)
"""

import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
READY = os.path.join(VENV, ".ready")
INPUTS = ("pyproject.toml", "requirements.lock", os.path.join("scripts", "uv.lock"))
MINIMUM = (3, 11)


def main():
    """Bring .venv up to the lock file."""
    os.chdir(ROOT)
    wanted = digest()
    if works(VENV_PYTHON) and read(READY) == wanted:
        os.utime(READY, None)
        return
    if not works(VENV_PYTHON):
        make_environment()
    say("installing what requirements.lock names into .venv (the first time takes a moment)")
    if not install_with_uv() and not install_with_pip():
        fail("The packages could not be installed: see pip's message above; the package index has to be reachable.")
    with open(READY, "w") as file:
        file.write(wanted)


def digest():
    """What the environment was made from."""
    sha = hashlib.sha256()
    for name in INPUTS:
        with open(name, "rb") as file:
            sha.update(file.read() + b"\0")
    return sha.hexdigest()


def make_environment():
    """An empty .venv."""
    if sys.version_info < MINIMUM:
        fail(
            f"Dripline needs Python 3.11 or later and {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}: "
            "name another one, as in `make up PYTHON=python3.12`."
        )
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        text = done.stdout.decode("utf-8", "replace").strip()
        if "ensurepip" in text:
            fail("Python's venv module lacks pip here: install it (on Debian and Ubuntu: apt install python3-venv).")
        fail("The virtual environment .venv could not be made: " + (text.splitlines() or ["no reason given"])[-1])


def install_with_uv():
    """True if uv did it."""
    if not pip("--require-hashes", "-r", "scripts/uv.lock", quiet=True):
        return False
    uv = [os.path.join(VENV, "bin", "uv"), "pip", "install", "--quiet", "--python", VENV_PYTHON]
    environment = dict(os.environ, UV_LINK_MODE=os.environ.get("UV_LINK_MODE", "copy"))
    return runs(uv + ["--require-hashes", "-r", "requirements.lock"], environment) and runs(
        uv + ["--no-build-isolation", "--no-deps", "-e", "."], environment
    )


def install_with_pip():
    """True if pip did it."""
    say("uv cannot do it here; pip takes over")
    return pip("--require-hashes", "-r", "requirements.lock") and pip("--no-build-isolation", "--no-deps", "-e", ".")


def pip(*arguments, **options):
    """True if `pip install` with these arguments ended well."""
    command = [VENV_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    return runs(command + list(arguments), quiet=options.get("quiet", False))


def runs(command, environment=None, quiet=False):
    """True if the command exists and ends with 0."""
    try:
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL if quiet else None).returncode == 0
    except OSError:
        return False


def works(python):
    """Whether that Python runs and is new enough; a virtual environment breaks when its Python goes away."""
    return runs([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], quiet=True)


def read(path):
    """The file's text; empty if there is none."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def say(text):
    """A line for the person who waits."""
    print("dripline: " + text, file=sys.stderr)
    sys.stderr.flush()


def fail(text):
    """One sentence, and the end."""
    say(text)
    sys.exit(1)


if __name__ == "__main__":
    main()

"""Runs a program so that it ends with the process that asked for it. A script of its own, standard library only:

    python -I -S child_process.py PARENT_PID UID GID PROGRAM ARGUMENT…

It becomes the program: first it gives up root (UID -1: stays who it is), then it asks the kernel for SIGINT, which is
PostgreSQL's fast shutdown and Java's orderly end, at the death of the thread that started it. In this order, because
a change of user clears that wish; and then it looks whether the parent died meanwhile. Where the kernel knows no such
wish (macOS), it stays, waits until its standard input closes, and passes SIGINT on.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program named by the arguments; see above."""
    parent, uid, gid = (int(argument) for argument in sys.argv[1:4])
    command = sys.argv[4:]
    libc = ctypes.CDLL(None, use_errno=True)
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.umask(0o077)
    if not sys.platform.startswith("linux"):
        sys.exit(_watch_over(command))
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)


def _watch_over(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, lambda *_: child.send_signal(signal.SIGINT))

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        child.send_signal(signal.SIGINT)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    main()

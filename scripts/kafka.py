"""A real Kafka without Docker: Maven fetches it, Java runs it. Standard library only.

    python scripts/kafka.py fetch              into ~/.cache/dripline (or $DRIPLINE_CACHE), never into the repository
    python scripts/kafka.py run --port 9092    one node in the foreground, Ctrl-C stops it

The tests start their own nodes by `Kafka`. Production takes the image apache/kafka (see deploy/).
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

VERSION = "4.1.1"
ARTEFACTS = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),
    ("org.apache.logging.log4j", "log4j-core", "2.24.3"),
)
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.7.1:copy-dependencies"
CHILD = Path(__file__).resolve().parent.parent / "shared" / "child_process.py"
START_LIMIT = 60.0  # seconds
LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


class KafkaUnavailable(Exception):
    """Kafka cannot be fetched or started here. One sentence: what is missing, and what to do."""


def cache_dir() -> Path:
    """Where fetched things are kept between runs."""
    if named := os.environ.get("DRIPLINE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dripline"


def fetch() -> Path:
    """The folder with Kafka's jars; asks Maven for them the first time (54 MB).

    :raises KafkaUnavailable: no Java, no Maven, or Maven found no way to its repository
    """
    if shutil.which("java") is None:
        raise KafkaUnavailable("Java is missing: Kafka needs a Java runtime, version 17 or later.")
    target = cache_dir() / f"kafka-{VERSION}"
    if target.is_dir():
        return target
    if shutil.which("mvn") is None:
        raise KafkaUnavailable("Maven (mvn) is missing: it fetches Kafka from Maven Central.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kafka-", dir=target.parent) as folder:
        jars = Path(folder) / "jars"
        (Path(folder) / "pom.xml").write_text(_pom())
        done = subprocess.run(
            ["mvn", "-q", "-B", "-Dstyle.color=never", COPY_DEPENDENCIES, f"-DoutputDirectory={jars}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not jars.is_dir():
            said = next((line for line in done.stdout.splitlines() if "ERROR" in line), "it gave no reason")
            raise KafkaUnavailable(f"Maven could not fetch Kafka {VERSION}: {said.strip()}")
        try:
            jars.rename(target)
        except OSError:
            if not target.is_dir():  # else another run was faster
                raise
    return target


def _pom() -> str:
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in ARTEFACTS
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>dripline</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )


@dataclass
class Kafka:
    """One KRaft node, broker and controller in one, in a folder and on ports of its own.

    :param jars: what `fetch` returned
    :param folder: for its log segments and its log file; keep it and the records are there after `kill` and `start`
    :param port: the port of the clients; 0 takes a free one
    :param heap: Java's heap
    :param under: what the node is started under, such as `taskset -c 1`
    """

    jars: Path
    folder: Path
    port: int = 0
    heap: str = "512m"
    under: Sequence[str] = ()
    _controller_port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def bootstrap(self) -> str:
        """`host:port`, as Kafka's clients take it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`kafka://host:port`, as BUS_URL takes it."""
        return f"kafka://{self.bootstrap}"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        """What the node wrote."""
        return self.folder / "kafka.log"

    def start(self) -> None:
        """Format the folder if it is new, start the node, return when it answers. Call it in the main thread.

        :raises KafkaUnavailable: it ended or did not answer
        """
        if self.is_running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or _free_port()
        self._controller_port = self._controller_port or _free_port()
        configuration = self.folder / "server.properties"
        configuration.write_text(self._properties())
        (self.folder / "log4j2.properties").write_text(LOG4J)
        if not (self.folder / "data" / "meta.properties").exists():
            # written with "=", because an id may begin with "-", which the tool would take for an option of its own
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            self._run_tool("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(configuration))
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(
                [*_guarded(), *self.under, *self._java(self.heap), "kafka.Kafka", str(configuration)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT
        while not _answers(self.port):
            if not self.is_running or time.monotonic() > deadline:
                self.kill()
                tail = self.log_file.read_text(errors="replace").splitlines()[-5:]
                raise KafkaUnavailable(f"Kafka does not answer on port {self.port}: {' | '.join(tail)}")
            time.sleep(0.05)

    def stop(self) -> None:
        """An orderly end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a power cut would; `start` begins again on the same port with the same records."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers. Returns when it has stopped."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def tool(self, name: str, *arguments: str) -> str:
        """What one of Kafka's own tools prints (`TopicCommand`, `GroupCommand` …); the bootstrap server is added."""
        return self._run_tool(f"org.apache.kafka.tools.{name}", "--bootstrap-server", self.bootstrap, *arguments)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, signal_number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if self._process.stdin:
            self._process.stdin.close()
        self._process = None

    def _java(self, heap: str) -> list[str]:
        java = shutil.which("java")
        if java is None:
            raise KafkaUnavailable("Java is missing: Kafka needs a Java runtime, version 17 or later.")
        options = [f"-Xmx{heap}", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [
            java,
            *options,
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp",
            str(self.jars / "*"),
        ]

    def _run_tool(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self._java("128m"), name, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-500:]
            raise KafkaUnavailable(f"{name} ended with {done.returncode}: {said}")
        return done.stdout

    def _properties(self) -> str:
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self.folder / "data",
            "auto.create.topics.enable": "false",
            "default.replication.factor": 1,
            "min.insync.replicas": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # After SIGKILL the node may register again when its former session has run out (default 9 s).
            "broker.session.timeout.ms": 2_000,
            "broker.heartbeat.interval.ms": 500,
            # A small heap and hundreds of partitions.
            "log.cleaner.dedupe.buffer.size": 8 << 20,
            "log.index.size.max.bytes": 1 << 20,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def _guarded() -> list[str]:
    """Not left behind when we are killed: the same guard as for the embedded PostgreSQL."""
    return [sys.executable, "-I", "-S", str(CHILD), str(os.getpid()), "-1", "-1"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    """Whether the broker answers an ApiVersions request; its port is open seconds before it serves."""
    request = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return len(connection.recv(8)) == 8
    except OSError:
        return False


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="A real Kafka without Docker")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="fetch Kafka with Maven")
    run = commands.add_parser("run", help="run one node in the foreground")
    run.add_argument("--port", type=int, default=9092)
    run.add_argument("--data", type=Path, default=None, help="folder that keeps the records; default: a temporary one")
    options = parser.parse_args()
    try:
        jars = fetch()
        if options.command == "fetch":
            print(jars)
            return 0
        with tempfile.TemporaryDirectory(prefix="dripline-kafka-") as folder:
            with Kafka(jars, (options.data or Path(folder)).resolve(), options.port) as kafka:
                print(f"Kafka {VERSION} answers: BUS_URL={kafka.url}   (Ctrl-C stops it)", flush=True)
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
                while kafka.is_running:
                    time.sleep(0.5)
        print(f"Kafka ended; see {kafka.log_file}.", file=sys.stderr)
        return 1
    except KafkaUnavailable as reason:
        print(reason, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""A short message service centre for tests: a process of its own that speaks SMPP 3.4 and writes down what it took.

    peer.behave(submit_statuses=[0x58])        # throttles the next submit_sm
    peer.receipt(message["id"], "DELIVRD")      # a deliver_sm over the session; returns the client's answer
    peer.messages()                              # texts put together from their parts

It reads PDUs with aiosmpplib, which the product does not use, and checks what a centre would: the password, TON and NPI,
the alphabet, the parts of a long text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.peer_process import SteeredPeer, free_port

SYSTEM_ID, PASSWORD = "shop", "secret08"


@dataclass
class Behaviour:
    """How the peer answers; written by the test, read before each answer."""

    bind_status: int = 0
    submit_statuses: list[int] = field(default_factory=list)
    """command_status of the next submit_sm, one after the other; nothing is taken unless it is 0."""

    after: int = 0
    """How many submit_sm pass before `submit_statuses` begin."""

    delay_seconds: float = 0.0
    silent: bool = False
    """submit_sm are taken and never answered."""

    hang_up: bool = False
    """A submit_sm is taken and the connection is cut before the answer."""

    hexadecimal: bool = False
    """submit_sm_resp tells ids in hexadecimal, receipts in decimal."""


class SmppPeer(SteeredPeer):
    """The centre. The ledger's kinds: `bind`, `part`, `refused`, `wrong`, `enquire`, `unbind`, `end`."""

    module = "tests.support.smpp_peer"
    behaviours = Behaviour

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        """:param certificate: files of a certificate and its key: then it speaks TLS only"""
        super().__init__()
        self._certificate = certificate
        self.control = free_port()

    def arguments(self) -> list[str]:
        secured = ["--certificate", *map(str, self._certificate)] if self._certificate is not None else []
        return ["--control", str(self.control), *secured]

    def answers(self) -> bool:
        with socket.socket() as probe:  # not the port itself: a session that says nothing would stand in the ledger
            return probe.connect_ex(("127.0.0.1", self.control)) == 0

    def messages(self) -> list[dict[str, Any]]:
        """What it took whole: `id` (of the last part), `phone`, `text`, `parts`."""
        open_parts: dict[tuple[str, int], list[dict[str, Any]]] = {}
        whole = []
        for part in self.entries("part"):
            parts = open_parts.setdefault((part["phone"], part["reference"]), [])
            parts.append(part)
            if len(parts) == part["total"]:
                ordered = sorted(parts, key=lambda one: one["number"])
                text = "".join(one["text"] for one in ordered)
                whole.append({"id": ordered[-1]["id"], "phone": part["phone"], "text": text, "parts": ordered})
                del open_parts[(part["phone"], part["reference"])]
        return whole

    def receipt(
        self,
        id: str,
        stat: str,
        *,
        tlvs: bool = True,
        err: str = "000",
        done: str = "2603101205",
        esm_class: int = 0x04,
        payload: bool = False,
    ) -> int:
        """Sends a delivery receipt over the newest session; returns the status of deliver_sm_resp, -1 without one.
        `esm_class`: 0x20 makes it an intermediate notification; `payload`: its text lies in message_payload."""
        text = f"id:{id} sub:001 dlvrd:001 submit date:2603101200 done date:{done} stat:{stat} err:{err} text:Your"
        told = id if tlvs else ""
        return self.order(do="deliver", esm_class=esm_class, text=text, id=told, stat=stat, payload=payload)

    def reply(
        self,
        phone: str,
        text: str,
        *,
        coding: int | None = None,
        header: str = "",
        payload: bool = False,
        esm_class: int = 0x00,
    ) -> int:
        """A person writes an SMS. `coding`: its data_coding, by default the GSM alphabet or UCS-2; `header`: its user data
        header, in hexadecimal; `payload`: it lies in message_payload."""
        esm_class |= 0x40 if header else 0
        what = {"text": text, "coding": coding, "header": header, "payload": payload}
        return self.order(do="deliver", esm_class=esm_class, phone=phone, id="", stat="", **what)

    def nonsense(self) -> int:
        """Sends a deliver_sm that says it is longer than it is inside."""
        return self.order(do="nonsense")

    def unbind(self) -> int:
        """Ends the newest session by the protocol."""
        return self.order(do="unbind")

    def order(self, **order: Any) -> int:
        with socket.create_connection(("127.0.0.1", self.control), timeout=10) as line:
            line.sendall(json.dumps(order).encode() + b"\n")
            return int(json.loads(line.makefile().readline())["status"])


# ── the peer's own process ────────────────────────────────────────────────────────────────────────────────────────────


class _Centre:
    def __init__(self, folder: Path) -> None:
        self._behaviour = folder / "behaviour.json"
        self._ledger = open(folder / "ledger.jsonl", "a")  # noqa: SIM115 - open as long as the process lives
        self._submitted = 0
        self._refusing: tuple[list[int], int] = ([], 0)
        self.session: _Line | None = None
        self.next_id = 1_000_472_890

    def now(self) -> Behaviour:
        return Behaviour(**json.loads(self._behaviour.read_text()))

    def write(self, **entry: Any) -> None:
        self._ledger.write(json.dumps({"at": time.time(), **entry}) + "\n")
        self._ledger.flush()

    def status(self, behaviour: Behaviour) -> int:
        """Of the next submit_sm: each of `submit_statuses` once, after `after` of them have passed."""
        key = (behaviour.submit_statuses, behaviour.after)
        if key != self._refusing:
            self._refusing, self._submitted = key, 0
        place = self._submitted - behaviour.after
        self._submitted += 1
        return behaviour.submit_statuses[place] if 0 <= place < len(behaviour.submit_statuses) else 0

    async def line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(self, reader, writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await line.talk()
        self.write(kind="end")
        writer.close()

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked := await reader.readline():
            order = json.loads(asked)
            status = await self.session.order(order) if self.session is not None else -1
            writer.write(json.dumps({"status": status}).encode() + b"\n")
            await writer.drain()
        writer.close()


class _Line:
    """One connection."""

    def __init__(self, centre: _Centre, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.centre, self.reader, self.writer = centre, reader, writer
        self.bound = False
        self.number = 0
        self.answers: dict[int, asyncio.Future[int]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def talk(self) -> None:
        import aiosmpplib as smpp

        while True:
            head = await self.reader.readexactly(16)
            header = smpp.SmppMessage.parse_header(head)
            pdu = head + await self.reader.readexactly(header.pdu_length - 16)
            name = header.smpp_command.name
            if name == "BIND_TRANSCEIVER":
                self.bind(smpp.BindTransceiver.from_pdu(pdu, header))
            elif name == "SUBMIT_SM":
                task = asyncio.create_task(self.submit(pdu, header))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            elif name == "ENQUIRE_LINK":
                self.centre.write(kind="enquire")
                self.say(smpp.EnquireLinkResp(sequence_num=header.sequence_num))
            elif name == "UNBIND":
                self.centre.write(kind="unbind")
                self.say(smpp.UnbindResp(sequence_num=header.sequence_num))
                return
            elif name.endswith("_RESP"):
                if (waiting := self.answers.pop(header.sequence_num, None)) is not None:
                    waiting.set_result(int(header.command_status))

    def say(self, message: Any) -> None:
        self.writer.write(message.pdu())

    def bind(self, bind: Any) -> None:
        import aiosmpplib as smpp

        right = (bind.system_id, bind.password, bind.interface_version) == (SYSTEM_ID, PASSWORD, 0x34)
        status = self.centre.now().bind_status or (0 if right else int(smpp.SmppCommandStatus.ESME_RINVPASWD))
        self.centre.write(kind="bind", status=status)
        self.bound = status == 0
        if self.bound:
            self.centre.session = self
        self.say(
            smpp.BindTransceiverResp(
                sequence_num=bind.sequence_num, command_status=smpp.SmppCommandStatus(status), system_id="PEER"
            )
        )

    async def submit(self, pdu: bytes, header: Any) -> None:
        import aiosmpplib as smpp

        behaviour = self.centre.now()
        status = self.centre.status(behaviour) if self.bound else int(smpp.SmppCommandStatus.ESME_RINVBNDSTS)
        id = ""
        if status:
            self.centre.write(kind="refused", status=status)
        else:
            status, id = self.take(pdu, header, behaviour)
        await asyncio.sleep(behaviour.delay_seconds)
        if behaviour.hang_up and status == 0:
            self.writer.transport.abort()
        elif not behaviour.silent:
            told = f"{int(id):X}" if id and behaviour.hexadecimal else id
            self.say(
                smpp.SubmitSmResp(
                    sequence_num=header.sequence_num,
                    command_status=smpp.SmppCommandStatus(status),
                    message_id=told,
                )
            )

    def take(self, pdu: bytes, header: Any, behaviour: Behaviour) -> tuple[int, str]:
        """Reads and checks a submit_sm; writes down its part."""
        import aiosmpplib as smpp

        try:
            order = smpp.SubmitSm.from_pdu(pdu, header, default_encoding="gsm0338")
            parameters = {param.tag: param.value for param in order.optional_params}
            problem = _wrong(order, parameters, order.short_message)
        except Exception as failure:
            problem = f"{type(failure).__name__}: {failure}"
        if problem:
            self.centre.write(kind="wrong", problem=problem)
            return int(smpp.SmppCommandStatus.ESME_RSYSERR), ""
        self.centre.next_id += 1
        id = str(self.centre.next_id)
        self.centre.write(
            kind="part",
            id=id,
            phone=order.destination.number,
            sender=order.source.number,
            sender_ton=int(order.source.ton),
            text=order.short_message,
            encoding=order.encoding or "gsm0338",
            esm_class=order.esm_class,
            receipt=order.registered_delivery,
            reference=parameters.get(0x020C, -self.centre.next_id),
            total=parameters.get(0x020E, 1),
            number=parameters.get(0x020F, 1),
        )
        return 0, id

    async def order(self, order: dict[str, Any]) -> int:
        """What the test wants said; the status of the client's answer, or -1."""
        self.number += 1
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.answers[self.number] = answer
        if order["do"] == "unbind":
            import aiosmpplib as smpp

            self.say(smpp.Unbind(sequence_num=self.number))
        elif order["do"] == "nonsense":
            body = b"\0\1\1no end of this text"
            self.writer.write(struct.pack("!IIII", 16 + len(body), 0x05, 0, self.number) + body)
        else:
            self.writer.write(_delivery(order, self.number))
        try:
            return await asyncio.wait_for(answer, 5)
        except TimeoutError:
            return -1


def _delivery(order: dict[str, Any], number: int) -> bytes:
    """A deliver_sm as the test wants it."""
    import smpp34
    from aiosmpplib import GSM7BitCodec

    text, coding = order["text"], order.get("coding")
    if coding is None:
        coding = 0 if text.isascii() else 8
    codec = {3: "latin-1", 6: "iso8859-5", 8: "utf-16-be", 0x19: "utf-16-be"}.get(coding)
    body = bytes.fromhex(order.get("header", "")) + (text.encode(codec) if codec else GSM7BitCodec().encode(text)[0])
    states = {
        "DELIVRD": 2,
        "EXPIRED": 3,
        "DELETED": 4,
        "UNDELIV": 5,
        "ACCEPTD": 6,
        "UNKNOWN": 7,
        "REJECTD": 8,
        "ENROUTE": 1,
    }
    tlvs = []
    if order["id"]:
        tlvs = [
            smpp34.Tlv(0x001E, order["id"].encode() + b"\0"),
            smpp34.Tlv(0x0427, bytes((states[order["stat"]],))),
            smpp34.Tlv(0x1403, b"vendor"),
        ]
    if order.get("payload"):
        tlvs, body = [smpp34.Tlv(0x0424, body), *tlvs], b""
    return smpp34.DeliverSm(
        source_addr=order.get("phone", "79161234567"),
        destination_addr="Shop",
        esm_class=order["esm_class"],
        data_coding=coding,
        short_message=body,
        tlvs=tlvs,
        sequence_number=number,
    ).encode()


def _wrong(order: Any, parameters: dict[int, Any], text: str) -> str:
    """What a centre would refuse; "" if it is right."""
    if (int(order.destination.ton), int(order.destination.npi)) != (1, 1) or not order.destination.number.isdigit():
        return "the destination is no international number"
    named = not order.source.number.isdigit()
    if (int(order.source.ton), int(order.source.npi)) != ((5, 0) if named else (1, 1)):
        return "TON and NPI do not suit the sender"
    if order.encoding == "ucs2":
        room, length = 70, len(text.encode("utf-16-be")) // 2
    else:
        room, length = 160, sum(2 if c in "\f^{}\\[~]|€" else 1 for c in text)
    if parameters.get(0x020E, 1) > 1:
        room -= 3 if room == 70 else 7
    if length > room:
        return f"{length} characters in a part of {room}"
    return ""


async def _serve(options: argparse.Namespace) -> None:
    centre = _Centre(options.folder)
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.certificate)
    await asyncio.start_server(centre.line, "127.0.0.1", options.port, ssl=context)
    await asyncio.start_server(centre.control, "127.0.0.1", options.control)
    while os.getppid() == options.parent:  # whoever started us may have been killed
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--certificate", nargs=2)
    asyncio.run(_serve(parser.parse_args()))

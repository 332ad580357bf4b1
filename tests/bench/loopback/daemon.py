"""A daemon that speaks adb's device protocol over TCP: ``shell`` in both forms, and ``sync``.

It stands for a phone's ``adbd``. Commands run in this host's shell, with paths of the phone moved
below a folder and with programs of that folder first in PATH. A :class:`Cut` ends the connection in
the middle of what it matches.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name, "little")
    for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
VERSION = 0x01000001
LARGEST = 1 << 20
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
MOVED = (
    "/data/local/tmp",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sdcard",
    "/sys/devices/system/cpu",
)
"""Paths of the phone that lie below its folder here."""
AARCH64 = re.compile(r"(\S*/ld-linux-aarch64\.so\.1)(?= --library-path )")
"""A program for the phone's processor at the start of a command: an emulator runs it."""


@dataclass(kw_only=True)
class Cut:
    """Ends the connection when ``after`` bytes of a matching service went through.

    ``gone``: the phone does not come back. ``full``: instead of a cut, its disk is full.
    ``hold``: instead of a cut, nothing moves from there on.
    """

    service: str
    after: int = 0
    gone: bool = False
    full: bool = False
    hold: bool = False


@dataclass(kw_only=True)
class Settings:
    """How the phone behaves; tests change it while it runs.

    ``missing`` are programs that it does not have; ``damage`` changes what is written.
    """

    root: Path
    features: str = "shell_v2"
    state: Literal["device", "unauthorized", "offline"] = "device"
    model: str = "Loop_1"
    emulator: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    damage: Callable[[bytes], bytes] = bytes
    cuts: list[Cut] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """A command or path of the phone with the paths of this host."""
        for path in MOVED:
            text = text.replace(path, f"{self.root}{path}")
        if self.emulator:
            text = AARCH64.sub(" ".join(self.emulator) + r" \1", text)
        for program in self.missing:
            text = re.sub(rf"\b{program}\b", f"no-{program}", text)
        return text


class Ended(Exception):
    """The stream or the connection is over."""


class Stream:
    """One service on a connection: bytes in both directions, one write in flight."""

    def __init__(self, connection: Connection, number: int, remote: int) -> None:
        self.connection, self.number, self.remote = connection, number, remote
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.okay = asyncio.Event()
        self.buffer = b""
        self.closed = False

    async def write(self, data: bytes) -> None:
        """Send data and wait until the other side has taken it."""
        for first in range(0, len(data), 65536):
            if self.closed:
                raise Ended
            self.okay.clear()
            await self.connection.send(WRTE, self.number, self.remote, data[first : first + 65536])
            await self.okay.wait()

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self.buffer) < count:
            self.buffer += await self.read_some()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def read_some(self) -> bytes:
        """The next write of the other side, which is then told to go on."""
        data = await self.incoming.get()
        if data is None:
            raise Ended
        await self.connection.send(OKAY, self.number, self.remote)
        return data

    def close(self) -> None:
        """The other side is gone."""
        self.closed = True
        self.incoming.put_nowait(None)
        self.okay.set()


class Connection:
    """One adb server that is connected."""

    def __init__(
        self, phone: Daemon, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.phone, self.settings = phone, phone.settings
        self.reader, self.writer = reader, writer
        self.streams: dict[int, Stream] = {}
        self.next = 1

    async def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        """One message."""
        head = struct.pack(
            "<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF
        )
        self.writer.write(head + data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def serve(self) -> None:
        """Messages until the end of the connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError, Ended):
            while True:
                command, first, second, size, *_ = struct.unpack(
                    "<6I", await self.reader.readexactly(24)
                )
                data = await self.reader.readexactly(size)
                await self.message(command, first, second, data)
        self.abort()
        for stream in self.streams.values():
            stream.close()

    def abort(self) -> None:
        """End the connection at once."""
        with suppress(RuntimeError):
            self.writer.transport.abort()

    async def message(self, command: int, first: int, second: int, data: bytes) -> None:
        if self.settings.state == "offline":
            return
        if command in (CNXN, AUTH) and self.settings.state == "unauthorized":
            if command == CNXN or first == 2:
                await self.send(AUTH, 1, 0, bytes(20))
        elif command == CNXN:
            banner = f"device::ro.product.name=loop;ro.product.model={self.settings.model};"
            banner += f"ro.product.device=loop;features={self.settings.features}"
            await self.send(CNXN, VERSION, LARGEST, banner.encode())
        elif command == OPEN:
            stream = Stream(self, self.next, first)
            self.next += 1
            self.streams[stream.number] = stream
            task = asyncio.create_task(self.run(stream, data.rstrip(b"\0").decode()))
            self.phone.tasks.add(task)
            task.add_done_callback(self.phone.tasks.discard)
        elif stream := self.streams.get(second):
            if command == OKAY:
                stream.okay.set()
            elif command == WRTE:
                stream.incoming.put_nowait(data)
            elif command == CLSE:
                del self.streams[second]
                stream.close()

    async def run(self, stream: Stream, service: str) -> None:
        self.settings.services.append(service)
        name, _, rest = service.partition(":")
        serve: Callable[[], Awaitable[None]] | None = None
        if service.startswith("sync:"):
            serve = Sync(self, stream).serve
        elif name.split(",")[0] == "shell" and rest:
            version2 = "v2" in name.split(",")
            serve = Shell(self, stream, rest, version2=version2).serve
        if serve is None:
            await self.send(CLSE, 0, stream.remote)
            return
        await self.send(OKAY, stream.number, stream.remote)
        with suppress(Ended, ConnectionError):
            await serve()
        if not stream.closed:
            self.streams.pop(stream.number, None)
            await self.send(CLSE, stream.number, stream.remote)

    async def pass_through(self, service: str, count: int) -> bool:
        """Apply the cuts to bytes of a service; True where the disk is full."""
        for cut in self.settings.cuts:
            if not re.search(cut.service, service):
                continue
            cut.after -= count
            if cut.after > 0:
                continue
            if cut.full:
                return True
            if cut.hold:
                await asyncio.sleep(3600)
            self.settings.cuts.remove(cut)
            if cut.gone:
                self.phone.vanish()
            self.abort()
            raise Ended
        return False


class Shell:
    """A command in the shell; ends with SIGHUP where the connection does, as adbd does it."""

    def __init__(
        self, connection: Connection, stream: Stream, command: str, *, version2: bool
    ) -> None:
        self.connection, self.stream = connection, stream
        self.command, self.version2 = command, version2

    async def serve(self) -> None:
        settings = self.connection.settings
        path = f"{settings.root}/bin:{os.environ['PATH']}"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", settings.here(self.command)),
            cwd="/",
            env={"PATH": path, "ROOT": str(settings.root)},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe if self.version2 else asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        feeding = asyncio.create_task(self.feed(process))
        self.connection.phone.processes.add(process)
        try:
            outputs = [self.copy(process.stdout, STDOUT), self.copy(process.stderr, STDERR)]
            await asyncio.gather(*outputs)
            code = await process.wait()
            if self.version2:
                await self.stream.write(
                    self.packet(EXIT, bytes([code if code >= 0 else 128 - code]))
                )
        finally:
            feeding.cancel()
            self.hang_up(process)
            for number in range(3):
                pipe = process._transport.get_pipe_transport(number)  # type: ignore[attr-defined]
                if pipe is not None:
                    pipe.close()
            if process.returncode is not None:
                self.connection.phone.processes.discard(process)

    @staticmethod
    def packet(kind: int, data: bytes) -> bytes:
        return struct.pack("<BI", kind, len(data)) + data

    async def copy(self, reader: asyncio.StreamReader | None, kind: int) -> None:
        while reader is not None and (data := await reader.read(32768)):
            await self.connection.pass_through(f"shell:{self.command}", len(data))
            await self.stream.write(self.packet(kind, data) if self.version2 else data)

    async def feed(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        try:
            await self.connection.pass_through(f"start:{self.command}", 0)
            while True:
                kind, data = STDIN, b""
                if self.version2:
                    kind, size = struct.unpack("<BI", await self.stream.read(5))
                    data = await self.stream.read(size)
                else:
                    data = await self.stream.read_some()
                if kind == CLOSE_STDIN:
                    process.stdin.close()
                elif kind == STDIN:
                    process.stdin.write(data)
        except Ended:
            process.stdin.close()
            self.hang_up(process)

    @staticmethod
    def hang_up(process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGHUP)


class Sync:
    """Files: STAT, SEND, RECV, LIST of nothing."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self.connection, self.stream = connection, stream

    async def serve(self) -> None:
        while True:
            name, size = struct.unpack("<4sI", await self.stream.read(8))
            text = (await self.stream.read(size)).decode()
            if name == b"STAT":
                await self.stat(text)
            elif name == b"SEND":
                await self.receive(text)
            else:
                return

    async def stat(self, path: str) -> None:
        try:
            stat = Path(self.connection.settings.here(path)).stat()
            values = stat.st_mode, stat.st_size & 0xFFFFFFFF, int(stat.st_mtime)
        except OSError:
            values = 0, 0, 0
        await self.stream.write(struct.pack("<4s3I", b"STAT", *values))

    async def receive(self, text: str) -> None:
        name, _, mode = text.rpartition(",")
        settings = self.connection.settings
        path, failure = Path(settings.here(name)), ""
        file = None
        try:
            path.unlink(missing_ok=True)
            file = path.open("wb")
            path.chmod(int(mode) & 0o777)
        except OSError as error:
            failure = f"couldn't create file: {error.strerror}"
        try:
            while True:
                kind, size = struct.unpack("<4sI", await self.stream.read(8))
                if kind != b"DATA":
                    break
                data = await self.stream.read(size)
                if await self.connection.pass_through(f"sync:{name}", len(data)):
                    failure = failure or "couldn't write to file: No space left on device"
                if file is not None and not failure:
                    file.write(settings.damage(data))
                    file.flush()
                    settings.received[name] = settings.received.get(name, 0) + len(data)
        finally:
            if file is not None:
                file.close()
        reply = struct.pack("<4sI", b"FAIL", len(failure)) + failure.encode()
        await self.stream.write(reply if failure else struct.pack("<4sI", b"OKAY", 0))


class Daemon:
    """The listening socket; runs in an event loop of its own thread (``phone.py``)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connections: set[Connection] = set()
        self.processes: set[asyncio.subprocess.Process] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None
        self.port = 0

    async def listen(self, port: int = 0) -> None:
        """Begin to listen; on the same port again after :meth:`vanish`."""
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self.connections.add(connection)
        await connection.serve()
        self.connections.discard(connection)

    def vanish(self) -> None:
        """End every connection and listen no more."""
        if self.server is not None:
            self.server.close()
        for connection in tuple(self.connections):
            connection.abort()

    async def close(self) -> None:
        """The phone is switched off: what runs on it ends."""
        self.vanish()
        tasks = tuple(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for process in tuple(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 5)
        while self.connections:
            await asyncio.sleep(0.01)

"""A client of the container runtime interface: gRPC by h2, with messages in protobuf's wire format.

No code is generated and nothing is compiled. Messages are dicts from field number to value, as `runtime.v1` of
https://github.com/kubernetes/cri-api (pkg/apis/runtime/v1/api.proto) numbers them.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

PROTOCOLS = {"tcp": 0, "udp": 1, "sctp": 2}
_VARINT, _BYTES = 0, 2


class CallFailed(Exception):
    """The runtime refused a call; the text is its own."""


class Cri:
    """The runtime service behind a socket; its Pods are below the control group `cgroup`.

    A call waits at most `timeout_s` seconds for each part of the answer.
    """

    def __init__(self, path: Path, cgroup: str, timeout_s: float = 60) -> None:
        self.path, self.cgroup, self.timeout_s = path, cgroup, timeout_s

    def run(
        self,
        name: str,
        handler: str,
        ports: Iterable[tuple[int, int, str]] = (),
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """Make a Pod's sandbox, with `ports` as (host port, container port, protocol); its ID."""
        metadata = {1: name, 2: f"uid-{name}", 3: "default"}
        mappings = [{1: PROTOCOLS[protocol], 2: inside, 3: outside} for outside, inside, protocol in ports]
        notes = [{1: key, 2: value} for key, value in (annotations or {}).items()]
        config = {1: metadata, 2: name, 5: mappings, 7: notes, 8: {1: f"/{self.cgroup}"}}
        (sandbox,) = self.call("RunPodSandbox", {1: config, 2: handler})[1]
        return str(sandbox.decode())

    def stop(self, sandbox: str) -> None:
        """Take its network away and end it. Asked again, as the kubelet does, when its shim ended at that moment."""
        for _ in range(3):
            try:
                self.call("StopPodSandbox", {1: sandbox})
                return
            except CallFailed as error:
                if "ttrpc: closed" not in str(error):
                    raise
            time.sleep(0.2)
        self.call("StopPodSandbox", {1: sandbox})

    def remove(self, sandbox: str) -> None:
        """Stop it and forget it."""
        self.call("RemovePodSandbox", {1: sandbox})

    def sandboxes(self) -> list[str]:
        """The IDs of all that are known."""
        return [decode(item)[1][0].decode() for item in self.call("ListPodSandbox", {}).get(1, [])]

    def namespace(self, sandbox: str) -> str:
        """The path of its network namespace, as containerd tells it."""
        info = [decode(item) for item in self.call("PodSandboxStatus", {1: sandbox, 2: True})[2]]
        (text,) = [entry[2][0].decode() for entry in info if entry[1] == [b"info"]]
        namespaces = json.loads(text)["runtimeSpec"]["linux"]["namespaces"]
        (path,) = [namespace["path"] for namespace in namespaces if namespace["type"] == "network"]
        return str(path)

    def call(self, method: str, request: Mapping[int, Any]) -> dict[int, list[Any]]:
        """One unary call on a connection of its own."""
        body = encode(request)
        # grpc-message may end in a blank, which h2 would refuse.
        settings = H2Configuration(client_side=True, header_encoding="utf-8", validate_inbound_headers=False)
        connection = H2Connection(settings)
        connection.initiate_connection()
        path = f"/runtime.v1.RuntimeService/{method}"
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        connection.send_headers(1, [*headers, ("te", "trailers"), ("content-type", "application/grpc")])
        connection.send_data(1, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(self.timeout_s)
            stream.connect(str(self.path))
            answer, status = _exchange(connection, stream)
        if status.get("grpc-status") != "0":
            raise CallFailed(f"{method}: {status.get('grpc-message', status)}")
        return decode(answer[5:])


def _exchange(connection: H2Connection, stream: socket.socket) -> tuple[bytes, dict[str, str]]:
    """Send what is waiting, and receive until the stream ends: the data and the trailers."""
    answer, status = b"", dict[str, str]()
    while True:
        stream.sendall(connection.data_to_send())
        received = stream.recv(65536)
        if not received:
            raise CallFailed("the runtime closed the connection")
        for event in connection.receive_data(received):
            if isinstance(event, DataReceived):
                answer += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, (ResponseReceived, TrailersReceived)):
                status |= {str(key): str(value) for key, value in event.headers}
            elif isinstance(event, (StreamEnded, StreamReset)):
                return answer, status


def encode(message: Mapping[int, Any]) -> bytes:
    """Values are int (bool), str or a message; a list repeats its field."""
    parts = []
    for number, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                parts += [_varint(number << 3 | _VARINT), _varint(one)]
            else:
                data = one.encode() if isinstance(one, str) else encode(one)
                parts += [_varint(number << 3 | _BYTES), _varint(len(data)), data]
    return b"".join(parts)


def decode(data: bytes) -> dict[int, list[Any]]:
    """All values of each field: int, or bytes for strings and messages."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        assert key & 7 in (_VARINT, _BYTES), f"wire type {key & 7} is in no message that is read here"
        value, at = _read_varint(data, at)
        if key & 7 == _BYTES:
            found.setdefault(key >> 3, []).append(data[at : at + value])
            at += value
        else:
            found.setdefault(key >> 3, []).append(value)
    return found


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at

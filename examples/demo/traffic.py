"""Real traffic: fetch a page, measure a transfer. Every function runs in the namespace the caller has entered."""

from __future__ import annotations

import http.client
import time

_TIMEOUT_S = 5
_CHUNK = bytes(65536)


def fetch(host: str, port: int) -> str:
    """The page at / or what went wrong, as a text either way."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode().strip()
    except OSError as error:
        return f"nothing ({error})"
    finally:
        connection.close()


def refused(host: str, port: int) -> bool:
    """Whether nobody answers there (a refusal, or silence)."""
    return fetch(host, port).startswith("nothing")


def download_bps(host: str, port: int, size: int) -> float:
    """Fetch `size` bytes; the rate in bit/s from the request to the last byte."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        started = time.monotonic()
        connection.request("GET", f"/bytes/{size}")
        answer = connection.getresponse()
        left = size
        while chunk := answer.read(len(_CHUNK)):
            left -= len(chunk)
        if left:
            raise ConnectionError(f"{left} of {size} bytes did not arrive")
        return size * 8 / (time.monotonic() - started)
    finally:
        connection.close()


def upload_bps(host: str, port: int, size: int) -> float:
    """Send `size` bytes; the rate in bit/s until the other side says it has them all."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        started = time.monotonic()
        connection.request(
            "POST",
            "/",
            body=(_CHUNK[: min(65536, size - at)] for at in range(0, size, 65536)),
            headers={"Content-Length": str(size)},
        )
        arrived = int(connection.getresponse().read())
        if arrived != size:
            raise ConnectionError(f"{size - arrived} of {size} bytes did not arrive")
        return size * 8 / (time.monotonic() - started)
    finally:
        connection.close()

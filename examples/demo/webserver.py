"""The web server in each container: `python webserver.py NAME PORT...`, on IPv4 and IPv6.

GET / says who answers; GET /bytes/N sends N bytes; POST / reads the body and says how much it was.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CHUNK = bytes(65536)


class Pages(BaseHTTPRequestHandler):
    name = ""

    def do_GET(self) -> None:
        if self.path.startswith("/bytes/"):
            self._head(left := int(self.path.removeprefix("/bytes/")))
            while left > 0:
                self.wfile.write(_CHUNK[:left])
                left -= len(_CHUNK)
        else:
            page = f"hello from {self.name}, port {self.connection.getsockname()[1]}\n".encode()
            self._head(len(page))
            self.wfile.write(page)

    def do_POST(self) -> None:
        size = left = int(self.headers["Content-Length"])
        while left > 0 and (chunk := self.rfile.read(min(left, len(_CHUNK)))):
            left -= len(chunk)
        answer = f"{size - left}\n".encode()
        self._head(len(answer))
        self.wfile.write(answer)

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Quiet: the demo tells what is fetched."""


class DualStackServer(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        """HTTPServer's own would ask DNS for this host's name, which takes as long as DNS does when there is none."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)


def main(name: str, ports: list[int]) -> None:
    """Serve every port until killed."""
    Pages.name = name
    servers = [DualStackServer(("::", port), Pages) for port in ports]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]])

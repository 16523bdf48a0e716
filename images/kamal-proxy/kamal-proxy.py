#!/usr/bin/env python3
"""A stand-in for kamal-proxy, for tests of adoption: it serves what `kamal-proxy.state` says.

It reads the documented state file once, at its start, as kamal-proxy does after a restart, and the certificates of
its cache (key and chain in one PEM file a host, as Go's autocert writes them).
At SIGTERM it ends as kamal-proxy does: idle connections at once, requests in flight first, at most ten seconds.
It is no kamal-proxy: no deploys, no health checks, no buffering, no control socket.
"""

import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = "/home/kamal-proxy/.config/kamal-proxy"
SERVICES = json.load(open(f"{DATA}/kamal-proxy.state"))
BUSY = 0
LOCK = threading.Lock()
STOPPING = threading.Event()


def service_of(host):
    for service in SERVICES:
        hosts = service["options"]["hosts"]
        if not hosts or host in hosts:
            return service
    return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        global BUSY
        with LOCK:
            BUSY += 1
        try:
            self.forward()
        finally:
            with LOCK:
                BUSY -= 1

    def forward(self):
        host = self.headers.get("Host", "").split(":")[0]
        service = service_of(host)
        if service is None:
            return self.send(404, [], b"")
        secure = isinstance(self.connection, ssl.SSLSocket)
        if service["options"]["tls_enabled"] and service["options"]["tls_redirect"] and not secure:
            return self.send(301, [("Location", f"https://{host}{self.path}")], b"")
        # As Go's transport does, connections to the app are kept: a name is looked up for a new one only.
        upstream = getattr(self, "upstream", None)
        if upstream is None:
            upstream = self.upstream = http.client.HTTPConnection(ADDRESSES[service["name"]], timeout=30)
        upstream.request("GET", self.path, headers={"Host": host, "X-Forwarded-Proto": "https" if secure else "http"})
        answer = upstream.getresponse()
        body = answer.read()
        kept = [(name, value) for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date")]
        self.send(answer.status, kept + [("X-Served-By", "kamal-proxy stand-in")], body)

    def send(self, status, headers, body):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if STOPPING.is_set():
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def context():
    """One context a host, chosen by SNI."""
    contexts = {}
    for service in SERVICES:
        options = service["options"]
        if not options["tls_enabled"]:
            continue
        cache = f"{options['acme_cache_path']}/{hashlib.sha256(options['acme_directory'].encode()).hexdigest()}"
        for host in options["hosts"]:
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            if options["tls_certificate_path"]:
                made.load_cert_chain(options["tls_certificate_path"], options["tls_private_key_path"])
            elif os.path.exists(f"{cache}/{host}"):
                made.load_cert_chain(f"{cache}/{host}")
            else:
                continue
            contexts[host] = made
    if not contexts:
        return None
    first = next(iter(contexts.values()))

    def choose(connection, name, _):
        connection.context = contexts.get(name, first)

    first.sni_callback = choose
    return first


def serve(port, tls):
    server = Server(("", port), Handler)
    if tls is not None:
        # The handshake happens in the connection's own thread, so that a slow one keeps nobody waiting.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


# The addresses of the containers, by service. kamal-proxy looks them up again for each new connection to an app.
ADDRESSES = {}


def main():
    for service in SERVICES:
        name, port = service["active_targets"][0].rsplit(":", 1)
        ADDRESSES[service["name"]] = f"{socket.gethostbyname(name)}:{port}"
    servers = [serve(80, None)]
    tls = context()
    if tls is not None:
        servers.append(serve(443, tls))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    STOPPING.set()
    for server in servers:
        server.server_close()
    deadline = time.monotonic() + 10
    while BUSY and time.monotonic() < deadline:
        time.sleep(0.01)
    os._exit(0)


main()

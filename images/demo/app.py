#!/usr/bin/env python3
"""The demo app: a small web server that shows its version, and misbehaves when asked to.

    PORT=80             where it listens
    SLOW_START=0        seconds before it listens
    HEALTH=ok           `fail`: /up answers 500; `never`: /up hangs
    CRASH_AFTER=        seconds after which it dies with status 1
    STATUS=200          what `/` answers with
    DELAY=0             milliseconds that `/` takes

    /                   the version, for people            /up        the health check
    /version            the version alone                  /env       the environment as JSON
    /headers            the request's headers as JSON      /slow?ms=  answers after so many milliseconds
    /stream?n=&ms=      n server-sent events, ms apart     /echo      the request's body (POST)
    /ws                 a WebSocket that sends back the bytes it gets, frames and all
"""

import base64
import hashlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

VERSION = "v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "demo"
    # Headers and body in one segment each, at once: without it a keep-alive answer waits for a delayed ACK.
    disable_nagle_algorithm = True
    wbufsize = -1

    def answer(self, body, status=200, kind="text/plain; charset=utf-8"):
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Version", VERSION)
        if self.server.stopping.is_set():
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        match url.path:
            case "/":
                time.sleep(int(os.environ.get("DELAY", "0")) / 1000)
                page = f"<!doctype html><title>demo</title><h1>demo {VERSION}</h1>\n"
                self.answer(page, status=int(os.environ.get("STATUS", "200")), kind="text/html")
            case "/up":
                self.health()
            case "/version":
                self.answer(VERSION)
            case "/env":
                self.answer(json.dumps(dict(os.environ)), kind="application/json")
            case "/headers":
                self.answer(json.dumps(self.headers.items()), kind="application/json")
            case "/slow":
                time.sleep(int(query.get("ms", "1000")) / 1000)
                self.answer(VERSION)
            case "/ws":
                self.websocket()
            case "/stream":
                self.stream(int(query.get("n", "10")), int(query.get("ms", "100")) / 1000)
            case _:
                self.answer("not found\n", status=404)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.answer(body, kind=self.headers.get("Content-Type", "application/octet-stream"))

    do_PUT = do_POST

    def websocket(self):
        key = self.headers.get("Sec-WebSocket-Key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while data := self.rfile.read1(4096):
            self.wfile.write(data)
            self.wfile.flush()

    def health(self):
        match os.environ.get("HEALTH", "ok"):
            case "ok":
                self.answer("ok\n")
            case "never":
                threading.Event().wait()
            case _:
                self.answer("not well\n", status=500)

    def stream(self, count, pause):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(count):
            event = f"data: {VERSION} {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            time.sleep(pause)
        self.wfile.write(b"0\r\n\r\n")

    def handle_one_request(self):
        # Waiting for the next request of a connection is not being under way.
        if not self.rfile.peek(1):
            self.close_connection = True
            return
        with self.server.idle:
            self.server.under_way += 1
        try:
            super().handle_one_request()
        finally:
            with self.server.idle:
                self.server.under_way -= 1
                self.server.idle.notify_all()

    def log_message(self, format, *args):
        print(f"{self.address_string()} {format % args}", file=sys.stderr)


class Server(ThreadingHTTPServer):
    # Requests under way are finished; idle keep-alive connections do not hold the end up.
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address):
        self.stopping = threading.Event()
        self.under_way = 0
        self.idle = threading.Condition()
        super().__init__(address, Handler)


def main():
    print(f"demo {VERSION} starts", flush=True)
    if delay := float(os.environ.get("SLOW_START", "0")):
        time.sleep(delay)
    server = Server(("", int(os.environ.get("PORT", "80"))))

    def stop(number, _frame):
        print(f"demo {VERSION} ends on {signal.Signals(number).name}", flush=True)
        server.stopping.set()
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if seconds := os.environ.get("CRASH_AFTER"):
        def crash():
            print(f"demo {VERSION} crashes, as asked", file=sys.stderr, flush=True)
            os._exit(1)
        threading.Timer(float(seconds), crash).start()
    print(f"demo {VERSION} listens on {server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.1)
    with server.idle:
        server.idle.wait_for(lambda: server.under_way == 0, timeout=25)
    server.server_close()


main()

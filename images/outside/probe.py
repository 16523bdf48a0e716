#!/usr/bin/env python3
"""Tries TCP ports of one address and tells what each did.

    probe.py ADDRESS TIMEOUT_SECONDS PORT[-PORT]...

Prints one JSON object: port -> "open", "refused", "silent" (nothing came back in time) or "unreachable".
All ports are tried at once, as many as the limit on open files allows.
"""

import errno
import json
import selectors
import socket
import sys
import time

BATCH = 512


def ports(arguments):
    for argument in arguments:
        first, _, last = argument.partition("-")
        yield from range(int(first), int(last or first) + 1)


def verdict(code):
    if code == 0:
        return "open"
    if code == errno.ECONNREFUSED:
        return "refused"
    if code == errno.ETIMEDOUT:
        return "silent"
    return "unreachable"


def probe(family, address, batch, timeout):
    found = {}
    with selectors.DefaultSelector() as selector:
        for port in batch:
            peer = socket.socket(family, socket.SOCK_STREAM)
            peer.setblocking(False)
            code = peer.connect_ex((address, port))
            if code == errno.EINPROGRESS:
                selector.register(peer, selectors.EVENT_WRITE, port)
            else:
                found[port] = verdict(code)
                peer.close()
        deadline = time.monotonic() + timeout
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                found[key.data] = verdict(key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                selector.unregister(key.fileobj)
                key.fileobj.close()
        for key in list(selector.get_map().values()):
            found[key.data] = "silent"
            selector.unregister(key.fileobj)
            key.fileobj.close()
    return found


def main():
    address, timeout, wanted = sys.argv[1], float(sys.argv[2]), list(ports(sys.argv[3:]))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = {}
    for start in range(0, len(wanted), BATCH):
        found.update(probe(family, address, wanted[start:start + BATCH], timeout))
    json.dump({str(port): found[port] for port in wanted}, sys.stdout)


main()

#!/usr/bin/env python3
"""Stand between clients and a registry that is far away: every request arrives DELAY seconds late.

usage: latency.py PORT UPSTREAM_PORT DELAY

Bytes are passed on as they are, in both directions; the kernel moves them (splice), so that this costs the machine
next to nothing. Only the start of a request is held back: what a client sends when no answer is outstanding.
Bandwidth is not limited.
"""
import fcntl
import os
import socket
import sys
import threading
import time

PIPE = 1 << 20
F_SETPIPE_SZ = 1031


class Exchange:
    """Whether the next bytes from the client begin a request."""

    def __init__(self):
        self.idle = True


def carry(source, sink, arrived):
    """Until the source ends: wait, call `arrived`, pass on."""
    r, w = os.pipe()
    try:
        fcntl.fcntl(w, F_SETPIPE_SZ, PIPE)
        # The wait is a splice as well: it takes the bytes into the pipe.
        while count := os.splice(source.fileno(), w, PIPE):
            arrived()
            while count:
                count -= os.splice(r, sink.fileno(), count)
    except OSError:
        pass  # whoever hangs up first
    finally:
        os.close(r)
        os.close(w)
        for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
            try:
                end.shutdown(how)
            except OSError:
                pass


def serve(client, upstream, delay):
    with client:
        try:
            server = socket.create_connection(("127.0.0.1", upstream))
        except OSError:
            return
        with server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            exchange = Exchange()

            def request():
                if exchange.idle:
                    exchange.idle = False
                    time.sleep(delay)

            def answer():
                exchange.idle = True

            back = threading.Thread(target=carry, args=(server, client, answer))
            back.start()
            carry(client, server, request)
            back.join()


def main():
    port, upstream, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, upstream, delay), daemon=True).start()


main()

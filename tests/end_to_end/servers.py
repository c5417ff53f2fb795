# SPDX-License-Identifier: Apache-2.0
"""Servers on loopback for tests: nginx as a web server; a hub and an object store from the test data's tools.

    web = Web(folder)               # plain, no ranges, slow, redirecting, failing now and then: a path each
    gate = Gate(folder, 5000)       # what lies behind byte 5000 of weights comes when it is opened, or never
    hub = Hub(folder, "--token", "secret", "--fault", "503,every=3")
    store = Store()
"""
import atexit
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness import SCRATCH, data

HUB_TOOL = data("tools/hub/hub-server")
S3_TOOL = data("tools/s3/s3-server")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers end with a test that is ended

_made = itertools.count(1)


def scratch(name):
    folder = SCRATCH / f"{name}-{next(_made)}"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


CONFIG = """
worker_processes 2;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
{user}
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {dir}/tmp; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;
    uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp;
    log_format short '$status $body_bytes_sent "$http_range" "$http_authorization" $request_uri $server_port';
    access_log {dir}/access.log short;
    keepalive_requests 100000;
    default_type application/octet-stream;
    map $request_id $unlucky {{ "~^[01]" 1; default 0; }}
    server {{
        listen 127.0.0.1:{port};
        location /plain/ {{ alias {root}/; }}
        location /whole/ {{ alias {root}/; max_ranges 0; }}
        location /slow/ {{ alias {root}/; limit_rate {rate}; }}
        location /slowly/ {{ alias {root}/; limit_rate {rate}; max_ranges 0; }}
        location /silent/ {{ alias {root}/; etag off; add_header Last-Modified ""; }}
        location /away/ {{ rewrite ^/away/(.*)$ http://localhost:{other}/plain/$1 redirect; }}
        location /flaky/ {{ if ($unlucky) {{ return 503; }} alias {root}/; }}
        location /round/ {{ return 302 /round/again; }}
        location /broken/ {{ return 503; }}
        location /busy/ {{ return 429; }}
        location /private/ {{ return 401; }}
        location /image/ {{ alias {root}/; }}
        # an object store that lets nobody list, and states the same checksum of every object
        location = /bucket/ {{ return 403 "<Error><Code>AccessDenied</Code></Error>"; }}
        location /bucket/ {{ alias {root}/; add_header x-amz-checksum-sha256 "{checksum}"; }}
    }}
    server {{
        listen 127.0.0.1:{other};
        location /plain/ {{ alias {root}/; }}
    }}
    {tls}
}}
"""

TLS = """
    server {{
        listen 127.0.0.1:{tls_port} ssl http2;
        ssl_certificate {dir}/server.pem;
        ssl_certificate_key {dir}/server.key;
        location /plain/ {{ alias {root}/; }}
        location /down/ {{ rewrite ^/down/(.*)$ http://127.0.0.1:{port}/plain/$1 redirect; }}
    }}
"""


def certificates(folder):
    """A certificate authority ca.pem and a certificate for 127.0.0.1 that it signed."""
    run = lambda *a: subprocess.run(["openssl", *a], cwd=folder, check=True, capture_output=True)
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA")
    run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    run("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "server.pem",
        "-days", "2", "-extfile", "ext")


class Web:
    """nginx over a folder. web.plain and so on are URLs that end in a slash."""

    def __init__(self, root, rate="20m", tls=False, checksum=""):
        self.dir = scratch("web")
        self.root = Path(root)
        port, other, tls_port = free_ports(3)
        if tls:
            certificates(self.dir)
            self.authority = self.dir / "ca.pem"
        names = {"dir": self.dir, "root": root, "rate": rate, "port": port, "other": other, "tls_port": tls_port, "checksum": checksum,
                 "user": "user root;" if os.geteuid() == 0 else ""}
        names["tls"] = TLS.format(**names) if tls else ""
        (self.dir / "nginx.conf").write_text(CONFIG.format(**names))
        subprocess.run(["/usr/sbin/nginx", "-p", str(self.dir), "-c", "nginx.conf", "-e", "error.log"], cwd=self.dir,
                       check=True)
        atexit.register(self.stop)
        self.base = f"http://127.0.0.1:{port}/"
        self.secure = f"https://127.0.0.1:{tls_port}/"

    def __getattr__(self, name):
        return f"{self.base}{name}/"

    def requests(self):
        """Lines of the log since the last call: (status, bytes, range, authorization, path, port)."""
        time.sleep(0.05)
        log = self.dir / "access.log"
        found = [shlex.split(line) for line in log.read_text().splitlines()]
        log.write_text("")
        return [(int(s), int(n), r, a, p, int(o)) for s, n, r, a, p, o in found]

    def stop(self):
        try:
            os.kill(int((self.dir / "nginx.pid").read_text()), signal.SIGQUIT)
        except (OSError, ValueError):
            pass


class Gate(ThreadingHTTPServer):
    """A server that sends no byte of a .safetensors or .stele from place `at` on, until it is opened, drops who waits, or is
    shut."""

    daemon_threads = True

    def __init__(self, root, at):
        super().__init__(("127.0.0.1", 0), GateRequest)
        self.root, self.at = Path(root), at
        self.decided, self.held, self.dropped, self.gone = threading.Event(), threading.Event(), False, False
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()
        atexit.register(self.shut)

    def open(self):
        self.decided.set()

    def drop(self):
        self.dropped = True
        self.decided.set()

    def shut(self):
        """From now on nobody is here."""
        self.gone = True
        self.drop()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, address):
        pass  # who asked is gone


class GateRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, gate = self.server.root / self.path.lstrip("/"), self.server
        if not path.is_file():
            return self.send_error(404)
        raw = path.read_bytes()
        begin, end = (self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-") + [""])[:2]
        begin, end = int(begin), min(int(end or len(raw)), len(raw) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{len(raw)}")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        at = gate.at if path.suffix in (".safetensors", ".stele") else len(raw)
        self.wfile.write(raw[begin : max(begin, min(at, end + 1))])
        self.wfile.flush()
        if end >= at:
            early = not gate.decided.is_set()
            gate.held.set()
            gate.decided.wait()
            if gate.gone or (early and gate.dropped):
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(raw[max(begin, at) : end + 1])

    def log_message(self, *_):
        pass


def exports(text):
    """KEY=VALUE of `export KEY=VALUE` lines."""
    words = [shlex.split(line) for line in text.splitlines() if line.startswith("export ")]
    return dict(w.split("=", 1) for line in words for w in line[1:])


class Tool:
    """A server of the test data's tools: env has what it exports."""

    def __init__(self, tool, *options):
        self.tool, self.dir = tool, scratch("tool")
        r = subprocess.run([tool, "start", "--dir", self.dir, *map(str, options)], capture_output=True, text=True)
        assert r.returncode == 0, r.stderr
        self.env = exports(r.stdout)
        atexit.register(self.stop)

    def stop(self):
        subprocess.run([self.tool, "stop", "--dir", self.dir], capture_output=True)


class Hub(Tool):
    def __init__(self, root, *options):
        super().__init__(HUB_TOOL, "--root", root, *options)
        home = scratch("home")
        self.exported = self.env
        self.env = {"HF_ENDPOINT": self.env["HF_ENDPOINT"], "HF_HOME": str(home), "HOME": str(home), "HF_TOKEN": ""}
        self.plain = self.exported["HUB_PLAIN"]
        self.log = Path(self.exported["HUB_LOG"])
        self.seen = 0

    def requests(self):
        """What the log says of each since the last call."""
        time.sleep(0.05)
        lines = self.log.read_text().splitlines()
        new, self.seen = lines[self.seen :], len(lines)
        return [json.loads(line) for line in new]


class Store(Tool):
    def __init__(self, *options):
        super().__init__(S3_TOOL, *options)
        home = scratch("home")
        self.env |= {"HOME": str(home)}

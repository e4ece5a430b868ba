# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the hub, the network and the host may refuse: one line with a remedy each, and no longer a wait than allowed."""

from __future__ import annotations

import base64
import datetime
import http.server
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.tests.hub import leaks
from ansible_collections.trtllm.serving.tests.hub.conftest import FIRST, NAME, TOKEN, Site, wait_for
from ansible_collections.trtllm.serving.tests.hub.server import Fault

OTHER = "hf_" + "AnotherAccountsToken"


def refused(found: dict[str, Any], kind: str, *words: str) -> None:
    assert found.get("failed") and found.get("kind") == kind, found
    assert "\n" not in found["msg"], found["msg"]
    for word in words:
        assert word in found["msg"], found["msg"]


# --- who may read what ---


def test_private_repository_without_a_token(site: Site) -> None:
    site.repository.private = True
    refused(site.run(), "unauthorized", "does not exist or is not public", "give token_file or token")


def test_token_that_the_hub_does_not_know(site: Site) -> None:
    refused(site.run(token="hf_expired0000"), "unauthorized", "does not accept the token (401)", "/settings/tokens")


def test_gated_repository(site: Site) -> None:
    site.repository.gated = True
    site.hub.strangers.add(OTHER)
    refused(site.run(), "gated", f"accept its conditions at {site.hub.url}/{NAME}", "give its token")
    refused(site.run(token=OTHER), "gated", f"accept its conditions at {site.hub.url}/{NAME} with the account of the")
    assert not site.final.exists() and list((site.home / "weights").iterdir()) == []
    site.whole(site.run(token=TOKEN))


def test_unknown_repository(site: Site) -> None:
    refused(site.run(repository="mistralai/Mistral", token=TOKEN), "repository", "has no repository mistralai/Mistral")


def test_unknown_commit(site: Site) -> None:
    refused(site.run(revision="0" * 40), "revision", "has no commit 00000000", "/commits/main")


def test_branch_is_refused_with_its_commit(site: Site) -> None:
    found = site.run(revision="main")
    assert found["failed"] and "'main' is a branch or a tag" in found["msg"] and site.commit in found["msg"]
    assert list((site.home / "weights").iterdir()) == []
    site.hub.requests.clear()
    found = site.run(revision="main", check=True)
    assert found["failed"] and "git ls-remote" in found["msg"] and site.hub.requests == []
    found = site.run(revision=site.commit[:12])
    assert found["failed"] and "not a whole commit" in found["msg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repository": "Mixtral"}, "hub.repository 'Mixtral' is no repository"),
        ({"repository": "../../etc"}, "hub.repository '../../etc' is no repository"),
        ({"endpoint": "ftp://hub"}, "hub.endpoint is no address of a hub"),
        ({"endpoint": "https://me:secret@hub"}, "hub.endpoint has a password in it"),
        ({"endpoint": "http://hub.example.com", "token": TOKEN}, "would see the token in clear"),
        ({"token": TOKEN, "token_file": "/x"}, "are both given"),
        ({"token": "two words"}, "hub.token is no token"),
        ({"token_file": "token"}, "is not absolute"),
        ({"workers": 0}, "hub.workers 0 is not possible"),
        ({"allow_patterns": []}, "hub.allow_patterns is empty"),
        ({"python": "/nowhere/python"}, "hub.python /nowhere/python cannot be run"),
    ],
)
def test_refused_without_asking(site: Site, options: dict[str, Any], message: str) -> None:
    found = site.run(**options)
    assert found["failed"] and message in found["msg"] and "\n" not in found["msg"], found
    assert site.hub.requests == [] and not site.final.exists()
    assert "secret" not in found["msg"] and TOKEN not in site.started[-1].raw


def test_python_without_the_client(site: Site, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nshift\nexec /usr/bin/env -i /usr/bin/python3 -I -S "$@"\n')
    python.chmod(0o755)
    refused(site.run(python=str(python)), "client", "has no huggingface_hub 1.0 or newer")


# --- the token's file ---


def test_token_file(site: Site, tmp_path: Path) -> None:
    site.repository.gated = True
    path = tmp_path / "token"
    found = site.run(token_file=str(path))
    assert found["failed"] and "is not on this host" in found["msg"]
    assert site.run(token_file=str(path), check=True)["changed"]
    path.write_text(TOKEN + "\n")
    path.chmod(0o644)
    for check in (True, False):
        found = site.run(token_file=str(path), check=check)
        assert found["failed"] and "has mode 0644" in found["msg"] and "chmod 600" in found["msg"]
    path.chmod(0o600)
    assert site.hub.requests == []
    site.whole(site.run(token_file=str(path)))
    sent = {(request.server, request.token) for request in site.hub.requests}
    assert sent == {("hub", TOKEN), ("storage", "")}


@pytest.mark.parametrize("how", ["token", "token_file"])
def test_token_is_nowhere_to_be_seen(site: Site, tmp_path: Path, how: str) -> None:
    site.repository.gated = True
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN + "\n")
    site.hub.faults.append(Fault("GET /lfs/", stall=(2_500_000, 60)))
    ambient = {"HF_TOKEN": "hf_SomebodyElsesToken", "HF_DEBUG": "1"}
    with leaks.Watch(TOKEN) as watch:
        task = site.start(process=ambient, workers=1, timeout=60, **{how: TOKEN if how == "token" else str(path)})
        wait_for(site.hub.stalled.is_set)
        # In the middle of it, with all the files of the download there.
        assert leaks.in_trees([tmp_path], TOKEN, besides=[path]) == []
        rounds = watch.rounds
        wait_for(lambda: watch.rounds > rounds + 1)
        site.hub.resume.set()
        site.whole(task.result())
    assert watch.found == set() and TOKEN not in task.raw
    assert leaks.in_trees([tmp_path], TOKEN, besides=[path]) == []
    # It was used, and not the one that lay around.
    assert {request.token for request in site.hub.requests} == {TOKEN, ""}
    failed = site.start(revision="0" * 40, token=TOKEN)
    assert failed.result()["failed"] and TOKEN not in failed.raw
    assert leaks.in_trees([site.home], TOKEN) == []


def test_without_a_token_none_is_sent(site: Site) -> None:
    site.whole(site.start(process={"HF_TOKEN": "hf_SomebodyElsesToken"}).result())
    assert {request.token for request in site.hub.requests} == {""}


def test_leaks_are_found(tmp_path: Path) -> None:
    """The search itself: a token in plain, in an address, in base64, across two reads, in a process."""
    clean = tmp_path / "clean"
    clean.mkdir()
    (clean / "log").write_text("nothing here")
    assert leaks.in_trees([clean], TOKEN) == []
    odd = TOKEN + "/+"
    for number, text in enumerate(
        [
            f"x{odd}y",
            "https://h?t=" + urllib.parse.quote(odd, safe=""),
            base64.b64encode(f"user:{odd}".encode()).decode(),
        ]
    ):
        (tmp_path / f"f{number}").write_text(text)
        assert leaks.in_trees([tmp_path / f"f{number}"], odd) == [str(tmp_path / f"f{number}")]
    (tmp_path / "big").write_bytes(b"x" * (4 * 1024 * 1024 - 5) + TOKEN.encode())
    assert leaks.in_trees([tmp_path / "big"], TOKEN) != []
    with leaks.Watch(TOKEN) as watch:
        child = subprocess.Popen(["sleep", "30"], env={**os.environ, "HF_TOKEN": TOKEN})
        try:
            wait_for(lambda: watch.found)
        finally:
            child.kill()
            child.wait()
    assert watch.found == {f"environ of process {child.pid} (sleep)"}


@pytest.mark.parametrize("text", ["", "two words\n", "a\nb\n", "short\n"])
def test_token_file_without_a_token(site: Site, tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    found = site.run(token_file=str(path))
    assert found["failed"] and "holds no token" in found["msg"] and site.hub.requests == []


# --- a hub that is busy, broken or slow ---


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("GET /api/models", {"Retry-After": "1"}),
        ("HEAD .*config.json", {"RateLimit": '"resolvers";r=0;t=1'}),
        ("GET /lfs/", {"Retry-After": "1"}),
    ],
)
def test_limit_is_waited_for(site: Site, path: str, headers: dict[str, str]) -> None:
    site.hub.faults.append(Fault(path, status=429, headers=headers))
    begun = time.monotonic()
    site.whole(site.run())
    assert time.monotonic() - begun >= 1
    assert "asks to wait 1 s" in site.log()


@pytest.mark.parametrize("path", ["GET /api/models", "GET /lfs/"])
def test_limit_is_waited_for_no_longer_than_allowed(site: Site, path: str) -> None:
    site.hub.faults.append(Fault(path, times=-1, status=429, headers={"Retry-After": "3600"}))
    begun = time.monotonic()
    refused(site.run(max_wait=60), "limit", "3600 s more", "raise max_wait")
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("path", ["GET /api/models", "HEAD .*config.json", "GET /lfs/"])
def test_fault_of_the_server_passes(site: Site, path: str) -> None:
    site.hub.faults.append(Fault(path, status=503))
    site.whole(site.run())
    assert "attempt 2" in site.log()


def test_fault_of_the_server_stays(site: Site) -> None:
    site.hub.faults.append(Fault("GET /lfs/", times=-1, status=502))
    refused(site.run(retries=1), "server", "has a fault (502)", "attempts are used up", str(site.download))


def test_address_that_has_expired_is_asked_for_again(site: Site) -> None:
    site.hub.faults.append(Fault("GET /lfs/", status=403, body={"error": "Request has expired"}))
    site.whole(site.run(workers=1))
    assert [name for name, _range in site.gets()][:2] == [FIRST, FIRST]


def test_hub_that_goes_silent(site: Site) -> None:
    site.hub.faults.append(Fault("GET /lfs/", stall=(1_500_000, 30)))
    site.whole(site.run(workers=1, timeout=1))


def test_hub_that_stays_silent(site: Site) -> None:
    site.hub.faults.append(Fault("GET /api/models", times=-1, stall=(0, 30)))
    refused(site.run(timeout=1, retries=0), "timeout", "sent nothing for 1 s", "raise timeout")


def test_nobody_listens(site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = "http://127.0.0.1:%d" % unused.getsockname()[1]
        refused(site.run(endpoint=url, retries=0), "connect", f"{url} cannot be reached", "HTTPS_PROXY")


def test_mirror_of_another_commit(site: Site) -> None:
    site.hub.faults.append(Fault("HEAD .*config.json", status=200, headers={"X-Repo-Commit": "1" * 40, "ETag": '"x"'}))
    refused(site.run(), "mirror", "is of commit 1111", "contradicts itself")


# --- between us and the hub ---


@pytest.fixture(name="secure")
def _secure(site: Site, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The hub behind TLS, with a certificate of an authority of its own."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    authority, private = tmp_path / "authority.pem", tmp_path / "key.pem"
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, private)
    server = site.hub._serve("hub", 0)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield "https://localhost:%d" % server.server_address[1], authority
    server.shutdown()
    server.server_close()


def test_certificate_of_an_unknown_authority(site: Site, secure: tuple[str, Path]) -> None:
    url, authority = secure
    refused(site.run(endpoint=url), "tls", "is not trusted", "SSL_CERT_FILE")
    site.whole(site.run(endpoint=url, environment={"SSL_CERT_FILE": str(authority)}))


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes on what it is asked for, to those who know its password."""

    seen: list[str] = []

    def log_message(self, *unused: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.headers.get("Proxy-Authorization") != "Basic bWU6cHIweHlwYXNz":
            self.send_error(407)
            return
        self.seen.append(self.path)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        request = urllib.request.Request(self.path, headers=headers, method=self.command)
        try:
            answer = opener.open(request, timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *unused: Any) -> None:
        return None


def test_proxy(site: Site) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        address = "127.0.0.1:%d" % server.server_address[1]
        no_proxy = {"NO_PROXY": "", "no_proxy": ""}
        wrong = {"HTTP_PROXY": f"http://me:wr0ngpass@{address}", **no_proxy}
        refused(site.run(environment=wrong), "proxy", "the proxy does not let this through", "HTTPS_PROXY and NO_PROXY")
        assert site.hub.requests == []
        right = {"HTTP_PROXY": f"http://me:pr0xypass@{address}", **no_proxy}
        site.whole(site.run(environment=right))
        assert len(Proxy.seen) == len(site.hub.requests) > 0
        raw = "".join(task.raw for task in site.started)
        for text in (raw, site.log()):
            assert "wr0ngpass" not in text and "pr0xypass" not in text
    finally:
        server.shutdown()
        server.server_close()

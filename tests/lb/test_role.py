# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Role triton_lb: an HAProxy as a user deploys it, and what it does with requests."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _balancer import GENERATE, Load, Request, ask, free_ports, wait_for

TOKEN = "a-secret-of-one-client"
CHANGED = re.compile(r"(?m)^lb1 .*changed=(\d+)")


def changed(said: str) -> int:
    found = CHANGED.search(said)
    assert found, said
    return int(found.group(1))


@pytest.fixture
def settings(fleet: Any) -> Iterator[Callable[..., str]]:
    """Deploys with further variables; afterwards it is as before."""
    balancer = fleet.balancers["lb1"]

    def deploy(*arguments: str, rc: int | None = 0, **variables: Any) -> str:
        balancer.variables = variables
        said: str = fleet.deploy(*arguments, rc=rc)
        return said

    yield deploy
    balancer.variables = {}
    fleet.deploy()
    wait_for(lambda: balancer.up("gpu1") and balancer.up("gpu2"), "servers are not up again")


def test_virgin_machine_in_check_mode_and_then_for_real(fleets: Any) -> None:
    fleet = fleets({"chat": ["gpu1"]}, ["lb1"])
    folder = fleet.balancers["lb1"].folder
    before = sorted(folder.rglob("*"))
    said = fleet.deploy("--check", "--diff")
    assert changed(said) == 1 and "+backend chat" in said
    assert sorted(folder.rglob("*")) == before
    fleet.balancers["lb1"].variables = {"triton_lb_executable": "haproxy-that-is-not-there"}
    said = fleet.deploy("--check")
    assert changed(said) == 1
    said = fleet.deploy(rc=2)
    assert "there is no program haproxy-that-is-not-there" in said
    fleet.balancers["lb1"].variables = {}
    assert changed(fleet.deploy()) == 1
    wait_for(lambda: fleet.balancers["lb1"].up("gpu1"), "gpu1 is not up")
    assert ask(fleet.front["chat"])[0] == 200


def test_second_run_changes_nothing(fleet: Any, lb: Any) -> None:
    worker = lb.worker
    assert changed(fleet.deploy()) == 0
    assert changed(fleet.deploy("--check", "--diff")) == 0
    assert lb.worker == worker


def test_pools_have_frontends_and_servers_of_their_own(fleet: Any, lb: Any) -> None:
    assert {json.loads(ask(fleet.front["chat"])[1])["text_output"] for _each in range(12)} == {"gpu1", "gpu2"}
    assert json.loads(ask(fleet.front["embed"])[1])["text_output"] == "gpu3"


def test_a_server_that_lost_one_model_gets_no_request(fleet: Any, lb: Any) -> None:
    for model in fleet.servers["gpu1"].ready:
        fleet.servers["gpu1"].ready[model] = False
        wait_for(lambda: not lb.up("gpu1"), "%s was not asked for" % model)
        assert {json.loads(ask(fleet.front["chat"])[1])["text_output"] for _each in range(6)} == {"gpu2"}
        fleet.servers["gpu1"].ready[model] = True
        wait_for(lambda: lb.up("gpu1"), "gpu1 is not up again")
    assert set(fleet.servers["gpu1"].checks) == {"/v2/health/ready"} | {
        "/v2/models/%s/ready" % model for model in fleet.servers["gpu1"].ready
    }


def test_paths_that_change_a_server_are_not_there(fleet: Any, lb: Any) -> None:
    port = fleet.front["chat"]
    for path in (
        "/v2/repository/models/ensemble/unload", "/v2/repository/index", "/v2/systemsharedmemory/status",
        "/v2/models/ensemble/trace/setting", "/v2/logging", "/v2/models/ensemble/../../repository/index", "/metrics",
    ):  # fmt: skip
        assert ask(port, path)[0] == 404, path
    assert not any("repository" in path for server in fleet.servers.values() for path, _headers in server.asked)
    for path in (GENERATE, GENERATE + "_stream", "/v2/models/ensemble/versions/1/generate"):
        assert ask(port, path)[0] == 200, path


def test_request_that_was_sent_is_never_sent_again(fleet: Any, lb: Any) -> None:
    request = Request(fleet.front["embed"], hold=True)
    wait_for(lambda: fleet.servers["gpu3"].running, "the request did not begin")
    victim = fleet.servers["gpu3"]
    # The server ends the connection without an answer.
    victim.ready = dict.fromkeys(victim.ready, True)
    assert len(victim.asked) == 1
    victim.go.set()
    request.join(20)
    assert request.status == 200 and len(victim.asked) == 1
    config = lb.config.read_text("utf-8")
    assert re.findall(r"(?m)^\s*retry-on (.*)$", config) == ["conn-failure"]


def test_server_that_is_gone_costs_no_request(fleet: Any, lb: Any) -> None:
    """Until the health check has noticed, connections that do not come about go to another server."""
    lb.say("disable health chat/gpu1")
    fleet.servers["gpu1"].stop()
    try:
        assert lb.up("gpu1")
        answers = [ask(fleet.front["chat"]) for _each in range(20)]
    finally:
        fleet.servers["gpu1"].start()
        lb.say("enable health chat/gpu1")
    assert answers == [(200, '{"text_output": "gpu2"}')] * 20


def test_reload_cuts_nothing_and_forgets_nothing(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    stream = Request(fleet.front["chat"], GENERATE + "_stream", tokens=40, gap=0.1)
    wait_for(lambda: stream.is_alive() and any(each.running for each in fleet.servers.values()), "no stream")
    idle = next(name for name in ("gpu1", "gpu2") if not fleet.servers[name].running)
    lb.server(idle, "drained")
    # The file that a reload reads is the role's own business too.
    lb.state_file.write_text("1\n", "ascii")
    load = Load(fleet.front["chat"], 2)
    old = lb.worker
    try:
        said = settings(triton_lb_maxconn=2048)
        assert changed(said) == 1 and lb.worker != old
        assert lb.states()[idle] == "drain"
        seen = load.answered
        wait_for(lambda: load.answered > seen + 50, "there are no answers any more")
    finally:
        load.stop()
    stream.join(30)
    assert stream.status == 200 and stream.text.count("data:") == 40, stream.problem
    assert load.failures == []


def test_port_of_a_server_may_change(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    """HAProxy takes a server's port from its state file, whatever the configuration says."""
    server = fleet.servers["gpu2"]
    old, new = server.port, free_ports(1)[0]
    try:
        lb.server("gpu1", "drained")
        server.stop()
        server.port = fleet.hosts["gpu2"]["triton_serve_http_port"] = new
        server.start()
        settings()
        wait_for(lambda: lb.up("gpu2"), "the new port is not known")
        assert lb.server("gpu2", "query")["address"] == "127.0.0.1:%d" % new
        assert lb.states()["gpu1"] == "drain"
        assert ask(fleet.front["chat"])[0] == 200
    finally:
        server.stop()
        server.port = fleet.hosts["gpu2"]["triton_serve_http_port"] = old
        server.start()


def test_token_is_asked_for_and_stays_secret(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    more = lb.folder / "tokens"
    more.write_text("# of the second client\nanother-secret\n", "ascii")
    said = settings("--diff", "-vvv", triton_lb_tokens=[TOKEN], triton_lb_token_file=str(more))
    assert TOKEN not in said and "another-secret" not in said
    port = fleet.front["chat"]
    assert ask(port)[0] == 401
    for wrong in ("Bearer", "Bearer " + TOKEN + "x", "Bearer " + TOKEN.upper(), "Basic " + TOKEN, TOKEN,
                  "Bearer " + hashlib.sha256(TOKEN.encode()).hexdigest()):  # fmt: skip
        assert ask(port, Authorization=wrong)[0] == 401, wrong
    assert not fleet.servers["gpu1"].asked and not fleet.servers["gpu2"].asked
    for right in ("Bearer " + TOKEN, "bearer " + TOKEN, "Bearer another-secret"):
        assert ask(port, Authorization=right)[0] == 200, right
    asked = fleet.servers["gpu1"].asked + fleet.servers["gpu2"].asked
    assert len(asked) == 3 and not any("Authorization" in headers for _path, headers in asked)
    kept = [path for path in (lb.folder / "etc").iterdir() if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in kept)
    digests = lb.config.with_name("trtllm-tokens")
    assert stat.S_IMODE(digests.stat().st_mode) == 0o600 and len(digests.read_text("ascii").splitlines()) == 2
    # Another token in the file on the balancer needs a run, and nothing else.
    assert changed(fleet.deploy()) == 0
    more.write_text("third-secret\n", "ascii")
    said = fleet.deploy("--diff")
    assert changed(said) == 1 and "third-secret" not in said
    wait_for(lambda: ask(port, Authorization="Bearer another-secret")[0] == 401, "the old token still counts")
    assert ask(port, Authorization="Bearer third-secret")[0] == 200


def test_tls(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    pem = lb.folder / "site.pem"
    said = settings(triton_lb_certificate=str(pem), rc=2)
    assert "%s is not there" % pem in said
    key, certificate = lb.folder / "key.pem", lb.folder / "certificate.pem"

    def issue() -> bytes:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
             "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True, capture_output=True,
        )  # fmt: skip
        pem.write_bytes(certificate.read_bytes() + key.read_bytes())
        return ssl.PEM_cert_to_DER_cert(certificate.read_text("ascii"))

    def served() -> tuple[bytes | None, str | None]:
        context = ssl.create_default_context(cafile=str(certificate))
        with socket.create_connection(("127.0.0.1", fleet.front["chat"]), 10) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                return secure.getpeercert(binary_form=True), secure.version()

    first = issue()
    settings(triton_lb_certificate=str(pem))
    assert served() == (first, "TLSv1.3")
    connection = http.client.HTTPSConnection(
        "127.0.0.1", fleet.front["chat"], timeout=20, context=ssl.create_default_context(cafile=str(certificate))
    )
    connection.request("POST", GENERATE, "{}")
    assert connection.getresponse().status == 200
    connection.close()
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(fleet.front["chat"])
    # A certificate that was renewed is served after the next run.
    assert changed(fleet.deploy()) == 0
    second = issue()
    assert changed(fleet.deploy()) == 1
    assert served()[0] == second != first


def test_metrics(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    port = free_ports(1)[0]
    settings(triton_lb_metrics_port=port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    assert re.search(r'(?m)^haproxy_server_status\{proxy="chat",server="gpu1",state="UP"\} 1$', text)
    connection.request("GET", "/stats")
    assert connection.getresponse().status == 404


def test_configuration_that_haproxy_refuses_changes_nothing(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    before, worker = lb.config.read_bytes(), lb.worker
    for check in ([], ["--check"]):
        said = settings(*check, rc=2, triton_lb_extra_config="backend extra\n  balance sideways")
        assert "HAProxy does not take the configuration" in said and "balance" in said
    assert (lb.config.read_bytes(), lb.worker) == (before, worker)
    assert ask(fleet.front["chat"])[0] == 200


def test_port_of_somebody_else_is_found_before_a_reload(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    """HAProxy would answer nobody for the seconds in which it tries to get it."""
    before, worker = lb.config.read_bytes(), lb.worker
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        load = Load(fleet.front["chat"], 2)
        try:
            said = settings(rc=2, triton_lb_metrics_port=port)
        finally:
            load.stop()
    assert "127.0.0.1:%d is not to be had" % port in said
    assert (lb.config.read_bytes(), lb.worker) == (before, worker)
    assert load.failures == [] and load.answered > 20


def test_configuration_that_does_not_come_up_is_taken_back(fleet: Any, lb: Any, settings: Callable[..., str]) -> None:
    before = lb.config.read_bytes()
    load = Load(fleet.front["chat"], 2)
    try:
        said = settings(
            rc=2, triton_lb_activation_timeout=60,
            triton_lb_extra_config="global\n  stats socket %s/none/second.sock" % lb.folder,
        )  # fmt: skip
        assert ask(fleet.front["chat"])[0] == 200
    finally:
        load.stop()
    assert "did not come up" in said and "the configuration of before is back" in said
    assert lb.config.read_bytes() == before and lb.config.with_name("haproxy.cfg.refused").is_file()
    assert load.failures == [] and load.answered > 20
    lb.reload()


def test_run_that_broke_off_before_its_reload_is_made_up_for(fleet: Any, lb: Any) -> None:
    lb.state_file.with_name("servers.activated").write_text("of an older configuration", "ascii")
    worker = lb.worker
    assert "reload" in fleet.deploy("-v") and lb.worker != worker
    assert changed(fleet.deploy()) == 0


def test_haproxy_that_has_died_is_started(fleet: Any, lb: Any) -> None:
    lb.server("gpu1", "drained")
    lb.stop()
    assert changed(fleet.deploy()) == 1
    assert lb.states() == {"gpu1": "drain", "gpu2": "ready"}


def test_configuration_of_somebody_else_is_kept(fleets: Any) -> None:
    fleet = fleets({"chat": ["gpu1"]}, ["lb1"])
    lb = fleet.balancers["lb1"]
    theirs = "defaults\n  mode http\nfrontend shop\n  bind 127.0.0.1:1\n"
    lb.config.write_text(theirs, "utf-8")
    said = fleet.deploy(rc=2)
    assert "not this role's" in said and "triton_lb_replace_config" in said
    assert lb.config.read_text("utf-8") == theirs and not lb.socket.exists()
    lb.variables = {"triton_lb_replace_config": True}
    fleet.deploy()
    copies = [path for path in lb.config.parent.iterdir() if re.fullmatch(r"haproxy\.cfg\.\d{8}-\d{6}", path.name)]
    assert [path.read_text("utf-8") for path in copies] == [theirs]


def test_host_that_no_balancer_reaches_is_refused(fleet: Any) -> None:
    fleet.hosts["gpu1"].update(ansible_connection="ssh", triton_serve_address="127.0.0.1")
    fleet.hosts["gpu3"]["triton_lb_port"] = fleet.front["chat"]
    try:
        said = fleet.deploy(rc=2)
    finally:
        del fleet.hosts["gpu1"]["ansible_connection"], fleet.hosts["gpu1"]["triton_serve_address"]
        fleet.hosts["gpu3"]["triton_lb_port"] = fleet.front["embed"]
    assert "host gpu1 listens on 127.0.0.1" in said
    assert "pool chat and pool embed want port %d" % fleet.front["chat"] in said


def test_spare_server_of_a_surge_gets_nothing_before_it_is_told_to(
    fleet: Any, lb: Any, settings: Callable[..., str]
) -> None:
    second = type(fleet.servers["gpu3"])("gpu3 again", free_ports(1)[0]).start()
    offset = second.port - fleet.servers["gpu3"].port
    fleet.hosts["gpu3"].update(triton_pool_strategy="surge", triton_serve_surge_port_offset=offset)
    try:
        settings()
        assert lb.states("embed") == {"gpu3": "ready", "gpu3-b": "maint"}
        assert {ask(fleet.front["embed"])[1] for _each in range(6)} == {'{"text_output": "gpu3"}'}
        assert lb.server("gpu3-b", "ready", backend="embed", expect_healthy=True, timeout=20)["state"] == "ready"
        lb.server("gpu3", "drained", backend="embed")
        # Where the second place serves, it also does after HAProxy was started anew.
        lb.stop()
        fleet.deploy()
        assert lb.states("embed") == {"gpu3": "drain", "gpu3-b": "ready"}
        wait_for(lambda: lb.up("gpu3-b", "embed"), "gpu3-b is not up")
        assert ask(fleet.front["embed"]) == (200, '{"text_output": "gpu3 again"}')
    finally:
        second.stop()
        del fleet.hosts["gpu3"]["triton_pool_strategy"], fleet.hosts["gpu3"]["triton_serve_surge_port_offset"]


def test_files_tell_nothing_to_others(lb: Any) -> None:
    assert stat.S_IMODE(os.stat(lb.config).st_mode) == 0o640
    assert stat.S_IMODE(os.stat(lb.socket).st_mode) == 0o660
    assert Path(lb.state_file).is_file()

# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a balancer is to be like, and what is found there."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.filter.balancer import lb_pools, lb_problems
from ansible_collections.trtllm.serving.plugins.module_utils import _haproxy_config, _haproxy_instance
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import HaproxyError
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy_config import Program

ROOT = Path(__file__).resolve().parents[3]
MARKER = "# Written by Ansible role trtllm.serving.triton_lb."
STATE = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_admin_state srv_port srvrecord\n"
    "3 chat 1 h1 10.0.0.1 8 8000 -\n3 chat 2 h2 10.0.0.2 0 8000 -\n4 old 1 h3 10.0.0.3 1 8000 -\n"
)


def host(name: str, **more: Any) -> dict[str, Any]:
    return {"inventory_hostname": name, "triton_serve_address": "0.0.0.0", "ansible_host": "10.0.0." + name[-1], **more}


def script() -> Any:
    spec = importlib.util.spec_from_file_location("haproxy_state", ROOT / "roles/triton_lb/files/haproxy_state.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pools_are_what_the_hosts_say() -> None:
    hosts = [host("h1", triton_pool="chat"), host("h2"), host("h3", triton_pool="chat", triton_lb_port="9000")]
    found = lb_pools(hosts)
    assert [pool["name"] for pool in found] == ["chat", "default"]
    assert [server["name"] for server in found[0]["servers"]] == ["h1", "h3"]
    assert found[1] == {
        "name": "default", "port": 8080,
        "models": ["preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls"],
        "servers": [{"name": "h2", "address": "10.0.0.2", "port": 8000, "spare": False}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "address"),
    [({}, "10.0.0.1"), ({"ansible_host": None}, "h1"), ({"triton_serve_address": "10.9.9.9"}, "10.9.9.9"),
     ({"triton_lb_server_address": "gpu.example"}, "gpu.example"), ({"ansible_connection": "local"}, "127.0.0.1"),
     ({"triton_serve_address": "::"}, "10.0.0.1"), ({"triton_serve_address": None}, "127.0.0.1")],
)  # fmt: skip
def test_address_is_where_the_server_listens(variables: dict[str, Any], address: str) -> None:
    assert lb_pools([host("h1", **variables)])[0]["servers"][0]["address"] == address


def test_a_surge_has_a_second_server_on_its_port() -> None:
    servers = lb_pools([host("h1", triton_pool_strategy="surge", triton_serve_http_port=9000)])[0]["servers"]
    found = [(each["name"], each["port"], each["spare"]) for each in servers]
    assert found == [("h1", 9000, False), ("h1-b", 9100, True)]


def test_what_cannot_be_is_refused_with_value_and_remedy() -> None:
    hosts = [host("h1", triton_serve_address="127.0.0.1"), host("h2", triton_pool="a b"), host("h3", triton_pool="c")]
    problems = lb_problems(
        lb_pools(hosts), metrics_port=8080, hosts=hosts, allowed_paths="^(", certificate="/etc/my cert"
    )
    for words in (
        "pool 'a b' cannot be a name", "triton_lb_metrics_port and pool c want port 8080",
        "pool c and pool default want port 8080", "host h1 listens on 127.0.0.1", "'^(' is no regular expression",
        "'/etc/my cert' has a space",
    ):  # fmt: skip
        assert any(words in problem for problem in problems), words
    assert len(problems) == 6 and not any("\n" in problem for problem in problems)
    (problem,) = lb_problems([{"name": "a"}])
    assert problem == "pool a of triton_lb_pools has no 'models': give models, name, port, servers"
    bad = [{"name": "a", "port": 0, "models": ["x y"], "servers": [{"name": "h;", "address": "", "port": 70000}]}]
    assert len(lb_problems(bad)) == 5


def test_states_fit_the_configuration_that_comes() -> None:
    """HAProxy would take the port of the file, and warn of servers that it does not know."""
    servers = "  # server h9 10.0.0.9:1\n  server h1 10.0.0.1:9000 check\n  server h2 [::1]:8000\n"
    config = "backend chat\n" + servers + "frontend old\n"
    fitting = script().fitting(STATE, config)
    assert fitting == STATE.replace("8 8000", "8 9000").replace("4 old 1 h3 10.0.0.3 1 8000 -\n", "")


def test_states_are_made_and_kept_without_haproxy(tmp_path: Path) -> None:
    config, state = tmp_path / "haproxy.cfg", tmp_path / "servers"
    config.write_text("backend chat\n  server h1 10.0.0.1:8000\n", "ascii")
    assert script().main([str(tmp_path / "none"), str(config), str(state)]) == 0
    assert state.read_text("ascii") == script().HEADER
    state.write_text(STATE, "ascii")
    script().main([str(tmp_path / "none"), str(config), str(state)])
    assert state.read_text("ascii").splitlines()[2:] == ["3 chat 1 h1 10.0.0.1 8 8000 -"]


@pytest.mark.parametrize(
    ("text", "owner"),
    [(None, "absent"), (MARKER + "\nglobal\n", "ours"), ("global\n  daemon\ndefaults\n  mode http\n", "pristine"),
     ("defaults\nlisten shop\n  bind :80\n", "foreign"), ("# a\n\nfrontend x\n", "foreign")],
)  # fmt: skip
def test_owner_of_a_configuration(monkeypatch: pytest.MonkeyPatch, text: str | None, owner: str) -> None:
    monkeypatch.setattr(_haproxy_config, "_packaged", lambda path, text: False)
    assert _haproxy_config.whose("/etc/haproxy/haproxy.cfg", text, MARKER) == owner


def test_configuration_of_the_package_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "frontend main\n  bind *:5000\n"
    monkeypatch.setattr(_haproxy_config.shutil, "which", lambda name: name == "rpm")
    for said, code, owner in (
        ("", 0, "pristine"), ("S.5....T.  c /etc/haproxy/haproxy.cfg\n", 1, "foreign"),
        (".......T.  c /etc/haproxy/haproxy.cfg\n", 1, "pristine"),
        ("file /x is not owned by any package\n", 1, "foreign"),
    ):  # fmt: skip
        monkeypatch.setattr(_haproxy_config, "run", lambda argv, code=code, said=said: (code, said))
        assert _haproxy_config.whose("/etc/haproxy/haproxy.cfg", text, MARKER) == owner
    monkeypatch.setattr(_haproxy_config.shutil, "which", lambda name: name == "dpkg-query")
    digest = _haproxy_config.hashlib.md5(text.encode()).hexdigest()
    for value, owner in ((digest, "pristine"), ("0" * 32, "foreign")):
        said = "\n /etc/haproxy/haproxy.cfg %s\n" % value
        monkeypatch.setattr(_haproxy_config, "run", lambda argv, said=said: (0, said))
        assert _haproxy_config.whose("/etc/haproxy/haproxy.cfg", text, MARKER) == owner


@pytest.mark.parametrize(
    ("version", "features", "config", "word"),
    [("1.8.27", {"OPENSSL", "PROMEX"}, "", "older than 2.4"),
     ("2.4.22-f8e3218", {"PROMEX"}, "bind :1 ssl crt /x", "OpenSSL"),
     ("2.6.12", {"OPENSSL"}, "use-service prometheus-exporter", "exporter"),
     ("2.10.1", {"OPENSSL", "PROMEX"}, "sha2(256)", "")],
)  # fmt: skip
def test_what_an_haproxy_cannot(version: str, features: set[str], config: str, word: str) -> None:
    problems = _haproxy_config.shortcomings(Program("/usr/sbin/haproxy", version, frozenset(features)), config)
    assert bool(problems) == bool(word) and (not word or word in problems[0])


def test_word_of_haproxy_is_taken_out_of_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "[NOTICE]   (1) : haproxy version is 2.6.12\n"
        "[ALERT]    (1) : config : parsing [/etc/haproxy/haproxy.cfg:9] : unknown keyword 'balanse'\n"
        "[ALERT]    (1) : config : Error(s) found in configuration file : /etc/haproxy/haproxy.cfg\n"
        "[ALERT]    (1) : config : Fatal errors found in configuration.\n"
    )
    monkeypatch.setattr(_haproxy_config, "run", lambda argv: (1, said))
    found = _haproxy_config.judge(Program("haproxy", "2.6", frozenset()), "/x")
    assert found == "parsing [/etc/haproxy/haproxy.cfg:9] : unknown keyword 'balanse'"


def test_tokens_become_digests() -> None:
    found = _haproxy_config.token_digests(["b"], "# first\n\n a \nb\n").splitlines()
    assert len(found) == 2 and all(len(line) == 64 and line == line.upper() for line in found)
    for bad in ("", "two words"):
        with pytest.raises(HaproxyError, match="one word") as caught:
            _haproxy_config.token_digests([bad], None)
        assert "two" not in str(caught.value)


def test_only_new_listeners_are_tried() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        new = "frontend a\n  bind 127.0.0.1:%d ssl crt /x\n" % port
        assert "127.0.0.1:%d is not to be had" % port in _haproxy_instance.taken(new, "")
        assert _haproxy_instance.taken(new, "frontend a\n  bind 0.0.0.0:%d\n" % port) == ""
    assert _haproxy_instance.taken(new, "") == ""

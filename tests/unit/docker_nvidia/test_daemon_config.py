# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""dockerd's file: foreign keys stay, each change has its consequence, and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._daemon_config import (
    NONE,
    RELOAD,
    RESTART,
    ConfigError,
    action_of,
    changed_keys,
    conflicts,
    exec_start,
    flag_keys,
    hide_secrets,
    merge,
    needs,
    not_in_effect,
    option,
    parse,
    render,
    style_of,
)

DATA = Path(__file__).parent / "data"
NVIDIA = {"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}


def info(**changes: Any) -> dict[str, Any]:
    return {**json.loads((DATA / "info-20.10.json").read_text()), **changes}


# --- merging ---


def test_foreign_keys_and_order_stay() -> None:
    there = {"zebra": 1, "runtimes": {"kata": {"path": "kata"}}, "insecure-registries": ["r:5000"]}
    merged = merge(there, {**NVIDIA, "live-restore": True})
    assert list(merged) == ["zebra", "runtimes", "insecure-registries", "live-restore"]
    assert merged["runtimes"] == {"kata": {"path": "kata"}, **NVIDIA["runtimes"]}
    assert there["runtimes"] == {"kata": {"path": "kata"}}


@pytest.mark.parametrize(
    ("there", "wanted", "merged"),
    [
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({}, {"a": None}, {}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": None}}, {"a": {"y": 2}}),
        ({}, {"a": {"x": None}}, {}),
        ({"a": "text"}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"default-ulimits": {"nofile": {"Hard": 1}}}, {"default-ulimits": {"memlock": {"Hard": -1}}},
         {"default-ulimits": {"nofile": {"Hard": 1}, "memlock": {"Hard": -1}}}),
    ],
)  # fmt: skip
def test_merge(there: dict[str, Any], wanted: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge(there, wanted) == merged
    assert merge(merged, wanted) == merged


def test_true_is_not_one() -> None:
    assert changed_keys({"live-restore": 1}, {"live-restore": True}) == ["live-restore"]


# --- the file as it is written ---


@pytest.mark.parametrize(
    "text",
    [
        '{\n    "a": 1,\n    "b": {\n        "c": [\n            1\n        ]\n    }\n}\n',
        '{\n\t"a": 1\n}\n',
        '{\n  "a": "\u00e4"\n}',
        '{"a": 1, "b": 2}\n',
    ],
)
def test_a_file_is_written_as_it_was(text: str) -> None:
    assert render(parse(text, "daemon.json"), style_of(text)) == text


def test_an_empty_file_is_an_empty_object() -> None:
    assert parse(" \n", "daemon.json") == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{\n  "a": 1,\n  "b": 2,\n}\n', "daemon.json, line 4, column 1:"),
        ('{"a": 1 "b": 2}', "daemon.json, line 1, column 9:"),
        ('{"a": nonsense}', "daemon.json, line 1, column 7:"),
        ("// a comment\n{}", "daemon.json, line 1, column 1:"),
        ('{"a": 1, "a": 2}', "key 'a' is there twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[]", "holds a JSON list, wanted is an object"),
        ("\ufeff{}", "daemon.json, line 1, column 1:"),
    ],
)
def test_a_broken_file_is_named_with_its_place(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "/etc/docker/daemon.json")
    assert named in str(caught.value) and "left as it is" in str(caught.value) and "\n" not in str(caught.value)


# --- what a change needs ---


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        ({}, {}, NONE),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, NONE),
        ({}, NVIDIA, RELOAD),
        ({}, {"live-restore": True}, RELOAD),
        ({"registry-mirrors": ["http://a"]}, {"registry-mirrors": ["http://b"]}, RELOAD),
        ({}, {"data-root": "/mnt"}, RESTART),
        ({}, {"log-driver": "journald"}, RESTART),
        ({}, {"proxies": {"http-proxy": "http://p"}}, RESTART),
        ({}, {"features": {"buildkit": True}}, RELOAD),
        # The CDI driver is registered when dockerd starts.
        ({}, {"features": {"cdi": True}}, RESTART),
        ({"features": {"cdi": True}}, {"features": {"cdi": True, "buildkit": False}}, RELOAD),
        ({}, {"features": {"containerd-snapshotter": False}}, RESTART),
        # A reload keeps what is gone from the file, but for these.
        ({"labels": ["a=b"]}, {}, RESTART),
        ({"runtimes": {"x": {}}}, {}, RESTART),
        ({"runtimes": {"x": {}, "y": {}}}, {"runtimes": {"x": {}}}, RELOAD),
        ({"max-concurrent-downloads": 6}, {}, RELOAD),
        ({}, {"no-such-key": 1}, RESTART),
    ],
)
def test_needs(before: dict[str, Any], after: dict[str, Any], action: str) -> None:
    assert action_of(needs(before, after)) == action


def test_one_key_that_needs_a_restart_does_not_hide_the_others() -> None:
    assert needs({}, {**NVIDIA, "log-opts": {"max-size": "1m"}}) == {"reload": ["runtimes"], "restart": ["log-opts"]}


# --- the command line ---


@pytest.mark.parametrize(
    ("argv", "keys"),
    [
        (["dockerd", "-H", "fd://", "--containerd=/run/containerd/containerd.sock"], {"hosts", "containerd"}),
        (["dockerd", "-Hfd://"], {"hosts"}),
        (["dockerd", "-D", "-l", "debug"], {"debug", "log-level"}),
        (["dockerd", "-DH", "unix:///x"], {"debug", "hosts"}),
        (["dockerd", "--label", "a=b", "--label=c=d"], {"labels"}),
        (["dockerd", "--insecure-registry=r", "--registry-mirror", "http://m", "--storage-opt", "x"],
         {"insecure-registries", "registry-mirrors", "storage-opts"}),
        (["dockerd", "-g", "/data", "-s", "overlay2", "-b", "none", "-G", "docker", "-p", "/run/x.pid"],
         {"data-root", "storage-driver", "bridge", "group", "pidfile"}),
        (["dockerd", "--config-file", "/etc/other.json", "--live-restore"], {"live-restore"}),
        (["dockerd", "--add-runtime", "nvidia=/x", "--default-ulimit", "nofile=1"], {"runtimes", "default-ulimits"}),
        ([], set()),
    ],
)  # fmt: skip
def test_keys_of_a_command_line(argv: list[str], keys: set[str]) -> None:
    assert set(flag_keys(argv)) == keys


def test_conflicts_are_named_by_option() -> None:
    argv = ["dockerd", "-H", "fd://", "--log-opt", "max-size=1m", "--add-runtime", "x=y", "--http-proxy=http://p"]
    config = {"hosts": ["fd://"], "log-opts": {"max-size": "1m"}, "runtimes": {}, "debug": True,
              "proxies": {"http-proxy": "http://q"}}  # fmt: skip
    assert conflicts(config, argv) == {
        "hosts": "-H fd://", "log-opts": "--log-opt max-size=1m", "http-proxy": "--http-proxy=http://p",
    }  # fmt: skip


def test_the_value_of_an_option() -> None:
    assert option(["dockerd", "--config-file", "/a"], "config-file") == "/a"
    assert option(["dockerd", "--config-file=/b"], "config-file") == "/b"
    assert option(["dockerd"], "config-file") == ""


def test_a_unit_as_systemd_shows_it() -> None:
    shown = (DATA / "unit-el9.txt").read_text().splitlines()[0].partition("=")[2]
    assert exec_start(shown, {}) == [
        "/usr/bin/dockerd", "-H", "fd://", "--containerd=/run/containerd/containerd.sock",
    ]  # fmt: skip


def test_variables_of_a_unit_are_put_in() -> None:
    shown = "{ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS ${ONE} ; ignore_errors=no ; }"
    found = exec_start(shown, {"DOCKER_OPTS": "--debug --label a=b", "ONE": "--mtu=9000"})
    assert found == ["/usr/sbin/dockerd", "-H", "fd://", "--debug", "--label", "a=b", "--mtu=9000"]
    assert exec_start(shown, {}) == ["/usr/sbin/dockerd", "-H", "fd://", ""]


# --- the engine's word ---


@pytest.mark.parametrize(
    ("config", "changes", "late"),
    [
        ({}, {}, []),
        (NVIDIA, {}, []),
        ({"runtimes": {"kata": {}}}, {}, ["runtimes"]),
        ({"live-restore": True}, {}, ["live-restore"]),
        ({"live-restore": False, "debug": False}, {}, []),
        ({"data-root": "/elsewhere"}, {}, ["data-root"]),
        ({"data-root": "/srv/nvme/docker/"}, {}, []),
        ({"labels": ["b=1", "a=1"]}, {"Labels": ["a=1", "b=1"]}, []),
        ({"registry-mirrors": ["http://m"]}, {"RegistryConfig": {"Mirrors": ["http://m/"]}}, []),
        ({"registry-mirrors": ["http://m"]}, {}, ["registry-mirrors"]),
        ({"insecure-registries": ["10.0.0.0/8", "r:5000"]},
         {"RegistryConfig": {"InsecureRegistryCIDRs": ["10.0.0.0/8"],
                             "IndexConfigs": {"r:5000": {"Secure": False}}}}, []),
        ({"insecure-registries": ["r:5000"]}, {"RegistryConfig": {"IndexConfigs": {"r:5000": {"Secure": True}}}},
         ["insecure-registries"]),
        ({"labels": None, "unknown": 1}, {}, []),
    ],
)  # fmt: skip
def test_not_in_effect(config: dict[str, Any], changes: dict[str, Any], late: list[str]) -> None:
    assert not_in_effect(config, info(**changes)) == late


def test_passwords_of_urls_are_hidden() -> None:
    text = '{"http-proxy": "http://user:secret@proxy:3128", "registry-mirrors": ["https://mirror/a@b"]}'
    hidden = hide_secrets(text)
    assert (
        "secret" not in hidden and "user" not in hidden and "@proxy:3128" in hidden and "https://mirror/a@b" in hidden
    )

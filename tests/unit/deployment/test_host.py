# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host must have: each finding names the value and the remedy, and nothing is written."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _host
from ansible_collections.trtllm.serving.plugins.module_utils._host import (
    check_home,
    check_platform,
    check_port,
    check_space,
    examine,
    find_python,
    judge_python,
    port_owner,
)


@pytest.fixture(name="listener")
def _listener() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        yield int(held.getsockname()[1])


# --- trtllm_home ---


@pytest.mark.parametrize(
    ("home", "named"),
    [
        ("relative/home", "'relative/home' is not a plain absolute path"),
        ("", "'' is not a plain absolute path"),
        ("/", "'/' is not a plain absolute path"),
        ("~/home", "not a plain absolute path"),
        ("/tmp/../home", "not a plain absolute path"),
        ("/tmp/./home", "not a plain absolute path"),
        ("/tmp/\udcff", "is not UTF-8"),
        ("/tmp//home", "not a plain absolute path"),
        ("/tmp/home/", "a last '/'"),
        ("/tmp/a:b", "colon"),
        ("/tmp/a\nb", "control character"),
        ("/tmp/$HOME", "environment variable"),
        ("/dev/null/x", "'/dev/null' is not a directory"),
        ("/tmp/" + "l" * 256, "too long"),
        ("/tmp/" + "/".join(["l" * 200] * 25), "too long"),
    ],
)
def test_homes_that_cannot_be(home: str, named: str) -> None:
    problems = check_home(home)
    assert len(problems) == 1 and named in problems[0], problems
    assert "\n" not in problems[0]


@pytest.mark.parametrize("name", ["a b", "ü", "a'b", 'a"b', "a\\b", "a$b", "a%b", "{{ a }}", "a;b", "-a", "l" * 150])
def test_homes_that_can(tmp_path: Path, name: str) -> None:
    assert check_home(str(tmp_path / name)) == []
    assert check_home(str(tmp_path / "not" / "there" / name)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert check_home(str(tmp_path / "link")) == [
        "trtllm_home '%s' is a symbolic link to '%s': name the directory itself"
        % (tmp_path / "link", tmp_path / "real")
    ]


def test_a_link_to_nothing_is_named_and_the_host_still_described(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    record, problems = examine(str(tmp_path / "link"), "127.0.0.1", {}, sys.executable, 0)
    assert any("is a symbolic link" in problem for problem in problems)
    assert record["free_mib"] == 0


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a directory" in check_home(str(tmp_path / "file"))[0]


def test_somebody_elses_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host.os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    (problem,) = check_home(str(tmp_path))
    assert "belongs to" in problem and "chown" in problem


def test_a_home_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system shows somebody else's home of mode 0750."""

    def refuse(path: Any, **unused: Any) -> Any:
        if str(path).startswith(str(tmp_path) + os.sep):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **unused)

    real = os.stat
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr(_host.os, "stat", refuse)
    monkeypatch.setattr(_host.os, "geteuid", lambda: uid + 1)
    _record, problems = examine(str(tmp_path), "127.0.0.1", {}, sys.executable, 0)
    assert len(problems) == 1 and "belongs to" in problems[0]


def test_a_home_that_everybody_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert check_home(str(tmp_path)) == ["trtllm_home '%s' can be written by everybody: chmod o-w it" % tmp_path]


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flags:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(_host.os, "statvfs", lambda path: Flags())
    assert "read-only file system" in check_home(str(tmp_path / "home"))[0]


def test_room(tmp_path: Path) -> None:
    assert check_space(str(tmp_path / "not" / "there"), 1) == []
    (problem,) = check_space(str(tmp_path), 10**9)
    assert "1000000000 MiB are needed" in problem and str(tmp_path) in problem


# --- ports ---


def test_a_busy_port_names_its_holder(listener: int) -> None:
    assert port_owner(listener) == os.getpid()
    (problem,) = check_port("grpc_port", "127.0.0.1", listener, None)
    assert "port %d on 127.0.0.1 is in use by pid %d (" % (listener, os.getpid()) in problem
    assert "set triton_serve_grpc_port to a free port" in problem
    assert check_port("grpc_port", "127.0.0.1", listener, os.getpid()) == [], "our own server may hold it"
    assert check_port("grpc_port", "127.0.0.1", listener, None, os.getpid()) == [], "or the one beside it"
    assert check_port("grpc_port", "127.0.0.1", listener, os.getpid() + 1) == [problem]


def test_a_free_port(listener: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    assert check_port("http_port", "127.0.0.1", port, None) == []
    assert check_port("http_port", "127.0.0.1", port, None) == [], "the check itself holds nothing"


def test_an_address_of_another_host() -> None:
    (problem,) = check_port("http_port", "192.0.2.1", 1234, None)
    assert "192.0.2.1" in problem and "triton_serve_address" in problem
    _record, problems = examine("/nowhere", "192.0.2.1", {"http_port": 1234, "grpc_port": 1235}, sys.executable, 0)
    assert problems.count(problem) == 1


def test_a_port_that_needs_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, where: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    class Socket(socket.socket):
        bind = refuse  # type: ignore[assignment]

    monkeypatch.setattr(_host.socket, "socket", Socket)
    (problem,) = check_port("http_port", "127.0.0.1", 80, None)
    assert "choose one above 1023" in problem


# --- Python and platform ---

GOOD = {
    "version": "3.11",
    "library": "/usr/lib/libpython3.11.so.1.0",
    "executable": "/usr/bin/python3.11",
    "venv": True,
}


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        (None, "does not run"),
        ({**GOOD, "version": "3.13"}, "is Python 3.13"),
        ({**GOOD, "version": "3.9"}, "is Python 3.9"),
        ({**GOOD, "venv": False}, "apt-get install python3.11-venv"),
        ({**GOOD, "library": None}, "apt-get install libpython3.11"),
    ],
)
def test_pythons_that_will_not_do(facts: dict[str, Any] | None, named: str) -> None:
    found, problem = judge_python("/x/python", facts)
    assert found is None and named in problem and "/x/python" in problem


def test_a_python_that_will_do() -> None:
    found, problem = judge_python("/x/python", GOOD)
    assert found is not None and problem == ""
    assert (found.executable, found.version, found.library_dir) == ("/usr/bin/python3.11", "3.11", "/usr/lib")
    by_loader, _why = judge_python("/x/python", {**GOOD, "library": "libpython3.11.so.1.0"})
    assert by_loader is not None and by_loader.library_dir == ""


def test_a_named_python_is_not_replaced_by_another(tmp_path: Path) -> None:
    found, why = find_python(str(tmp_path / "python"))
    assert found is None and "tensorrtllm_backend_build_python" in why[0]
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    found, why = find_python(str(broken))
    assert found is None and "does not run" in why[0]


@pytest.mark.parametrize(("machine", "libc"), [("ppc64le", ("glibc", "2.36")), ("x86_64", ("glibc", "2.28"))])
def test_platforms_without_a_wheel(machine: str, libc: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host.platform, "machine", lambda: machine)
    monkeypatch.setattr(_host.platform, "libc_ver", lambda: libc)
    (problem,) = check_platform()
    assert machine in problem or libc[1] in problem


def test_every_finding_is_told_at_once(tmp_path: Path, listener: int) -> None:
    ports = {"http_port": listener, "grpc_port": listener}
    record, problems = examine(str(tmp_path / "home"), "127.0.0.1", ports, str(tmp_path / "python"), 10**9)
    text = "\n".join(problems)
    assert "MiB are needed" in text and "tensorrtllm_backend_build_python" in text
    assert "triton_serve_http_port" in text and "triton_serve_grpc_port" in text
    assert record["problems"] == problems and record["current"] is None
    assert not (tmp_path / "home").exists()


def test_a_deployed_home_needs_little_room(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("generations/a")
    record, problems = examine(str(tmp_path), "127.0.0.1", {}, sys.executable, 10**9)
    assert not any("MiB are needed" in problem for problem in problems)
    assert record["current"] == "a"

# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules as Ansible runs them: results, check mode, and failures of one line."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._lock import (
    HostLock,
    LockError,
    RunLease,
    machine_id,
    pid_starttime,
)
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server
from ansible_collections.trtllm.serving.tests.unit.deployment.conftest import Home, Run

MODELS = ("tensorrt_llm", "preprocessing")


def config(name: str, batch: int = 4) -> str:
    return 'name: "%s"\nbackend: "python"\nmax_batch_size: %d\n' % (name, batch)


@pytest.fixture(name="args")
def _args(tmp_path: Path, engine: Path) -> dict[str, Any]:
    """Arguments of triton_generation for a host that has all parts."""
    for name in MODELS:
        (tmp_path / "models" / name / "1").mkdir(parents=True)
        (tmp_path / "models" / name / "1" / "model.py").write_text("# %s\n" % name)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "home").mkdir(exist_ok=True)
    return {
        "home": str(tmp_path / "home"),
        "release": "1.1.0",
        "configs": {name: config(name) for name in MODELS},
        "models": str(tmp_path / "models"),
        "engine": str(engine),
        "tokenizer": str(tmp_path / "tokenizer"),
        "launch": {"argv": ["tritonserver"]},
    }


def failure(answer: dict[str, Any]) -> str:
    assert answer.get("failed") is True, answer
    message = str(answer["msg"])
    assert "\n" not in message and "Traceback" not in message
    return message


# --- triton_generation ---


def test_a_generation_is_made_once(module: Run, args: dict[str, Any], tmp_path: Path) -> None:
    predicted = module("triton_generation", check=True, **args)
    assert predicted["changed"] and list((tmp_path / "home").iterdir()) == []
    made = module("triton_generation", **args)
    assert made["changed"] and made["id"] == predicted["id"] and not made["in_place"] and made["parsed"]
    path = Path(made["path"])
    assert (path / "model_repo/preprocessing/1/model.py").read_text() == "# preprocessing\n"
    (tmp_path / "home" / "current").symlink_to("generations/" + made["id"])
    again = module("triton_generation", **args)
    assert not again["changed"] and again["in_place"] and again["current"] == made["id"]


def test_a_hand_edit_is_shown_and_put_back(module: Run, args: dict[str, Any], tmp_path: Path) -> None:
    made = module("triton_generation", **args)
    (tmp_path / "home" / "current").symlink_to("generations/" + made["id"])
    edited = Path(made["path"]) / "model_repo/preprocessing/config.pbtxt"
    good = edited.read_text()
    edited.write_text(good + "# by hand\n")
    seen = module("triton_generation", check=True, **args)
    assert seen["changed"] and seen["repaired"] == ["model_repo/preprocessing/config.pbtxt"] and not seen["in_place"]
    assert [Path(each["before_header"]) for each in seen["diff"]] == [edited]
    assert seen["reason"] == "changed by hand: model_repo/preprocessing/config.pbtxt" and not seen["serving"]
    assert "by hand" in edited.read_text()
    assert module("triton_generation", **args)["repaired"] == seen["repaired"]
    assert edited.read_text() == good


def damage_rank(engine: Path) -> None:
    (engine / "rank1.engine").unlink()


def damage_marker(engine: Path) -> None:
    (engine / "manifest.json").unlink()


def damage_size(engine: Path) -> None:
    (engine / "rank0.engine").write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_rank, "rank1.engine is missing: build the engine again"),
        (damage_marker, "is incomplete: it has no valid manifest.json"),
        (damage_size, "rank0.engine has 1 bytes, not 10"),
    ],
)
def test_an_engine_that_cannot_be_served(
    module: Run, args: dict[str, Any], engine: Path, tmp_path: Path, damage: Any, named: str
) -> None:
    key = module("triton_generation", check=True, **args)
    damage(engine)
    assert named in failure(module("triton_generation", **args))
    assert named in failure(module("triton_generation", check=True, **args))
    assert list((tmp_path / "home").iterdir()) == []
    # One that this run is about to repair is known by its key.
    manifest_key = "0" * 64
    pending = module("triton_generation", check=True, engine_key=manifest_key, **args)
    assert pending["changed"] and pending["id"] and pending["id"] != key["id"]
    assert named in failure(module("triton_generation", engine_key=manifest_key, **args)), "only check mode looks away"


def test_an_engine_of_another_release(module: Run, args: dict[str, Any]) -> None:
    assert "was built by TensorRT-LLM 1.1.0, not 0.12.0" in failure(
        module("triton_generation", **{**args, "release": "0.12.0"})
    )


def test_a_batch_above_the_engines(module: Run, args: dict[str, Any]) -> None:
    configs = {name: config(name, 5) for name in MODELS}
    message = failure(module("triton_generation", **{**args, "configs": configs}))
    assert "max_batch_size 5 of the models is above the engine's 4" in message


def test_configs_are_parsed_before_anything_is_written(module: Run, args: dict[str, Any], tmp_path: Path) -> None:
    configs = {**args["configs"], "preprocessing": 'name: "preprocessing"\nno_such_field: 1\n'}
    assert "no_such_field" in failure(module("triton_generation", **{**args, "configs": configs}))
    assert list((tmp_path / "home").iterdir()) == []


def test_a_missing_tokenizer(module: Run, args: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    assert "triton_serve_tokenizer_dir" in failure(module("triton_generation", **args))


def test_check_mode_before_anything_is_there(module: Run, args: dict[str, Any], tmp_path: Path) -> None:
    answer = module("triton_generation", check=True, **{**args, "engine": str(tmp_path / "none")})
    assert answer["changed"] and answer["id"] is None and answer["path"] is None


def test_a_held_lock_names_its_holder(module: Run, args: dict[str, Any], tmp_path: Path) -> None:
    with HostLock(tmp_path / "home", "building engine 0123"):
        message = failure(module("triton_generation", **args))
    assert "pid %d (building engine 0123" % os.getpid() in message and "kill %d" % os.getpid() in message
    assert not (tmp_path / "home" / "generations").exists()


# --- triton_server ---


def test_a_server_is_started_once_and_stopped_once(module: Run, home: Home) -> None:
    one = home.generation("one")
    args = {"home": str(home.path), "generation": one, "stop_timeout": 5}
    assert module("triton_server", check=True, **args)["changed"] and home.started() == []
    answer = module("triton_server", **args)
    assert answer["changed"] and answer["generation"] == one
    assert answer["before"] == {"current": None, "previous": None, "running": None, "slot": "a"}
    assert not module("triton_server", **args)["changed"]
    assert module("triton_server", **args, restart=True)["changed"] and len(home.started()) == 4
    assert module("triton_server", home=str(home.path), state="stopped", check=True)["changed"]
    assert module("triton_server", home=str(home.path), state="stopped")["changed"]
    assert not module("triton_server", home=str(home.path), state="stopped")["changed"]
    assert [line["stage"] for line in home.ledger()] == ["switch", "switch", "stop"]


def test_back_to_what_served_after_a_failed_gate(module: Run, home: Home) -> None:
    one, two = home.generation("one"), home.generation("two")
    where = {"home": str(home.path), "stop_timeout": 5}
    module("triton_server", **where, generation=one)
    module("triton_server", **where, state="settled", generation=one)
    switched = module("triton_server", **where, generation=two)
    back = module("triton_server", **where, state="restored", before=switched["before"], reason="no answer")
    assert back["changed"] and back["generation"] == one
    assert home.links() == {"current": one, "previous": None}
    assert home.ledger()[-1]["outcome"] == "failed " + two and home.ledger()[-1]["reason"] == "no answer"


def test_a_gate_that_never_ended_is_seen_by_the_next_run(module: Run, home: Home) -> None:
    one, two, three = (home.generation(text) for text in ("one", "two", "three"))
    where = {"home": str(home.path), "stop_timeout": 5}
    module("triton_server", **where, generation=one)
    module("triton_server", **where, state="settled")
    module("triton_server", **where, generation=two)
    # The run was cut off here; the next one deploys another generation, and its gate fails.
    switched = module("triton_server", **where, generation=three)
    assert switched["before"]["current"] == one
    assert module("triton_server", **where, state="restored", before=switched["before"])["generation"] == one


def test_nothing_is_taken_back_when_no_switch_was_begun(module: Run, home: Home) -> None:
    one = home.generation("one")
    where = {"home": str(home.path), "stop_timeout": 5}
    module("triton_server", **where, generation=one)
    module("triton_server", **where, state="settled")
    failed = module("triton_server", **where, generation="previous")
    assert "has no previous generation: deploy first" in failure(failed)
    lines = len(home.ledger())
    back = module("triton_server", **where, state="restored", before=failed["before"])
    assert not back["changed"] and back["generation"] == one and len(home.ledger()) == lines
    assert Server(home.path).running() == one and len(home.started()) == 2


def test_settled_prunes(module: Run, home: Home) -> None:
    made = [home.generation(str(number)) for number in range(4)]
    home.link(current=made[0])
    answer = module("triton_server", home=str(home.path), state="settled", keep=1)
    assert answer["changed"] and sorted(answer["pruned"]) == sorted(made[1:])


def test_absent_predicts_what_it_does(module: Run, home: Home) -> None:
    module("triton_server", home=str(home.path), generation=home.generation("one"), stop_timeout=5)
    assert module("triton_server", home=str(home.path), state="absent", check=True)["changed"]
    assert module("triton_server", home=str(home.path), state="absent")["changed"]
    for check in (True, False):
        assert not module("triton_server", home=str(home.path), state="absent", check=check)["changed"]
    assert sorted(os.listdir(home.path)) == [".lock", "started"]


def test_stopping_where_nothing_ever_was(module: Run, tmp_path: Path) -> None:
    for state in ("stopped", "absent"):
        assert not module("triton_server", home=str(tmp_path / "none"), state=state)["changed"]
    assert not (tmp_path / "none").exists()


# --- host_preflight ---


def preflight(module: Run, home: Path, **more: Any) -> dict[str, Any]:
    return module("host_preflight", home=str(home), python=sys.executable, **{"ports": {}, **more})


def run_of(pid: int) -> dict[str, Any]:
    started = pid_starttime(pid)
    return {
        "run_id": "%s:%d:%s" % (machine_id(), pid, started), "machine_id": machine_id(), "pid": pid,
        "starttime": started, "who": "tester",
    }  # fmt: skip


def test_a_second_run_does_not_get_the_host_and_the_first_goes_on(module: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    mine, other = run_of(os.getpid()), run_of(os.getppid())
    assert not preflight(module, home, run=mine, check=True).get("failed") and not home.exists()
    assert not preflight(module, home, run=mine).get("failed")
    for check in (True, False):
        lease = preflight(module, home, run=other, check=check)["host"]["lease"]
        assert lease["foreign"] and not lease["held"] and lease["message"].startswith("pid %d (tester" % os.getpid())
    assert preflight(module, home, run=mine)["host"]["lease"]["held"]
    taken = preflight(module, home, run=other, take_over=True)
    assert taken["host"]["lease"]["held"] and "taken over from another run that seems to live" in str(taken["warnings"])
    assert preflight(module, home, run=mine)["host"]["lease"]["foreign"]


def test_preflight_tells_how_far_a_rollout_came(module: Run, tmp_path: Path) -> None:
    run = tmp_path / "home" / "run"
    run.mkdir(parents=True)
    nothing = preflight(module, run.parent, check=True)["host"]
    for name in ("unfinished", "staged"):
        assert nothing[name] is None
    assert (nothing["slot"], nothing["ready"], nothing["generations"]) == ("a", False, [])
    begun = {"run": "r", "target": "0123", "since": "2026-01-01T00:00:00Z"}
    (run / "rollout.json").write_text(json.dumps(begun))
    (run / "staged.json").write_text(json.dumps({"id": "0123"}))
    found = preflight(module, run.parent, check=True)["host"]
    assert found["unfinished"] == begun and found["staged"] == {"id": "0123"}


def test_findings_are_one_line(module: Run, tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        ports = {"http_port": held.getsockname()[1]}
        answer = preflight(module, tmp_path / "home", ports=ports, required_space_mib=10**9, run=run_of(os.getpid()))
    message = failure(answer)
    assert "MiB are needed" in message and "triton_serve_http_port" in message
    assert len(answer["host"]["problems"]) == 2
    assert not (tmp_path / "home").exists(), "nothing is taken on a host that cannot serve"


def test_the_home_is_judged_as_it_is_written(module: Run) -> None:
    assert "'~/x' is not a plain absolute path" in failure(preflight(module, Path("~/x")))


# --- reference_backend ---

REQUIREMENTS = "numpy==1.26.4 --hash=sha256:00\n"


def backend(module: Run, home: Path, **more: Any) -> dict[str, Any]:
    given = {"release": "1.1.0", "requirements": REQUIREMENTS, "digest": "d", "tables": "{}", "python": sys.executable}
    return module("reference_backend", home=str(home), src="/src", **{**given, **more})


def test_check_mode_predicts_an_installation(module: Run, tmp_path: Path) -> None:
    answer = backend(module, tmp_path / "home", check=True)
    assert answer["changed"] and not answer["python_ready"] and answer["digest"].startswith("reference@sha256:")
    assert answer["convert_checkpoint"][1].endswith("examples/models/core/llama/convert_checkpoint.py")
    assert not (tmp_path / "home").exists()


def test_the_tree_is_asked_for_only_when_it_is_missing(module: Run, tmp_path: Path) -> None:
    assert backend(module, tmp_path / "home")["need_archive"] is True
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"release": "9.9.9"}, "release '9.9.9' is not supported"),
        ({"release": "v1.1.0"}, "is a tag"),
        ({"requirements": "numpy\n"}, "'numpy' is not pinned with a hash"),
        ({"requirements": "numpy==2.0.0 --hash=sha256:00\n"}, "numpy 2.0.0 cannot be used"),
        ({"python": "/nowhere/python3"}, "/nowhere/python3 is not there"),
    ],
)
def test_refusals_name_the_value(module: Run, tmp_path: Path, more: dict[str, str], named: str) -> None:
    assert named in failure(backend(module, tmp_path / "home", **more))
    assert not (tmp_path / "home").exists()


# --- convert_checkpoint and the lock ---


def test_weights_that_are_yet_to_come(module: Run, tmp_path: Path) -> None:
    args = {"home": str(tmp_path), "release": "1.1.0", "executable": ["/bin/false"], "model_dir": ""}
    answer = module("convert_checkpoint", check=True, **args)
    assert answer["changed"] and answer["key"] is None and answer["path"] is None
    assert "model_dir is empty" in failure(module("convert_checkpoint", **args))


def test_a_full_disk_is_told_with_its_place_and_can_still_be_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    run = run_of(os.getpid())
    lease = {"controller_%s" % name: run[name] for name in ("machine_id", "pid")}
    with pytest.raises(LockError, match="no space left on the file system: free some"):
        RunLease(tmp_path).acquire(run["run_id"], **lease, controller_pid_starttime=run["starttime"], who="tester")
    with HostLock(tmp_path, "removing") as lock:
        assert lock.held
        with pytest.raises(LockError, match="a process that did not write its name"):
            HostLock(tmp_path, "another").acquire()

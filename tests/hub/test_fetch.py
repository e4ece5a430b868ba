# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What mixtral_weights brings from a hub, and how it goes on after an interruption; with the real client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._weights import identify
from ansible_collections.trtllm.serving.tests.hub.conftest import FIRST, NAME, SECOND, Site, Task, tree, wait_for
from ansible_collections.trtllm.serving.tests.hub.server import Fault, Hub

SHARDS = [FIRST, SECOND]


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_only_what_is_needed_and_only_once(site: Site) -> None:
    before = tree(site.home)
    predicted = site.run(check=True)
    assert predicted["changed"] and predicted["identity"] is None and predicted["path"] == str(site.final)
    assert site.commit in predicted["diff"]["after"]
    assert site.hub.requests == [] and tree(site.home) == before

    first = site.whole(site.run())
    assert first["changed"] and first["identity"]["name"] == NAME and first["identity"]["revision"] == site.commit
    assert sorted(site.gets()) == [(FIRST, ""), (SECOND, "")]
    assert len([path for path, _range in site.gets("hub") if "/resolve/" in path]) == 2
    # The identity is that of the same files in any directory.
    assert identify(site.model, site.tmp, name=NAME, revision=site.commit)["files"].items() >= (
        first["identity"]["files"].items()
    )
    log = site.log()
    assert "6 of 6 files" in log and f"{FIRST}: 2.9 MiB, its hash is right" in log and NAME in log

    site.hub.requests.clear()
    before = tree(site.home)
    for how in ({}, {"check": True}, {"verify": "full"}, {"endpoint": "http://127.0.0.1:1", "python": "/none"}):
        found = site.run(**how)
        assert not found["changed"] and found["identity"] == first["identity"], how
    assert site.hub.requests == [] and tree(site.home) == before


@pytest.mark.parametrize("after", [2_500_000, 2_500_001])
def test_cut_connection_goes_on_where_it_was(site: Site, after: int) -> None:
    site.hub.faults.append(Fault("GET /lfs/", cut=after))
    found = site.whole(site.run(workers=1))
    assert found["changed"]
    again = [asked for name, asked in site.gets() if name == FIRST]
    assert len(again) == 2 and again[0] == "" and int(again[1][len("bytes=") : -1]) >= 2 * 1024 * 1024


def test_server_without_ranges(site: Site) -> None:
    site.hub.faults += [Fault("GET /lfs/", cut=2_500_000), Fault("GET /lfs/", ignore_range=True)]
    site.whole(site.run(workers=1))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, None])
def test_interrupted_run_leaves_what_has_come(site: Site, how: int | None) -> None:
    site.hub.faults.append(Fault("GET /lfs/", stall=(2_500_000, 60)))
    task = site.start(workers=1, timeout=60)
    part = site.download / ".hub" / f"{FIRST}.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 2 * 1024 * 1024)
    fetching = children(task.process.pid)
    assert len(fetching) == 1
    if how is None:
        # The controller is gone: nobody reads the result.
        assert task.process.stdout is not None
        task.process.stdout.close()
        task.process.wait(20)
        task.process.stdout = None
    else:
        task.stop(how)
        task.process.wait(20)
    wait_for(lambda: not alive(fetching[0]), 5)
    if how == signal.SIGTERM:
        found = task.result()
        assert found["failed"] and "SIGTERM" in found["msg"] and "run again to go on" in found["msg"], found
    assert not site.final.exists() and (site.download / "config.json").exists()
    left = sorted(path.name for path in (site.download / ".hub").iterdir())
    assert how == signal.SIGKILL or left == [part.name]
    site.hub.requests.clear()
    site.hub.resume.set()
    site.whole(site.run())
    assert sorted(name for name, _range in site.gets()) == [FIRST, SECOND]
    assert dict(site.gets())[FIRST] == "bytes=2097152-"
    # What was verified before came no second time.
    assert [path for path, _range in site.gets("hub") if path.endswith("config.json") and "resolve" in path] == [
        path for path, _range in site.gets("hub") if path.endswith("tokenizer_config.json")
    ]


def test_time_that_runs_out_leaves_what_has_come(site: Site) -> None:
    site.hub.faults.append(Fault("GET /lfs/", times=-1, stall=(2_500_000, 60)))
    args = site.args(workers=1, timeout=60)
    args["timeout"] = 4
    site.started.append(Task(args))
    found = site.started[-1].result()
    assert found["failed"] and "did not end within" in found["msg"] and "run again to go on" in found["msg"], found
    assert (site.download / "config.json").exists()
    site.hub.faults.clear()
    site.hub.resume.set()
    site.whole(site.run())


def test_wrong_content_is_thrown_away_and_fetched_once_more(site: Site) -> None:
    site.hub.faults.append(Fault("GET /lfs/", corrupt=True))
    site.whole(site.run(workers=1))
    assert [name for name, _range in site.gets()] == [FIRST, FIRST, SECOND]
    assert "thrown away, fetched once more" in site.log()


@pytest.mark.parametrize("path", ["GET /lfs/", "GET /api/resolve-cache/.*/tokenizer.json"])
def test_wrong_content_twice_is_a_failure(site: Site, path: str) -> None:
    site.hub.faults.append(Fault(path, times=-1, corrupt=True))
    found = site.run(workers=1)
    name = FIRST if "lfs" in path else "tokenizer.json"
    assert found["failed"] and found["kind"] == "hash" and f"{name} has hash" in found["msg"], found
    assert "serves damaged files" in found["msg"] and "\n" not in found["msg"]
    assert not site.final.exists() and not (site.download / name).exists()
    assert not (site.download / ".hub" / f"{name}.part").exists()


def test_damaged_weights_cost_only_what_is_damaged(site: Site) -> None:
    first = site.whole(site.run())
    os.truncate(site.final / SECOND, 1000)
    site.hub.requests.clear()
    predicted = site.run(check=True)
    assert predicted["changed"] and "1000 bytes" in predicted["reason"] and site.hub.requests == []
    found = site.whole(site.run())
    assert found["changed"] and found["identity"] == first["identity"]
    assert [name for name, _range in site.gets()] == [SECOND]
    assert all(path.stat().st_nlink == 1 for path in site.final.iterdir())


def test_damage_that_does_not_show_is_found_on_the_way(site: Site) -> None:
    site.whole(site.run())
    status = (site.final / FIRST).stat()
    with (site.final / FIRST).open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"damaged")
    os.utime(site.final / FIRST, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not site.run()["changed"]
    site.hub.requests.clear()
    found = site.whole(site.run(verify="full"))
    assert found["changed"] and f"{FIRST} has other content" in found["reason"]
    assert [name for name, _range in site.gets()] == [FIRST]


def test_other_choice_of_files(site: Site) -> None:
    site.whole(site.run())
    site.hub.requests.clear()
    patterns = ["config.json", "tokenizer*", "*.safetensors", "*.index.json", "README.md"]
    found = site.run(allow_patterns=patterns)
    assert found["changed"] and (site.final / "README.md").exists() and "README.md" in found["diff"]["after"]
    assert site.gets() == []
    assert not site.run(allow_patterns=patterns)["changed"]


def test_directory_of_somebody_else_is_used_and_never_replaced(site: Site) -> None:
    shutil.copytree(site.model, site.final)
    found = site.run()
    assert not found["changed"] and site.hub.requests == []
    (site.final / FIRST).unlink()
    found = site.run()
    assert found["failed"] and "was not made by this collection" in found["msg"] and site.hub.requests == []


def test_two_runs_at_once(site: Site) -> None:
    site.hub.faults.append(Fault("GET /lfs/", stall=(100, 60)))
    first = site.start(timeout=60)
    wait_for(site.hub.stalled.is_set)
    second = site.run()
    assert second["failed"] and f"fetching {NAME}" in second["msg"] and str(first.process.pid) in second["msg"]
    site.hub.resume.set()
    site.whole(first.result())


def test_mirror_that_lists_no_hashes(site: Site) -> None:
    site.hub.blobs = False
    found = site.whole(site.run())
    assert found["changed"]
    site.hub.faults.append(Fault("GET /lfs/", times=-1, corrupt=True))
    shutil.rmtree(site.final)
    assert site.run()["kind"] == "hash"


def test_no_room_is_known_before_the_first_byte(site: Site) -> None:
    found = site.run(space={"reserve_gib": 0, "checkpoint": 1e9, "engine": 0.5})
    assert found["failed"] and "checkpoint" in found["msg"] and "only" in found["msg"] and "free" in found["msg"]
    assert {path.rpartition("/")[2] for path, _range in site.gets("hub")} == {site.commit, "config.json"}
    assert site.gets() == []
    assert list((site.home / "weights").iterdir()) == []
    for space in ({"reserve_gib": 1e9}, {"image_gib": 1e9, "image_path": str(site.tmp), "reserve_gib": 0}):
        assert "needed below" in site.run(space=space)["msg"]
    site.whole(site.run(space={"reserve_gib": 0, "checkpoint": 2, "engine": 0}))


def test_full_disk_keeps_what_has_come(site: Site) -> None:
    args = site.args(workers=1)
    code = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2500000, 2500000));"
    code += (
        "runpy.run_module('ansible_collections.trtllm.serving.plugins.modules.mixtral_weights', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": args}),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "no space left while fetching" in done.stdout, done.stdout + done.stderr
    assert (site.download / ".hub" / f"{FIRST}.part").stat().st_size >= 2_000_000
    site.hub.requests.clear()
    site.whole(site.run())
    assert dict(site.gets())[FIRST].startswith("bytes=2")


def test_repository_without_safetensors(site: Site, hub: Hub, tmp_path: Path) -> None:
    for name in ("model.safetensors.index.json", *SHARDS):
        (site.model / name).unlink()
    shutil.rmtree(site.model / "onnx")
    site.repository = hub.add(NAME, site.model)
    found = site.run()
    assert found["failed"] and "no *.safetensors" in found["msg"] and "consolidated.00.pt" in found["msg"]
    assert site.gets() == [] and list((site.home / "weights").iterdir()) == []


def test_another_model_is_noticed_before_its_weights_come(site: Site, hub: Hub) -> None:
    (site.model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 64}')
    site.repository = hub.add(NAME, site.model)
    found = site.run()
    assert found["failed"] and "LlamaForCausalLM" in found["msg"] and "this is no Mixtral" in found["msg"]
    assert site.gets() == [] and list((site.home / "weights").iterdir()) == []


def test_storage_by_a_redirect_or_by_its_address(site: Site) -> None:
    site.hub.xet = False
    site.whole(site.run())
    assert [path for path, _range in site.gets("hub") if "/resolve/" in path] == []
    assert sorted(name for name, _range in site.gets()) == SHARDS


def test_xet_where_the_hub_has_none(site: Site) -> None:
    site.hub.xet = False
    site.whole(site.run(xet=True))
    assert sorted(name for name, _range in site.gets()) == SHARDS


@pytest.fixture(name="common")
def _common() -> Iterator[tuple[Path, str]]:
    """A directory and an interpreter in it that everybody can read, with the client; pytest keeps its own to itself."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        version = ".".join(str(part) for part in sys.version_info[:2])
        python = Path(f"/usr/bin/python{version}")
        if not python.exists():
            pytest.skip(f"no {python} for an environment that everybody can read")
        subprocess.run([str(python), "-m", "venv", "--without-pip", str(place / "venv")], check=True)
        client = subprocess.run(
            [sys.executable, "-c", "import huggingface_hub; print(huggingface_hub.__file__)"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        packages = place / "venv" / "lib" / f"python{version}" / "site-packages"
        (packages / "client.pth").write_text(str(Path(client.stdout.strip()).parents[1]) + "\n")
        yield place, str(place / "venv" / "bin" / "python")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_fetches_as_the_owner_of_the_home(hub: Hub, common: tuple[Path, str]) -> None:
    site = Site(common[0], hub)
    os.chown(site.home, 65534, 65534)
    site.hub.faults.append(Fault("GET /lfs/", stall=(1000, 60)))
    task = site.start(timeout=60, python=common[1])
    try:
        wait_for(site.hub.stalled.is_set)
        (fetching,) = children(task.process.pid)
        status = Path(f"/proc/{fetching}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status and "Groups:\t \n" in status
    finally:
        task.stop(signal.SIGKILL)
        task.process.communicate()
    wait_for(lambda: not alive(fetching), 5)
    site.hub.resume.set()
    site.whole(site.run(python=common[1]))
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (site.final, *site.final.rglob("*"))}
    assert owners == {(65534, 65534)}

# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The inventories that come with the collection can be used as they are, and what they ask for fits their GPUs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_memory import MIXTRAL_8X7B, bytes_each
from ansible_collections.trtllm.serving.tests.unit.preset import _inventory

INVENTORIES = ("inventory/tutorial", "inventory/example", "inventory/fleet")
EXAMPLE = "inventory/example"
FLEET = "inventory/fleet"
# Variables of the playbooks and of Ansible that are no role's.
SHARED = {"trtllm_home", "trtllm_release", "trtllm_flavour", "trtllm_user"}
PLAYBOOKS = "".join(path.read_text("utf-8") for path in sorted((_inventory.ROOT / "playbooks").glob("*.yml")))

# Memory of one GPU in MiB, as nvidia-smi says, and their number.
GPUS = {
    "gpu4-1": (40960, 8), "h100-1": (81559, 8), "l40s-1": (46068, 1),
    "chat-1": (81559, 8), "batch-1": (46068, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return _inventory.values(tmp_path_factory.mktemp("values"), EXAMPLE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return _inventory.values(tmp_path_factory.mktemp("values"), FLEET)


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_site_is_sound_with_it(tmp_path_factory: pytest.TempPathFactory, inventory: str) -> None:
    done = _inventory.playbook(tmp_path_factory.mktemp("home"), inventory, "site.yml", "--syntax-check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_validate_passes_and_contacts_no_host(tmp_path_factory: pytest.TempPathFactory, inventory: str) -> None:
    done = _inventory.playbook(tmp_path_factory.mktemp("home"), inventory, "playbooks/validate.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"(?m)^\S+\s+: ok=(\d+)\s+changed=0\s+unreachable=0\s+failed=0", done.stdout)
    assert counts and all(int(count) for count in counts), done.stdout


REFUSED = (
    (
        {"mixtral_engine_convert_options": {"weight_only_precision": "int3"}},
        "'weight_only_precision': 'int3' is not allowed, give one of int8, int4",
    ),
    ({"docker_nvidia_data_root": "nvme"}, "docker_nvidia_data_root 'nvme' is not an absolute path: write it from /"),
    ({"docker_nvidia_mirror": "mirror:80"}, "docker_nvidia_mirror 'mirror:80' is not a URL: begin it with http://"),
    ({"docker_nvidia_docker_source": "none"}, "needs Docker Engine, and docker_nvidia_docker_source is none"),
    (
        {"docker_nvidia_docker_source": "existing", "docker_nvidia_engine_version": "28.2.2"},
        "docker_nvidia_engine_version '28.2.2' pins a package, and with docker_nvidia_docker_source existing none is",
    ),
)


@pytest.mark.parametrize(("variables", "said"), REFUSED)
def test_validate_refuses_what_cannot_be(
    tmp_path_factory: pytest.TempPathFactory, variables: dict[str, Any], said: str
) -> None:
    """The test above would also pass if nothing were judged."""
    told = ("-e", json.dumps(variables), "--limit", "gpu4-1")
    done = _inventory.playbook(tmp_path_factory.mktemp("home"), EXAMPLE, "playbooks/validate.yml", *told)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_every_variable_exists(inventory: str) -> None:
    known = SHARED.union(*(_inventory.defaults(role) for role in (*_inventory.ROLES, *_inventory.FLEET_ROLES)))
    for path in sorted((_inventory.ROOT / inventory).rglob("*.yml")):
        loaded = yaml.safe_load(path.read_text("utf-8"))
        if path.parent.name != "group_vars":
            continue
        for name in loaded:
            fine = name in known or name.startswith("ansible_") or re.search(r"\b%s\b" % name, PLAYBOOKS)
            assert fine, "%s: nothing reads %s" % (path.name, name)


@pytest.mark.parametrize("host", sorted(GPUS))
def test_the_model_fits_the_gpus(
    example: dict[str, dict[str, Any]], fleet: dict[str, dict[str, Any]], host: str
) -> None:
    """Weights, and the KV cache of a full batch of requests of the greatest length."""
    values = {**example, **fleet}[host]
    memory, count = GPUS[host]
    each = bytes_each(values["mixtral_engine_dtype"], values["mixtral_engine_convert_options"])
    tokens = values["mixtral_engine_max_batch_size"] * values["mixtral_engine_max_seq_len"]
    tp, pp = values["mixtral_engine_tp_size"], values["mixtral_engine_pp_size"]
    assert tp * pp == count
    assert MIXTRAL_8X7B.gpu_mib(each, tp, pp, tokens) < memory
    assert values["mixtral_engine_max_input_len"] < values["mixtral_engine_max_seq_len"]


def test_each_group_of_the_example_has_its_file_and_its_page() -> None:
    hosts = yaml.safe_load((_inventory.ROOT / EXAMPLE / "hosts.yml").read_text("utf-8"))
    groups = set(hosts["trtllm"]["children"])
    files = {path.stem for path in (_inventory.ROOT / EXAMPLE / "group_vars").glob("*.yml")}
    assert files == groups | {"trtllm"}
    pages = {path.stem.replace("-", "_") for path in (_inventory.ROOT / "docs" / "hosts").glob("*.md")}
    assert pages == groups


def test_balancers_and_monitoring_of_the_fleet_go_together(tmp_path: Path) -> None:
    """Every pool gets a frontend of its own, and every server's metrics are where Prometheus reaches them."""
    told = ("-e", json.dumps({"preset_folder": str(tmp_path)}))
    done = _inventory.playbook(tmp_path, FLEET, "tests/unit/preset/fleet.yml", *told)
    assert done.returncode == 0, done.stdout + done.stderr
    pools = {pool["name"]: pool for pool in json.loads((tmp_path / "lb-1.json").read_text("utf-8"))}
    assert {name: (pool["port"], len(pool["servers"])) for name, pool in pools.items()} == {
        "chat": (8080, 4), "batch": (8081, 2),
    }  # fmt: skip
    files = json.loads((tmp_path / "watch-1.json").read_text("utf-8"))
    assert {name: len(entries) for name, entries in files.items()} == {"balancers": 2, "pool-batch": 2, "pool-chat": 4}


@pytest.mark.parametrize("name", ["balancer", "monitoring", "redeploy", "rollback"])
def test_playbooks_of_a_fleet_are_sound(tmp_path: Path, name: str) -> None:
    done = _inventory.playbook(tmp_path, FLEET, "playbooks/%s.yml" % name, "--syntax-check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_pools_of_the_fleet_leave_room(fleet: dict[str, dict[str, Any]]) -> None:
    """The budgets of each pool can be kept: something may be taken out, and what must serve then still does."""
    for pool in ("chat", "batch"):
        given = yaml.safe_load((_inventory.ROOT / FLEET / "group_vars" / (pool + ".yml")).read_text("utf-8"))
        hosts = [name for name in fleet if name.startswith(pool)]
        assert given["triton_pool"] == pool
        assert len(hosts) - given["triton_pool_max_unavailable"] >= given["triton_pool_min_available"] > 0
        assert {fleet[host]["triton_serve_drain_timeout"] for host in hosts} == {300}

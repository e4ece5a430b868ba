# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role triton_monitoring writes, before Prometheus' own promtool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DASHBOARD = ROOT / "roles" / "triton_monitoring" / "files" / "trtllm-dashboard.json"
# What of the names of metrics is known: Triton's own page, the release's families, HAProxy's exporter, Prometheus.
PAGE = ROOT / "tests" / "unit" / "gate" / "fixtures" / "triton_2.51_metrics.txt"
FURTHER = {
    "up", "nv_inference_request_duration_us", "nv_inference_queue_duration_us",
    "nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_power_usage",
    "haproxy_backend_active_servers", "haproxy_backend_current_queue", "haproxy_backend_http_responses_total",
    "haproxy_server_current_sessions", "haproxy_server_status",
    "trtllm:failures:rate5m", "trtllm:requests:rate5m",
}  # fmt: skip


def promtool(*argv: str, cwd: Path | None = None) -> None:
    found = shutil.which("promtool")
    assert found, "promtool is not here: apt-get install prometheus"
    done = subprocess.run([found, *argv], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def play(folder: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    told = {"triton_monitoring_directory": str(folder / "prometheus"), **more}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "TRTLLM_"))}
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(HERE / "inventory.yml"), str(HERE / "role.yml"),
         "-e", json.dumps(told), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**kept, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "ansible")},
    )  # fmt: skip


def changes(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"(?m)^localhost\s+: ok=\d+\s+changed=(\d+)", done.stdout)
    assert match, done.stdout
    return int(match[1])


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "grafana").mkdir()
    assert changes(play(folder, triton_monitoring_grafana_directory=str(folder / "grafana"))) > 0
    return folder


def test_targets_of_each_pool(made: Path) -> None:
    targets = made / "prometheus" / "targets"
    assert sorted(path.name for path in targets.iterdir()) == ["balancers.json", "pool-chat.json", "pool-embed.json"]
    chat = json.loads((targets / "pool-chat.json").read_text())
    assert [entry["targets"] for entry in chat] == [["192.0.2.1:8002"], ["192.0.2.2:8002"]]
    assert chat[0]["labels"] == {"pool": "chat", "host": "h1", "generation": "none", "release": "1.1.0"}
    embed = json.loads((targets / "pool-embed.json").read_text())
    assert embed[0]["targets"] == ["[2001:db8::1]:9002"] and embed[0]["labels"]["release"] == "0.12.0"
    balancers = json.loads((targets / "balancers.json").read_text())
    assert [(entry["targets"], entry["labels"]) for entry in balancers] == [
        (["192.0.2.8:8405"], {"balancer": "lb1"}),
        (["192.0.2.9:9405"], {"balancer": "lb2"}),
    ]


def test_prometheus_takes_all_of_it(made: Path) -> None:
    """As a whole: its configuration with our scrape jobs, files of targets and rules."""
    folder = made / "prometheus"
    promtool("check", "rules", str(folder / "trtllm-rules.yml"))
    scrape = yaml.safe_load((folder / "trtllm-scrape.yml").read_text())
    config = {**scrape, "rule_files": [str(folder / "trtllm-rules.yml")]}
    (made / "prometheus.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", str(made / "prometheus.yml"))
    # check config reads the files of targets as well: one that is broken is seen.
    (folder / "targets" / "pool-broken.json").write_text('[{"targets": [1]}]')
    try:
        with pytest.raises(AssertionError):
            promtool("check", "config", str(made / "prometheus.yml"))
    finally:
        (folder / "targets" / "pool-broken.json").unlink()


def test_alerts_fire_when_they_should_and_only_then(made: Path) -> None:
    shutil.copy(HERE / "rules_test.yml", made / "prometheus" / "rules_test.yml")
    promtool("test", "rules", "rules_test.yml", cwd=made / "prometheus")


def rules(made: Path) -> list[dict[str, Any]]:
    loaded = yaml.safe_load((made / "prometheus" / "trtllm-rules.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def test_each_alert_is_tested(made: Path) -> None:
    alerts = {rule["alert"] for rule in rules(made) if "alert" in rule}
    tests = yaml.safe_load((HERE / "rules_test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test.get("alert_rule_test", []) if each["exp_alerts"]}
    assert alerts == fired


def test_thresholds_are_the_roles_variables(tmp_path: Path) -> None:
    told = {"triton_monitoring_alert_error_ratio": 0.25, "triton_monitoring_alert_rollout": "9h"}
    assert changes(play(tmp_path, **told)) > 0
    found = {rule.get("alert"): rule for rule in rules(tmp_path)}
    assert found["TrtllmRequestsFail"]["expr"].endswith("> 0.25")
    assert found["TrtllmServerDrained"]["for"] == "9h"


# --- dashboard --------------------------------------------------------------------------------------------------


def expressions() -> dict[str, str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        "%s %s" % (panel["title"], target["refId"]): target["expr"]
        for panel in panels
        for target in panel.get("targets", [])
    }


def test_dashboard_has_what_prometheus_can_work_out(tmp_path: Path) -> None:
    values = {"$__rate_interval": "5m", "$pool": ".*", "$host": ".*", "$generation": ".*", "$model": "ensemble"}
    recorded = []
    for number, expr in enumerate(expressions().values()):
        for name, value in values.items():
            expr = expr.replace(name, value)
        assert "$" not in expr, expr
        recorded.append({"record": "panel:%d" % number, "expr": expr})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_dashboard_is_by_pool_host_and_generation() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert [each["name"] for each in dashboard["templating"]["list"]] == [
        "datasource",
        "pool",
        "host",
        "generation",
        "model",
    ]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_only_metrics_that_exist_are_asked_for(made: Path) -> None:
    known = FURTHER | set(re.findall(r"(?m)^(nv_\w+)\{", PAGE.read_text()))
    asked = [*expressions().values(), *(rule["expr"] for rule in rules(made))]
    names = {name for expr in asked for name in re.findall(r"\b(?:nv|haproxy|trtllm)_\w+|\btrtllm:[\w:]+|\bup\b", expr)}
    assert names and names <= known, names - known


# --- as a role --------------------------------------------------------------------------------------------------


def test_second_run_changes_nothing(made: Path) -> None:
    assert changes(play(made, triton_monitoring_grafana_directory=str(made / "grafana"))) == 0
    provider = yaml.safe_load((made / "grafana" / "trtllm.yml").read_text())["providers"][0]
    assert json.loads(Path(provider["options"]["path"]).read_text())["uid"] == "trtllm-serving"


def test_check_mode_where_nothing_is_there(tmp_path: Path) -> None:
    assert changes(play(tmp_path, "--check", "--diff")) > 0
    assert not (tmp_path / "prometheus").exists()


def test_pool_that_is_gone(tmp_path: Path) -> None:
    changes(play(tmp_path))
    changes(play(tmp_path, triton_pool="one"))
    assert sorted(path.name for path in (tmp_path / "prometheus" / "targets").iterdir()) == [
        "balancers.json", "pool-one.json",
    ]  # fmt: skip


def test_address_that_nobody_reaches(tmp_path: Path) -> None:
    done = play(tmp_path, triton_serve_address="127.0.0.1")
    assert done.returncode != 0
    assert (
        "host h1 has its metrics on 127.0.0.1 (triton_serve_address), where no Prometheus reaches"
        in done.stdout + done.stderr
    )
    assert not (tmp_path / "prometheus").exists()


def test_rules_that_promtool_refuses_are_not_put_in_place(made: Path) -> None:
    rules_file = made / "prometheus" / "trtllm-rules.yml"
    before = rules_file.read_text()
    done = play(made, triton_monitoring_alert_rollout="soon")
    assert done.returncode != 0 and rules_file.read_text() == before

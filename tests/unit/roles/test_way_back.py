# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host is left with after a way back, in the role's own expressions, also when that has failed itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "triton_serve"
BEFORE = {"before": {"current": "old"}, "generation": "new"}
CASES = {
    # Its module failed, and named no generation.
    "failed": ({"failed": True, "changed": False, "msg": "busy"}, {}, "started new, which does not answer"),
    "nothing before": ({"generation": None, "changed": True}, {}, "no server"),
    "untouched": ({"generation": "old", "changed": False}, {}, "serves old"),
    "answers": ({"generation": "old", "changed": True}, {"text": "hello"}, "serves old"),
    "silent": ({"generation": "old", "changed": True}, {}, "started old, which does not answer"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_report_says_of_the_host(case: str, tmp_path: Path) -> None:
    restore, probe, said = CASES[case]
    task = {
        "name": "As it stands",
        "ansible.builtin.assert": {"that": "__triton_serve_stands == said", "fail_msg": "{{ __triton_serve_stands }}"},
    }
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(ROLE / "vars" / "main.yml")],
        "vars": {
            "triton_serve_load_balancer": "none", "triton_serve_haproxy": [], "triton_serve_switch": BEFORE,
            "triton_serve_restore": restore, "triton_serve_probe": probe, "said": said,
        },
        "tasks": [task],
    }  # fmt: skip
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", str(tmp_path / "play.yml")],
        cwd=ROLE.parents[1], capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

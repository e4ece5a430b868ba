# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make demo` end to end, with tiny weights. The tests are one story: each goes on where the one before has ended."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from ansible_collections.trtllm.serving.tests.demo._site import ROOT, Site, free_ports, wait_until

QUESTION = "What is machine learning?"


@pytest.fixture(name="site", scope="module")
def _site() -> Iterator[Site]:
    home = ROOT / ".work" / "test" / "demo"
    site = Site(home, *free_ports(3))
    if home.exists():
        site.make("down")
        shutil.rmtree(home)
    yield site
    site.make("down")


def test_check_mode_on_a_new_host_changes_nothing(site: Site) -> None:
    site.home.parent.mkdir(parents=True, exist_ok=True)
    recap = site.make("check").succeeded()
    assert recap.counts["changed"] >= 5, recap.output
    assert [name for name in os.listdir(site.home.parent) if site.home.name in name] == []
    assert site.open_ports() == []


def test_first_run_answers_the_question(site: Site) -> None:
    recap = site.make("demo").succeeded()
    assert recap.counts["changed"] >= 5, recap.output
    shown = recap.output.partition("PLAY RECAP")[2]
    asked, again = shown.partition(QUESTION)[2].split("Ask again:")
    assert asked.strip(), recap.output
    found = re.search(r"curl -X POST localhost:%d(/v2/models/ensemble/generate) -d '(.*)'" % site.http, again)
    assert found, again
    body = json.loads(found.group(2))
    assert body == {"text_input": QUESTION, "max_tokens": 512, "bad_words": "", "stop_words": ""}
    answer = site.request(found.group(1), body)
    assert answer.status == 200
    assert json.loads(answer.read())["text_output"]
    assert sorted(site.open_ports()) == sorted([site.http, site.grpc, site.metrics])
    # What the last test looks for is there now.
    assert site.shared_memory() and site.pid() in site.processes()


def test_ensemble_and_bls_give_one_answer(site: Site) -> None:
    answer = site.generate()
    assert answer
    assert site.generate() == answer
    assert site.generate("tensorrt_llm_bls") == answer
    assert site.generate(text_input="Another question") != answer


def test_generate_stream_gives_tokens_as_they_come(site: Site) -> None:
    events = list(site.events())
    assert len([event for event in events if event]) >= 2, events
    # A character of several tokens cannot be shown in parts, so only what is whole in both is compared.
    streamed, whole = ("".join(text.split("\N{REPLACEMENT CHARACTER}")) for text in ("".join(events), site.generate()))
    assert streamed[:8] == whole[:8]


def test_tritonclient_http(site: Site) -> None:
    client = tritonclient.http.InferenceServerClient("localhost:%d" % site.http)
    text = tritonclient.http.InferInput("text_input", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[QUESTION.encode()]], dtype=np.object_))
    tokens = tritonclient.http.InferInput("max_tokens", [1, 1], "INT32")
    tokens.set_data_from_numpy(np.array([[16]], dtype=np.int32))
    result = client.infer("tensorrt_llm_bls", [text, tokens])
    assert result.as_numpy("text_output").flatten()[0].decode() == site.generate()
    client.close()


def test_tritonclient_grpc_stream(site: Site) -> None:
    client = tritonclient.grpc.InferenceServerClient("localhost:%d" % site.grpc)
    answers: queue.Queue[tuple[tritonclient.grpc.InferResult, Exception]] = queue.Queue()
    inputs = []
    for name, kind, value in (
        ("text_input", "BYTES", np.array([[QUESTION.encode()]], dtype=np.object_)),
        ("max_tokens", "INT32", np.array([[16]], dtype=np.int32)),
        ("stream", "BOOL", np.array([[True]])),
    ):
        inputs.append(tritonclient.grpc.InferInput(name, [1, 1], kind))
        inputs[-1].set_data_from_numpy(value)
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("ensemble", inputs, enable_empty_final_response=True)
    texts = []
    while True:
        result, error = answers.get(timeout=60)
        assert error is None, error
        output = result.as_numpy("text_output")
        if output is not None:
            texts.append(output.flatten()[0].decode())
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    client.close()
    assert len([text for text in texts if text]) >= 2, texts
    assert texts == list(site.events())[: len(texts)]


def test_metrics_count_requests(site: Site) -> None:
    def count() -> float:
        with urllib.request.urlopen("http://localhost:%d/metrics" % site.metrics, timeout=10) as answer:
            text = answer.read().decode()
        values = re.findall(r'(?m)^nv_inference_request_success\{model="ensemble",version="1"\} (\S+)$', text)
        return sum(float(value) for value in values)

    before = count()
    site.generate()
    assert before > 0
    wait_until(lambda: count() >= before + 1, "the request is counted")


def test_second_run_changes_nothing(site: Site) -> None:
    pids = site.pid(), site.pid("supervisord")
    recap = site.make("demo").succeeded()
    assert recap.counts["changed"] == 0, recap.output
    assert (site.pid(), site.pid("supervisord")) == pids


def test_check_mode_on_a_deployed_host_finds_nothing(site: Site) -> None:
    pid = site.pid()
    recap = site.make("check").succeeded()
    assert recap.counts["changed"] == 0, recap.output
    assert not re.search(r"(?m)^(\+\+\+|---|@@) ", recap.output), recap.output
    assert site.pid() == pid


def test_hand_edit_is_named_and_repaired(site: Site) -> None:
    edited = site.config("preprocessing")
    good = edited.read_bytes()
    mode = edited.stat().st_mode
    edited.chmod(0o640)
    bad = good + b"\n# edited by hand\n"
    edited.write_bytes(bad)
    pid = site.pid()

    recap = site.make("check").succeeded()
    assert recap.counts["changed"] >= 1, recap.output
    named = set(re.findall(r"[\w./-]*\.(?:pbtxt|json|conf|py)\b", "\n".join(diffs(recap.output))))
    assert {Path(name).parts[-2:] for name in named} == {("preprocessing", "config.pbtxt")}, recap.output
    assert "edited by hand" in recap.output
    assert edited.read_bytes() == bad and site.pid() == pid

    recap = site.make("demo").succeeded()
    repaired = site.config("preprocessing")
    assert repaired.read_bytes() == good and repaired.stat().st_mode == mode
    assert site.pid() != pid
    assert not Path("/proc/%d" % pid).exists()
    assert site.generate()
    assert site.make("demo").succeeded().counts["changed"] == 0


def diffs(output: str) -> list[str]:
    """The lines of Ansible's diffs: from a header to the status of the task."""
    found: list[str] = []
    inside = False
    for line in output.splitlines():
        if line.startswith(("--- ", "+++ ")):
            inside = True
        elif re.match(r"(ok|changed|skipping|included|TASK|PLAY)\b", line):
            inside = False
        if inside:
            found.append(line)
    return found


def test_dead_server_is_started_again(site: Site) -> None:
    pid = site.pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: site.pid() != pid and site.generate(), "another server answers")
    # What the killed server had is gone: only the living one's shared memory is there.
    users = open_shared_memory(site)
    assert set(site.shared_memory()) <= users


def open_shared_memory(site: Site) -> set[str]:
    found = set()
    for pid in site.processes():
        try:
            text = Path("/proc/%d/maps" % pid).read_text("utf-8", "replace")
        except OSError:
            continue
        found.update(re.findall(r"/dev/shm/(\S+)", text))
    return found


def test_down_leaves_nothing_running(site: Site) -> None:
    assert site.processes() and site.open_ports()
    site.make("down").succeeded()
    assert site.processes() == {}
    assert site.open_ports() == []
    assert site.shared_memory() == []
    again = site.make("down").succeeded()
    assert again.counts["changed"] == 0, again.output


def test_nothing_of_this_is_in_the_checkout(site: Site) -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "-q", str(site.home)], capture_output=True, check=False
    )
    if done.returncode not in (0, 1):
        pytest.skip("git says nothing about this folder: %s" % done.stderr.decode("utf-8", "replace").strip())
    assert done.returncode == 0

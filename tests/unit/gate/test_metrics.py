# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Triton's counters of requests, read and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.trtllm.serving.plugins.module_utils._gate_metrics import (
    Counters,
    CountersLost,
    between,
    entries,
    parse,
    read,
    worst,
)
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient, TritonError

FIXTURES = Path(__file__).parent / "fixtures"


def counters(success: dict[str, float], **failure: dict[str, float]) -> Counters:
    return Counters(success, failure)


def test_page_of_a_real_triton() -> None:
    found = parse((FIXTURES / "triton_2.51_metrics.txt").read_text())
    assert set(found.success) == {"ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"}
    assert found.failure["ensemble"] == {"BACKEND": 0, "CANCELED": 0, "OTHER": 2, "REJECTED": 0}
    assert found.failure["tensorrt_llm"]["BACKEND"] == 1


def test_versions_of_a_model_are_added_up() -> None:
    page = 'nv_inference_request_success{model="a",version="%d"} %d\nnv_inference_request_failure{model="a"} 2\n'
    found = parse(page % (1, 3) + page % (2, 4))
    assert found.success == {"a": 7} and found.failure == {"a": {"OTHER": 4}}


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("", "have no nv_inference_request_success: this is no Triton"),
        ("<html>nv_inference_request_success</html>", "this is no Triton"),
        ('nv_inference_request_success{model="a"} many', "which is no number"),
    ],
)
def test_what_is_no_page_of_metrics(page: str, said: str) -> None:
    with pytest.raises(TritonError, match=said):
        parse(page)


def test_interface_that_is_closed(triton: Any) -> None:
    client = TritonClient(triton.url, requests)
    assert read(client).success["ensemble"] == 0
    triton.metrics_status = 404
    with pytest.raises(TritonError, match="/metrics answers HTTP 404: correct metrics_url"):
        read(client)


def test_each_model_by_itself() -> None:
    first = counters({"a": 10, "b": 100}, a={"OTHER": 5})
    last = counters({"a": 19, "b": 200}, a={"OTHER": 6}, b={"REJECTED": 2})
    found = between(first, last, ["a", "b"])
    assert found["a"].as_dict() == {"requests": 10, "failures": 1, "ratio": 0.1}
    assert found["b"].as_dict() == {"requests": 102, "failures": 2, "ratio": round(2 / 102, 6)}
    assert worst(found) == "a"


def test_models_with_the_same_share_the_one_that_clients_ask() -> None:
    found = between(counters({"ensemble": 0, "a": 0}), counters({"ensemble": 1, "a": 9}), ["a", "ensemble"])
    assert worst(found) == "ensemble"


def test_client_that_gave_up_is_no_failure() -> None:
    # As measured: the step that noticed it counts CANCELED, the ensemble around it OTHER.
    first = counters({"ensemble": 0, "postprocessing": 0})
    last = counters({"ensemble": 9, "postprocessing": 50}, ensemble={"OTHER": 3}, postprocessing={"CANCELED": 1})
    found = between(first, last, ["ensemble", "postprocessing"])
    assert found["postprocessing"].failures == 0 and found["postprocessing"].requests == 50
    assert found["ensemble"].failures == 2 and found["ensemble"].requests == 11
    assert found["ensemble"].reasons == {"OTHER": 2}


def test_more_given_up_than_failed() -> None:
    last = counters({"ensemble": 1, "b": 1}, ensemble={"OTHER": 1, "CANCELED": 3}, b={"CANCELED": 9})
    found = between(counters({"ensemble": 0, "b": 0}), last, ["ensemble"])
    assert found["ensemble"].as_dict() == {"requests": 1, "failures": 0, "ratio": 0.0}


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (counters({"a": 3}), "of model a went back from 5 to 3: the server was started again"),
        (counters({"a": 5}, a={"OTHER": 1}), "nv_inference_request_failure of model a went back from 2 to 1"),
        (counters({"b": 5}), "counters of model a are gone"),
    ],
)
def test_restarted_server(last: Counters, said: str) -> None:
    with pytest.raises(CountersLost, match=said):
        between(counters({"a": 5}, a={"OTHER": 2}), last, ["a"])


def test_model_without_counters() -> None:
    with pytest.raises(TritonError, match="no requests of model x, y"):
        between(counters({"a": 1}), counters({"a": 1}), ["a", "x", "y"])


def test_models_that_clients_ask() -> None:
    assert entries(["preprocessing", "tensorrt_llm_bls", "ensemble"]) == ["ensemble", "tensorrt_llm_bls"]
    assert entries(["tensorrt_llm"]) == ["tensorrt_llm"]

# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What GPUs lack for a release and a world size: each finding, its severity, what was seen and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._gpu import Gpu, Process
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_findings import Wants, driver_findings, judge
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_host import FabricManager, Facts, Holder, foreign
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_memory import (
    MIXTRAL_8X7B,
    Model,
    bytes_each,
    from_config,
    space_mib,
    wants_fp8,
)
from ansible_collections.trtllm.serving.plugins.module_utils._releases import get

from .conftest import gpus, log


def facts_of(name: str, **more: Any) -> Facts:
    found = log(name)
    given: dict[str, Any] = {
        "driver": found.driver, "cuda": found.cuda, "gpus": found.gpus, "module_version": found.driver,
        "userland_version": found.driver, "pci_gpus": len(found.gpus), **more,
    }  # fmt: skip
    return Facts(**given)


def wants(release: str = "0.12.0", **more: Any) -> Wants:
    row = get(release)
    return Wants(release=release, driver=row.driver, cuda=row.cuda, **more)


def changed(facts: Facts, **more: Any) -> Facts:
    """The same host, its first GPU different."""
    return replace(facts, gpus=[replace(facts.gpus[0], **more), *facts.gpus[1:]])


def found(facts: Facts, wanted: Wants | None = None, holders: list[Holder] | None = None) -> dict[str, str]:
    """severity and text by id."""
    findings, _notes = judge(facts, wanted or wants(), holders or [])
    for finding in findings:
        assert finding.what and finding.remedy and "\n" not in finding.text
    assert len({(finding.id, finding.severity) for finding in findings}) == len(findings)
    return {finding.id: "%s %s" % (finding.severity, finding.text) for finding in findings}


# --- hosts that are right ---


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a100x8", wants(tp_size=8, model=MIXTRAL_8X7B)),
        ("a100x8", wants(tp_size=4, pp_size=2, model=MIXTRAL_8X7B)),
        ("h100x2", wants("1.1.0", tp_size=2, model=MIXTRAL_8X7B)),
        ("l40sx4", wants("0.19.0", tp_size=4, model=MIXTRAL_8X7B, options={"use_fp8": True})),
        ("a10x2", wants(tp_size=2, release="0.17.0")),
    ],
)
def test_good_hosts(name: str, wanted: Wants) -> None:
    facts = replace(facts_of(name), driver=wanted.driver, module_version=wanted.driver, userland_version=wanted.driver)
    assert found(facts, wanted) == {}


def test_bm_gpu4_8_with_its_fabric_manager() -> None:
    manager = FabricManager(True, True, "535.183.01")
    facts = facts_of("a100x8", nvswitches=6, fabric_manager=manager)
    findings, notes = judge(facts, wants(tp_size=8, model=MIXTRAL_8X7B), [])
    assert findings == []
    assert "CUDA compatibility package" in notes[0] and "535.183.01" in notes[0] and "555.42.06" in notes[0]


# --- fabric ---


@pytest.mark.parametrize(
    ("manager", "named"),
    [
        (FabricManager(), "not installed"),
        (FabricManager(True, False, "535.183.01"), "enable --now nvidia-fabricmanager"),
        (FabricManager(True, False, "535.161.08"), "install version 535.183.01"),
        (FabricManager(True, True, "535.161.08"), "fabric manager 535.161.08, driver 535.183.01"),
    ],
)
def test_nvswitches_without_a_matching_fabric_manager(manager: FabricManager, named: str) -> None:
    text = found(facts_of("a100x8", nvswitches=6, fabric_manager=manager))["fabric_manager"]
    assert text.startswith("error ") and named in text
    if not manager.running:
        assert "802" in text


@pytest.mark.parametrize("state", [("In Progress", ""), ("Not Started", ""), ("Completed", "Insufficient Resources")])
def test_a_gpu_that_the_fabric_does_not_know(state: tuple[str, str]) -> None:
    text = found(changed(facts_of("h100x2"), fabric_state=state[0], fabric_status=state[1]), wants("1.1.0"))[
        "fabric_state"
    ]
    assert text.startswith("error ") and "802" in text and "GPU 0: %s" % state[0] in text


# --- driver ---


@pytest.mark.parametrize(
    ("driver", "release", "name", "wanted"),
    [
        ("555.42.06", "0.12.0", "NVIDIA A10", ""),
        ("580.159.04", "0.12.0", "NVIDIA GeForce RTX 4090", ""),
        ("535.86.10", "0.12.0", "NVIDIA A10", "note"),
        ("535.86.10", "1.1.0", "NVIDIA A100-SXM4-40GB", "note"),
        ("535.54.03", "0.12.0", "NVIDIA A10", "warning"),
        ("550.127.05", "0.12.0", "NVIDIA A10", "warning"),
        ("470.256.02", "0.12.0", "Tesla T4", "note"),
        ("470.42.01", "0.12.0", "Tesla T4", "error"),
        ("460.73.01", "0.12.0", "Tesla T4", "error"),
        ("535.183.01", "0.12.0", "NVIDIA GeForce RTX 4090", "warning"),
        ("470.256.02", "0.12.0", "NVIDIA GeForce RTX 4090", "error"),
        ("575.57.08", "1.1.0", "NVIDIA GeForce RTX 4090", "error"),
        ("535.183.01", "1.2.1", "NVIDIA A10", "warning"),
        ("590.44.01", "1.2.1", "NVIDIA A10", ""),
        ("", "0.12.0", "NVIDIA A10", ""),
    ],
)  # fmt: skip
def test_the_driver_against_the_release(driver: str, release: str, name: str, wanted: str) -> None:
    findings, notes = driver_findings(driver, wants(release), [Gpu(0, "GPU-0", name, 1)])
    assert [finding.severity for finding in findings] == ([wanted] if wanted in ("error", "warning") else [])
    assert len(notes) == (wanted == "note")
    for finding in findings:
        assert driver in finding.text and get(release).driver in finding.text and release in finding.text


def test_module_and_libraries_differ() -> None:
    text = found(facts_of("a100x8", userland_version="550.144.03"))["driver_mismatch"]
    assert text.startswith("error ") and "module 535.183.01, libraries 550.144.03" in text and "rmmod" in text
    both = Facts(module_version="535.183.01", userland_version="550.144.03", smi_mismatch=True, smi_error="x: y")
    assert list(found(both)) == ["driver_mismatch"], "one cause is one finding"
    unknown = Facts(smi_mismatch=True, smi_error="nvidia-smi says 'version mismatch': old libraries")
    assert "(nvidia-smi says 'version mismatch')" in found(unknown)["driver_mismatch"]
    assert found(facts_of("a100x8", userland_version="")) == found(facts_of("a100x8", module_version="")) == {}


def test_nouveau() -> None:
    without = found(Facts(nouveau=True, smi_missing=True, smi_error="there is no nvidia-smi", pci_gpus=8))
    assert without["nouveau"].startswith("error ") and without["nvidia_smi"].startswith("error ")
    assert "8 GPUs on the PCI bus" in without["nvidia_smi"]
    assert found(facts_of("a100x8", nouveau=True))["nouveau"].startswith("warning ")


def test_nvidia_smi_that_fails() -> None:
    text = found(Facts(smi_error="nvidia-smi says 'x': y", smi_remedy="reboot"))
    assert text == {"nvidia_smi": "error nvidia-smi says 'x': y: reboot"}


def test_words_beside_the_answer() -> None:
    lost = "Unable to determine the device handle for GPU3: 0000:5F:00.0: Unknown Error"
    assert found(facts_of("a100x8", smi_words=lost))["gpu_lost"].startswith(
        "error a GPU does not answer (nvidia-smi says"
    )
    inforom = "WARNING: infoROM is corrupted at gpu 0000:0F:00.0"
    assert found(facts_of("a100x8", smi_words=inforom))["gpu_inforom"].startswith("warning ")


@pytest.mark.parametrize(
    ("release", "workers", "options", "warned"),
    [
        ("0.12.0", 8, {}, True), ("0.12.0", 1, {}, False), ("0.12.0", 8, {"load_model_on_cpu": True}, False),
        ("0.13.0", 8, {}, False),
    ],
)  # fmt: skip
def test_converting_in_several_workers(release: str, workers: int, options: dict[str, Any], warned: bool) -> None:
    wanted = wants(release, tp_size=8, workers=workers, options=options, model=MIXTRAL_8X7B)
    texts = found(facts_of("a100x8"), wanted)
    assert list(texts) == (["convert_memory"] if warned else [])


# --- number and kind ---


def test_too_few_gpus() -> None:
    text = found(facts_of("h100x2"), wants("1.1.0", tp_size=4, pp_size=2))["gpu_count"]
    assert (
        text.startswith("error ") and "tensor 4 x pipeline 2, there are 2" in text and "mixtral_engine_tp_size" in text
    )
    assert "there are 1" in found(facts_of("h100x2"), wants("1.1.0", tp_size=2, gpus=[1]))["gpu_count"]
    assert "finds no GPU" in found(Facts(driver="580.1", pci_gpus=0))["gpu_count"]


def test_a_gpu_that_fell_off_the_bus() -> None:
    text = found(facts_of("a100x8", pci_gpus=9))["gpu_lost"]
    assert text.startswith("error ") and "8 of 9" in text and "Xid 79" in text
    assert found(changed(facts_of("a100x8"), name="Unknown Error"))["gpu_lost"].startswith("error ")


def test_unequal_gpus() -> None:
    mixed = facts_of("a100x8")
    mixed = replace(mixed, gpus=mixed.gpus[:1] + gpus("a10x2")[1:], pci_gpus=2)
    text = found(mixed)["gpu_unequal"]
    assert text.startswith("error ") and "NVIDIA A10, 23028 MiB; NVIDIA A100-SXM4-40GB, 40960 MiB" in text
    assert "gpu_unequal" not in found(mixed, wants(gpus=[0]))


@pytest.mark.parametrize(
    ("capability", "release", "severity"),
    [
        ("7.0", "0.14.0", ""), ("7.0", "0.15.0", "warning"), ("7.0", "0.16.0", "error"), ("7.0", "1.1.0", "error"),
        ("7.5", "1.1.0", ""), ("6.1", "0.12.0", "error"), ("10.0", "0.16.0", "error"), ("10.0", "0.17.0", ""),
        ("12.0", "0.12.0", "error"), ("", "0.12.0", "warning"), ("8.0", "0.12.0", ""),
    ],
)  # fmt: skip
def test_compute_capability(capability: str, release: str, severity: str) -> None:
    facts = facts_of("h100x2", driver="590.44.01")
    facts = replace(facts, gpus=[replace(gpu, compute_capability=capability) for gpu in facts.gpus])
    facts = replace(facts, module_version="", userland_version="")
    text = found(facts, wants(release)).get("compute_capability", "")
    assert text.partition(" ")[0] == severity


@pytest.mark.parametrize(
    "options", [{"use_fp8": True}, {"fp8_kv_cache": True}, {"gemm_plugin": "fp8"}, {"use_fp8_rowwise": "true"}]
)
def test_fp8_needs_ada(options: dict[str, Any]) -> None:
    assert "NVIDIA A100-SXM4-40GB has 8.0" in found(facts_of("a100x8"), wants(options=options))["gpu_fp8"]
    assert found(facts_of("h100x2"), wants("1.1.0", options=options)) == {}


def test_bfloat16_needs_ampere() -> None:
    volta = found(facts_of("v100x2", driver="560.35.05"), wants(dtype="bfloat16"))
    assert volta["gpu_bfloat16"].startswith("error ")
    assert "gpu_bfloat16" not in found(facts_of("a100x8"), wants(dtype="bfloat16"))


# --- state ---


@pytest.mark.parametrize(
    ("change", "name", "severity", "remedy"),
    [
        ({"compute_mode": "Prohibited"}, "compute_mode", "error", "nvidia-smi -i 0 -c DEFAULT"),
        ({"compute_mode": "Exclusive_Process"}, "compute_mode", "warning", "-c DEFAULT"),
        ({"mig": "Enabled", "mig_pending": "Enabled", "mig_devices": 7}, "mig", "error", "nvidia-smi -i 0 -mig 0"),
        ({"mig_pending": "Enabled"}, "mig_pending", "warning", "--gpu-reset"),
        ({"recovery_action": "Reboot"}, "gpu_health", "error", "reboot"),
        ({"remap_failure": True}, "gpu_health", "error", "replaced"),
        ({"retirement_pending": True}, "gpu_retirement", "warning", "--gpu-reset"),
        ({"ecc_uncorrected": 3}, "gpu_ecc", "warning", "Xid"),
        ({"persistence": "Disabled"}, "persistence", "warning", "nvidia-persistenced"),
        ({"memory_used_mib": 5000}, "gpu_memory_used", "warning", "fuser"),
    ],
)
def test_the_state_of_a_gpu(change: dict[str, Any], name: str, severity: str, remedy: str) -> None:
    texts = found(changed(facts_of("a100x8"), **change))
    assert list(texts) == [name]
    assert texts[name].startswith(severity + " ") and remedy in texts[name] and "GPU 0" in texts[name]


def test_mig_as_it_is_recorded() -> None:
    assert "2 MIG devices" in found(facts_of("a100_mig"))["mig"]


def test_states_of_several_gpus_are_one_finding() -> None:
    facts = facts_of("a100x8")
    facts = replace(facts, gpus=[replace(gpu, persistence="Disabled") for gpu in facts.gpus])
    assert "GPU 0, 1, 2, 3, 4, 5, 6, 7: Disabled" in found(facts)["persistence"]


def test_gpus_that_are_not_chosen_are_not_judged() -> None:
    assert found(changed(facts_of("a100x8"), mig="Enabled", mig_pending="Enabled"), wants(gpus=[1, 2])) == {}


# --- processes ---


def test_foreign_processes() -> None:
    facts = facts_of("h100x2_busy")
    text = found(facts, wants("1.1.0"), foreign(facts.gpus))["gpu_processes"]
    assert text.startswith("error ") and "pid 586 (python3) with 1634 MiB on GPU 1" in text
    assert found(facts, wants("1.1.0"), []) == {}, "our own are none"


def test_a_display_only_warns() -> None:
    display = Holder(Process(1200, "G", "/usr/lib/xorg/Xorg", 61), [0], 61)
    assert found(facts_of("a100x8"), holders=[display])["gpu_processes"].startswith("warning ")
    both = Holder(Process(1201, "C+G", "/usr/bin/x", 61), [0], 61)
    assert found(facts_of("a100x8"), holders=[both])["gpu_processes"].startswith("error ")


# --- memory ---


def test_mixtral_has_its_published_number_of_parameters() -> None:
    assert MIXTRAL_8X7B.parameters == 46_702_792_704
    assert space_mib(MIXTRAL_8X7B, "float16", {}) == {"weights": 89078, "checkpoint": 89078, "engine": 89078}
    assert space_mib(MIXTRAL_8X7B, "float16", {"use_weight_only": True})["engine"] == 44539
    assert MIXTRAL_8X7B.kv_mib(2048, 1, 1) == 256 and MIXTRAL_8X7B.kv_mib(2048, 8, 1) == 32
    assert MIXTRAL_8X7B.kv_mib(2048, 16, 1) == 32, "a head is the least that a rank has"


@pytest.mark.parametrize(
    ("name", "tp_size", "options", "severity"),
    [
        ("h100x2", 1, {}, "error"), ("h100x2", 2, {}, ""), ("h100x2", 1, {"use_fp8": True}, ""),
        ("a100x8", 2, {}, "error"), ("a100x8", 4, {}, ""), ("l40sx4", 2, {}, "error"), ("l40sx4", 4, {}, ""),
        ("a10x2", 2, {"use_weight_only": True, "weight_only_precision": "int4"}, ""), ("a10x2", 2, {}, "error"),
        ("a10x2", 2, {"use_weight_only": True}, "error"),
    ],
)  # fmt: skip
def test_the_model_must_fit(name: str, tp_size: int, options: dict[str, Any], severity: str) -> None:
    wanted = wants("0.12.0", tp_size=tp_size, options=options, model=MIXTRAL_8X7B)
    text = found(replace(facts_of(name, driver="580.159.04"), module_version=""), wanted).get("gpu_memory", "")
    assert text.partition(" ")[0] == severity
    if severity:
        assert "46.7 billion parameters" in text and "mixtral_engine_tp_size" in text


def test_hardly_any_room_is_a_warning() -> None:
    facts = facts_of("a100x8")
    facts = replace(facts, gpus=[replace(gpu, memory_mib=14000) for gpu in facts.gpus])
    assert found(facts, wants(tp_size=8, model=MIXTRAL_8X7B))["gpu_memory"].startswith("warning ")


def test_a_model_by_its_config() -> None:
    config: dict[str, Any] = {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    assert from_config(config) == MIXTRAL_8X7B
    dense = from_config({**config, "num_local_experts": None, "num_key_value_heads": None, "tie_word_embeddings": True})
    assert dense == Model(4096, 32, 32, 32, 128, 14336, 32000, 1, True)
    for broken in (
        {},
        {**config, "hidden_size": "x"},
        {**config, "num_attention_heads": 0},
        {**config, "vocab_size": []},
    ):
        assert from_config(broken) is None


def test_bytes_of_a_parameter() -> None:
    assert [bytes_each(dtype, {}) for dtype in ("float32", "float16", "bfloat16", "auto")] == [4, 2, 2, 2]
    assert bytes_each("float16", {"use_weight_only": True, "weight_only_precision": "int4_awq"}) < 1
    assert bytes_each("float16", {"use_fp8": True}) == 1 and bytes_each("float16", {"use_fp8": False}) == 2
    assert not wants_fp8({"gemm_plugin": "auto", "use_fp8": False}) and wants_fp8({"low_latency_gemm_plugin": "fp8"})

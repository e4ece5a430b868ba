# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What nvidia-smi prints, of several drivers and GPUs, and what stands for a lost GPU."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._gpu import (
    Gpu,
    gpu_lost,
    listed,
    parse_capabilities,
    parse_log,
    query,
    select,
    signature,
)
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_models import compute_capability, data_centre
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_smi import SmiError, ask, find_smi, one_line

from .conftest import Install, fixture, gpus, log

# --- the XML ---


@pytest.mark.parametrize(
    ("name", "driver", "wanted"),
    [
        ("h100x2", "580.159.04", ("NVIDIA H100 80GB HBM3", "9.0", 81559, 2)),
        ("h100x2_busy", "580.159.04", ("NVIDIA H100 80GB HBM3", "9.0", 81559, 2)),
        ("a100x8", "535.183.01", ("NVIDIA A100-SXM4-40GB", "8.0", 40960, 8)),
        ("a100_mig", "550.127.05", ("NVIDIA A100-SXM4-40GB", "8.0", 40960, 1)),
        ("l40sx4", "550.127.05", ("NVIDIA L40S", "8.9", 46068, 4)),
        ("a10x2", "545.29.06", ("NVIDIA A10", "8.6", 23028, 2)),
        ("v100x2", "460.73.01", ("Tesla V100S-PCIE-32GB", "7.0", 32510, 2)),
    ],
)
def test_every_layout_is_understood(name: str, driver: str, wanted: tuple[str, str, int, int]) -> None:
    found = log(name)
    assert found.driver == driver and found.attached == len(found.gpus) == wanted[3]
    keys = ("name", "compute_capability", "memory_mib", "count")
    assert signature(found.gpus) == dict(zip(keys, wanted))
    assert [gpu.index for gpu in found.gpus] == list(range(wanted[3]))
    assert len({gpu.uuid for gpu in found.gpus}) == len({gpu.pci_bus_id for gpu in found.gpus}) == wanted[3]


def test_a_recorded_host_in_full() -> None:
    idle, busy = gpus("h100x2_busy")
    assert (idle.mig, idle.mig_pending, idle.mig_devices) == ("Disabled", "Disabled", 0)
    assert (idle.compute_mode, idle.persistence, idle.ecc) == ("Default", "Enabled", "Enabled")
    assert (idle.fabric_state, idle.fabric_status) == ("Completed", "Success")
    assert (idle.recovery_action, idle.ecc_uncorrected, idle.retirement_pending, idle.remap_failure) == (
        "",
        0,
        False,
        False,
    )
    assert idle.processes == [] and idle.memory_used_mib == 4
    (process,) = busy.processes
    assert (process.pid, process.type, process.name, process.memory_mib) == (586, "C", "python3", 1634)


def test_mig_is_seen() -> None:
    (gpu,) = gpus("a100_mig")
    assert (gpu.mig, gpu.mig_devices) == ("Enabled", 2)


def test_an_old_driver_counts_errors_by_bits_and_does_not_escape_names() -> None:
    display, broken = gpus("v100x2")
    assert [(process.type, process.name) for process in display.processes] == [
        ("G", "/usr/lib/xorg/Xorg"), ("C", "python a&b <x>.py"),
    ]  # fmt: skip
    assert display.ecc_uncorrected == 0 and not display.retirement_pending
    assert broken.ecc_uncorrected == 2, "what older drivers add up themselves is not added again"
    assert broken.retirement_pending
    assert display.mig == display.architecture == display.fabric_state == ""


@pytest.mark.parametrize(
    ("change", "attribute", "value"),
    [
        (("<gpu_recovery_action>None", "<gpu_recovery_action>Reset"), "recovery_action", "Reset"),
        (("<remapped_row_failure>No", "<remapped_row_failure>Yes"), "remap_failure", True),
        (("<unrepairable_memory>No", "<unrepairable_memory>Yes"), "remap_failure", True),
        (("<remapped_row_pending>No", "<remapped_row_pending>Yes"), "retirement_pending", True),
        (("<sram_uncorrectable_parity>0", "<sram_uncorrectable_parity>3"), "ecc_uncorrected", 3),
        (("<compute_mode>Default", "<compute_mode>Exclusive_Process"), "compute_mode", "Exclusive_Process"),
        (("<pending_mig>Disabled", "<pending_mig>Enabled"), "mig_pending", "Enabled"),
    ],
)
def test_states_that_matter(change: tuple[str, str], attribute: str, value: object) -> None:
    text = fixture("h100x2.xml")
    assert change[0] in text
    assert getattr(parse_log(text.replace(*change)).gpus[0], attribute) == value


def test_a_reset_that_older_drivers_require() -> None:
    text = fixture("a100x8.xml").replace("<reset_required>No", "<reset_required>Yes", 1)
    assert [gpu.recovery_action for gpu in parse_log(text).gpus] == ["Reset"] + [""] * 7


def test_words_around_the_xml_are_no_trouble() -> None:
    text = "WARNING: infoROM is corrupted at gpu 0000:0F:00.0\n" + fixture("a10x2.xml") + "WARNING: something\n"
    assert len(parse_log(text).gpus) == 2
    assert parse_log(text).words == "WARNING: infoROM is corrupted at gpu 0000:0F:00.0 WARNING: something"
    assert log("a10x2").words == ""


def test_control_characters_and_broken_utf8_are_no_trouble() -> None:
    text = fixture("h100x2_busy.xml").replace("python3", "py\x01th\ufffdon\x1b[31m")
    assert parse_log(text).gpus[1].processes[0].name == "py?th\ufffdon?[31m"


def test_a_log_without_gpus() -> None:
    text = "<nvidia_smi_log><driver_version>580.1</driver_version><attached_gpus>0</attached_gpus></nvidia_smi_log>"
    assert parse_log(text).gpus == [] and signature([]) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "<nvidia_smi_log>", "<nvidia_smi_log><gpu></nvidia_smi_log>",
        fixture("h100x2.xml")[:9000], "\0" * 100, "</nvidia_smi_log><nvidia_smi_log>",
    ],
)  # fmt: skip
def test_what_is_no_log_is_named(text: str) -> None:
    with pytest.raises(SmiError) as caught:
        parse_log(text)
    assert "cannot be read" in str(caught.value) and "\n" not in str(caught.value) and caught.value.remedy


def test_entities_are_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><nvidia_smi_log>&b;</nvidia_smi_log>'
    file = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><nvidia_smi_log>&f;</nvidia_smi_log>'
    for text in (bomb, file):
        with pytest.raises(SmiError, match="declares entities"):
            parse_log(text)


def test_a_huge_log_is_read_in_bounded_time() -> None:
    text = fixture("a100x8.xml")
    body = text[text.index("\t<gpu ") : text.rindex("</nvidia_smi_log>")]
    huge = text[: text.index("\t<gpu ")] + body * 20 + "</nvidia_smi_log>"
    before = time.monotonic()
    assert len(parse_log(huge).gpus) == 160
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("name", ["not_loaded", "mismatch", "unknown_error", "no_devices", "no_library", "lost"])
def test_failures_of_the_host_are_explained(name: str) -> None:
    with pytest.raises(SmiError) as caught:
        parse_log(fixture("error_%s.txt" % name))
    assert str(caught.value).startswith("nvidia-smi says '") and "cannot be read" not in str(caught.value)
    assert caught.value.mismatch == (name == "mismatch")


# --- compute capability and kinds ---


@pytest.mark.parametrize(
    ("pci", "architecture", "name", "wanted"),
    [
        ("20B010DE", "", "", "8.0"), ("0x20B210DE", "", "", "8.0"), ("223610DE", "", "", "8.6"),
        ("26B910DE", "", "", "8.9"), ("27B810DE", "", "", "8.9"), ("233010DE", "", "", "9.0"),
        ("233510DE", "", "", "9.0"), ("290110DE", "", "", "10.0"), ("2B8510DE", "", "", "12.0"),
        ("1EB810DE", "", "", "7.5"), ("218210DE", "", "", "7.5"), ("1DB610DE", "", "", "7.0"),
        ("15F810DE", "", "", "6.0"),
        ("", "Ampere", "NVIDIA A100-SXM4-80GB", "8.0"), ("", "Ampere", "NVIDIA A30", "8.0"),
        ("", "Ampere", "NVIDIA A10", "8.6"), ("", "Ampere", "NVIDIA RTX A6000", "8.6"), ("", "", "Tesla T4", "7.5"),
        ("", "Ada Lovelace", "NVIDIA L40S", "8.9"), ("", "Hopper", "", "9.0"), ("", "Volta", "", "7.0"),
        ("", "Blackwell", "NVIDIA B200", "10.0"), ("", "Blackwell", "NVIDIA RTX PRO 6000", "12.0"), ("", "", "", ""),
        ("FFFF10DE", "", "", ""), ("20B01002", "", "", ""),
    ],
)  # fmt: skip
def test_compute_capability(pci: str, architecture: str, name: str, wanted: str) -> None:
    assert compute_capability(pci, architecture, name) == wanted


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB", "NVIDIA A10", "NVIDIA L40S", "Tesla T4", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3",
        "NVIDIA GH200 480GB", "Tesla V100S-PCIE-32GB",
    ],
)  # fmt: skip
def test_gpus_of_data_centres(name: str) -> None:
    assert data_centre(name)


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000", "NVIDIA RTX 6000 Ada Generation", "Quadro P2000", ""]
)
def test_gpus_of_desks(name: str) -> None:
    assert not data_centre(name)


def test_the_driver_is_believed_before_the_table(smi: Install) -> None:
    found = "".join("%s, 9.9\n" % gpu.uuid for gpu in gpus("a100x8"))
    smi("a100x8.xml", capabilities=found)
    assert {gpu.compute_capability for gpu in query().gpus} == {"9.9"}
    smi("a100x8.xml")
    assert {gpu.compute_capability for gpu in query().gpus} == {"8.0"}, "older drivers do not know the field"
    assert parse_capabilities("uuid, compute_cap\nGPU-1, [N/A]\nGPU-2, 8.0\n") == {"GPU-2": "8.0"}


def test_unequal_gpus_have_no_signature() -> None:
    assert signature(gpus("a10x2") + gpus("l40sx4")) is None


def test_gpus_are_chosen() -> None:
    every = gpus("a100x8")
    assert select(every, "all") == every and select(every, "none") == select(every, "") == []
    assert [gpu.index for gpu in select(every, 2)] == [gpu.index for gpu in select(every, "2")] == [0, 1]
    assert [gpu.index for gpu in select(every, [1, "3"])] == [1, 3]
    assert [gpu.index for gpu in select(every, [every[5].uuid, every[6].pci_bus_id])] == [5, 6]
    assert select(every, [9]) == []


# --- asking ---


def test_a_program_that_hangs_is_left(tmp_path: Path) -> None:
    hanging = tmp_path / "nvidia-smi"
    hanging.write_text("#!/bin/sh\necho $$ > %s/pid\nsleep 60 & wait\n" % tmp_path)
    hanging.chmod(0o755)
    before = time.monotonic()
    with pytest.raises(SmiError, match="no answer in 1 s"):
        query(str(hanging), 1)
    assert time.monotonic() - before < 5
    assert not Path("/proc/%s" % (tmp_path / "pid").read_text().strip()).exists(), "and ended with its children"


def test_a_program_that_talks_without_end_is_cut_off() -> None:
    rc, text = ask(["sh", "-c", "yes"], 30, longest=100000)
    assert rc == 125 and len(text) == 100000


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert ask([str(tmp_path / "none")], 1)[0] == 127
    assert find_smi("no-such-program") is None
    with pytest.raises(SmiError) as caught:
        query("no-such-program")
    assert caught.value.missing


def test_lines_stay_short_and_printable() -> None:
    assert one_line("a\n\tb\x00\x1bc") == "a b c"
    assert len(one_line("x" * 1000)) == 200


# --- in a container ---


@pytest.mark.parametrize(
    ("rc", "output", "named", "remedy"),
    [
        (255, "unknown_error", "NVML: Unknown Error", "daemon-reload"),
        (18, "mismatch", "Driver/library version mismatch", "reboot the host"),
        (9, "not_loaded", "couldn't communicate", "modprobe nvidia"),
        (6, "no_devices", "No devices were found", "remove the container"),
        (12, "no_library", "couldn't find libnvidia-ml", "nvidia-ctk"),
        (15, "lost", "GPU is lost", "Xid 79"),
        (0, "no_handle", "GPU1: 0000:65:00.0: Unknown Error", "reset that GPU"),
        (126, "exec", "executable file not found", "nvidia-ctk"),
    ],
)  # fmt: skip
def test_a_lost_gpu_is_explained(rc: int, output: str, named: str, remedy: str) -> None:
    for wanted in (0, 1, 8):
        reason = gpu_lost(rc, fixture("error_%s.txt" % output), wanted)
        assert named in reason and remedy in reason and "\n" not in reason


def test_all_gpus_are_there() -> None:
    found = fixture("list_h100x2.txt")
    assert listed(found) == 2 and gpu_lost(0, found, 2) == gpu_lost(0, found, 0) == ""
    assert "sees 2 of 8 GPUs" in gpu_lost(0, found, 8)
    table = fixture("table_t4.txt")
    assert listed(table) == 1, "processes are no GPUs"
    assert gpu_lost(0, table, 1) == "" and "1 of 2" in gpu_lost(0, table, 2)
    mig = "GPU 0: NVIDIA A100 (UUID: GPU-0)\n  MIG 3g.20gb Device 0: (UUID: MIG-0)\n"
    assert listed(mig) == 1


def test_other_failures_in_a_container() -> None:
    assert "no answer in time" in gpu_lost(124, "", 1) and "no answer in time" in gpu_lost(137, "", 1)
    assert "exits with 3 and says 'oops'" in gpu_lost(3, "oops\n", 1)
    assert gpu_lost(14, fixture("list_h100x2.txt") + "WARNING: infoROM is corrupted at gpu 0000:00:06.0\n", 2) == ""
    assert gpu_lost(14, "", 0) != ""
    assert "sees 0 of 1" in gpu_lost(0, "", 1)


def test_no_line_of_a_fixture_names_a_real_device() -> None:
    for path in sorted((Path(__file__).parent / "fixtures").iterdir()):
        text = path.read_text()
        assert not re.search(r"GPU-(?!00000000)[0-9a-f]{8}", text), path.name
        assert set(re.findall(r"<serial>(\d+)</serial>", text)) <= {"0000000000000"}, path.name


def test_a_gpu_is_a_plain_record() -> None:
    assert Gpu(0, "u", "n", 1) == Gpu(index=0, uuid="u", name="n", memory_mib=1, processes=[])

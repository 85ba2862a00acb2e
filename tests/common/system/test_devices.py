from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import ConfigError
from common.system.devices import autocast_dtype, choose_device, free_device_memory, memory_format

CPU = torch.device("cpu")


def test_auto_is_the_gpu_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_with_a_way_out():
    with pytest.raises(ConfigError, match=r"cuda was requested.*use device: cpu or auto"):
        choose_device("cuda")


def test_unknown_names_are_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="'tpu' is not one of auto, cpu, cuda"):
        choose_device("tpu")
    with pytest.raises(ConfigError, match="'half' is not one of auto, float32"):
        autocast_dtype(CPU, "half")


def test_asked_precision_is_kept():
    assert autocast_dtype(CPU, "float32") is None
    assert autocast_dtype(CPU, "bfloat16") is torch.bfloat16


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        autocast_dtype(CPU, "float16")


def test_auto_on_a_cpu_is_bfloat16_only_where_the_kernel_reports_it():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("only Linux lists the processor's features in a file")
    flags = set(cpuinfo.read_text().split())
    expected = torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16", "bf16"} else None
    assert autocast_dtype(CPU, "auto") is expected


def test_memory_format_puts_channels_last():
    batch = torch.zeros(2, 3, 4, 5, 6).to(memory_format=memory_format(CPU))
    assert batch.stride(1) == 1


COUNT_NEW_PAGES = """
import resource, sys, torch
from common.system.devices import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for count in range(40):
    if count == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(setting: str) -> int:
    # A process of its own: whatever else a test process holds decides where its heap ends.
    command = [sys.executable, "-c", COUNT_NEW_PAGES, setting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_tensors_are_reused_without_new_pages():
    kept, returned = new_pages("keep"), new_pages("return")
    assert kept < returned / 4


def test_free_memory_of_a_gpu_falls_with_what_is_in_use_and_rises_again() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    gpu, size = torch.device("cuda"), 2**26
    before = free_device_memory(gpu)
    tensor = torch.zeros(size, dtype=torch.uint8, device=gpu)
    during = free_device_memory(gpu)
    del tensor
    after = free_device_memory(gpu)
    assert before is not None and during is not None and after is not None
    assert before - during >= size
    assert after - during >= size

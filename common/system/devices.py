"""Choice of device, precision and memory layout."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Literal, get_args

import torch

from common.errors import ConfigError
from common.system.memory import free_memory

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def choose_device(name: str = "auto") -> torch.device:
    """Resolve a device name from a command line or a configuration.

    Parameters
    ----------
    name
        ``cpu``, ``cuda``, or ``auto``: a GPU if there is one, else the CPU.

    Raises
    ------
    ConfigError
        If the name is none of these, or ``cuda`` is requested and there is no usable GPU.
    """
    if name not in get_args(DeviceName):
        raise ConfigError(f"device: {name!r} is not one of {', '.join(get_args(DeviceName))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: cuda was requested, but {why_no_gpu()}; use device: cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def why_no_gpu() -> str:
    """Explain why PyTorch has found no GPU."""
    return "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"


def gpu_memory() -> tuple[int, int] | None:
    """Return the bytes of GPU memory that PyTorch holds in this process, and all of the GPU's; None off a GPU."""
    held = torch.cuda.memory_reserved()  # 0 without asking the driver, unless this process uses a GPU
    return (held, torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory) if held else None


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """Resolve the precision of convolutions: the data type for autocast, or None for float32 throughout.

    ``auto`` is bfloat16 on CPUs with hardware support (AVX-512 BF16, AMX, Arm BF16) and on GPUs that have it (Ampere
    and later), float16 on older GPUs, and float32 on other CPUs, where lower precision is emulated and slower.

    Raises
    ------
    ConfigError
        If the name is unknown, or float16 is requested on a CPU, where it brings no speed.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: {precision!r} is not one of {', '.join(get_args(Precision))}")
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    if precision == "float16":
        if device.type == "cpu":
            raise ConfigError("precision: float16 needs a GPU; use auto, bfloat16 or float32 on a CPU")
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else None


def free_device_memory(device: torch.device) -> int | None:
    """Return the bytes that PyTorch can still allocate on a device; None if that is not known.

    On a GPU, what PyTorch has reserved and does not use counts as free. Creates a CUDA context.
    """
    if device.type != "cuda":
        return free_memory()
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + max(0, int(unused))


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the layout in which 3D convolutions run fastest on a device; pass it to ``module.to`` and ``tensor.to``.

    It is channels-last on CPUs and GPUs: the low-precision kernels of oneDNN and cuDNN use it without reordering.
    """
    return torch.channels_last_3d if device.type in ("cpu", "cuda") else torch.contiguous_format


@cache
def keep_freed_memory() -> bool:
    """Let the process reuse the memory of freed CPU tensors instead of returning it to the kernel.

    glibc returns large freed blocks to the kernel, which zeroes every page before handing it out again. This takes a
    third of the time of a training iteration with large batches. Afterwards all blocks come from the heap, which keeps
    up to 1 GiB of freed memory at its end. The setting applies to the whole process.

    Returns
    -------
    bool
        False without glibc; nothing changes then.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(trim_threshold, 2**30)) and bool(mallopt(mmap_max, 0))


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    # "bf16" is the name on Arm processors.
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))

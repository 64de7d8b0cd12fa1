"""Where bfloat16 pays: which devices multiply it in hardware, asked at run time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

CPU_UNITS = ("avx512_bf16", "amx_bf16")  # instructions that multiply bfloat16, by the names torch gives them
CUDA_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16 in its tensor cores


def bfloat16_is_fast(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 in hardware; elsewhere it is emulated, and slower than float32.

    On a CPU that takes AVX512-BF16 or AMX, on a CUDA device compute capability 8.0; other devices count as slow, since
    nobody has measured them here. What it brings and what it costs in accuracy: `benchmarks/RECORDS.md`, step and
    precision.

    Args:
        device: where to train; "cuda" is the current one.

    Returns:
        The answer, that of this machine.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= CUDA_CAPABILITY
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return any(bool(has.get(unit)) for unit in CPU_UNITS)


def autocast(device: torch.device | str, wanted: bool) -> AbstractContextManager[object]:
    """Forward passes in bfloat16 where that is wanted and fast, else in the parameters' own precision.

    Args:
        device: where the forward pass runs.
        wanted: whether to use bfloat16 at all.

    Returns:
        A context; parameters and losses stay as they are outside it.
    """
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16) if wanted and bfloat16_is_fast(device) else nullcontext()

"""Where and in what precision a process computes."""

from typing import Literal

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of this process; auto is CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_dtype_name(dtype: str, device: str) -> str:
    """auto is bfloat16 on CUDA and float32 elsewhere."""
    return dtype if dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a configured one."""
    return DTYPES[resolve_dtype_name(dtype, device.type)]

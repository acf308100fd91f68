"""Where the fused kernels can serve."""

import importlib.util
import os

import torch

__all__ = ["interpreted", "unavailable"]

CAPABILITY = (8, 0)  # tensor cores for bfloat16, and for float32 in three parts
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def interpreted() -> bool:
    """Whether Triton's interpreter is asked for, by the values that Triton takes for yes."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@torch.compiler.assume_constant_result
def unavailable(device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve tensors of this device and dtype; empty where they can.

    Under the interpreter they serve CPU, too, and float64, for the checks of gradients.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        if device.type not in ("cpu", "cuda"):
            return f"{device.type} is neither cpu nor cuda"
        return "" if dtype in (*DTYPES, torch.float64) else f"no kernel for {_name(dtype)}"
    if device.type != "cuda":
        return f"{device.type} is no CUDA device, and TRITON_INTERPRET is not set"
    if torch.version.hip is not None:
        return "not tried on ROCm"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if dtype not in DTYPES:
        return f"no kernel for {_name(dtype)}"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        found, needed = (".".join(map(str, version)) for version in (capability, CAPABILITY))
        return f"compute capability {found} is below {needed}"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Compile every kernel for a card that need not be there; run by test_compiler in a process of its own.

Prints, for each, what the compiler reports: shared memory in bytes, bytes of registers spilled, PTX.
"""

import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lambdaresnet_zoo.layers.kernels import launch, position

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def compile_kernel(name, capability, dtype, depth, warps, stages):
    kernel = getattr(position, name)
    extents = ((2, 196, 4, 16), (2, 1, 196, depth), (23, 23, 1, 16))
    shape = launch._Shape(*(torch.empty(extent, dtype=DTYPES[dtype], device="meta") for extent in extents), 14, 14)
    tiles = shape.tiles
    constants = {"STEP": tiles.step, "CONTEXT": tiles.context, "POSITIONS": tiles.fold[0], "OFFSETS": tiles.fold[1]}
    constants = {key: value for key, value in {**constants, **shape.constants()}.items() if key in kernel.arg_names}
    signature, aligned = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in position.SIZES:
            signature[argument] = "i32"
        else:
            summed = argument == "partial" or name == "fold_kernel"
            signature[argument] = "*fp32" if summed else f"*{dtype}"
            aligned[(i,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )


def spilled(binary):
    """Bytes of local memory of a kernel, by the tool that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.search(r"STACK:(\d+) .*LOCAL:(\d+)", usage).groups()))


if __name__ == "__main__":
    capability, dtype, depth = json.loads(sys.argv[1])
    for name in position.__all__:
        for warps, stages in (launch.FLOAT if dtype == "fp32" else launch.HALF).schedules:
            compiled = compile_kernel(name, capability, dtype, depth, warps, stages)
            row = {"kernel": name, "warps": warps, "stages": stages, "shared": compiled.metadata.shared}
            print(json.dumps({**row, "spilled": spilled(compiled.asm["cubin"]), "ptx": compiled.asm["ptx"]}))

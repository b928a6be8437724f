"""Print the instruction mix of the convolution kernels' main loops, and of CUTLASS's.

    pip install "gpucnn[nvrtc]"                         no GPU is needed
    pip install nvidia-cutlass==4.2.* nvidia-cuda-{cccl,runtime,crt}==13.0.*       for the peer
    python benchmarks/kernel_mix.py [ARCHITECTURE ...]  default: 80 90

A float32 loop is bound by instruction issue, so its share of multiply-adds is the highest share of
peak that it can reach.  `cover` is the number of multiply-adds between a load from global memory
and the use of the loaded values.  Both sides are compiled by the same NVRTC with CuPy's options.
"""

import importlib.util
import sys
from pathlib import Path

from gpucnn import cuda
from gpucnn.cuda import nvrtc, sass
from gpucnn.errors import GpucnnError

FILES = ("conv2d_forward.cu", "conv2d_grad_input.cu", "conv2d_grad_weight.cu")

# CUTLASS's default for float32 on CUDA cores: 128 x 128 x 8, two stages, channels last.
CUTLASS = """
#include "cutlass/cutlass.h"
#include "cutlass/conv/kernel/default_conv2d_{short}.h"
#include "cutlass/epilogue/thread/linear_combination.h"

using Layout = cutlass::layout::TensorNHWC;
using Kernel = typename cutlass::conv::kernel::DefaultConv2d{name}<
    float, Layout, float, Layout, float, Layout, float, cutlass::arch::OpClassSimt,
    cutlass::arch::Sm80, cutlass::gemm::GemmShape<128, 128, 8>, cutlass::gemm::GemmShape<32, 64, 8>,
    cutlass::gemm::GemmShape<1, 1, 1>,
    cutlass::epilogue::thread::LinearCombination<float, 1, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 2, cutlass::arch::OpMultiplyAdd,
    cutlass::conv::IteratorAlgorithm::kOptimized{unity}>::Kernel;

extern "C" __global__ __launch_bounds__(Kernel::kThreadCount)
void cutlass_conv_{short}(__grid_constant__ const typename Kernel::Params params) {{
    extern __shared__ int shared[];
    Kernel()(params, *reinterpret_cast<typename Kernel::SharedStorage*>(shared));
}}
"""
UNITY = ", cutlass::conv::StrideSupport::kUnity"  # CUTLASS's fastest case
PEERS = (("fprop", "Fprop", UNITY), ("dgrad", "Dgrad", UNITY), ("wgrad", "Wgrad", ""))


def main(arguments: list[str]) -> None:
    for architecture in map(int, arguments or ["80", "90"]):
        print(f"\nsm_{architecture}, NVRTC {nvrtc.version()}")
        print(f"{'main loop':34} regs  shared  instr  FFMA  share  integer  LDS.128  cover")
        for file in FILES:
            show(nvrtc.compile_source(cuda.assemble(file), file, architecture))
        folders = cutlass_folders()
        if folders is None:
            print("CUTLASS is not installed (see the top of this file)")
            continue
        for short, name, unity in PEERS:
            source = CUTLASS.format(short=short, name=name, unity=unity)
            includes = [f"-I{folder}" for folder in folders]
            options = ["-std=c++17", *nvrtc.CUPY_OPTIONS, "-default-device", *includes]
            show(nvrtc.compile_source(source, f"cutlass_{short}.cu", architecture, options))


def show(binary: nvrtc.Binary) -> None:
    loops = sass.main_loops(binary.cubin)
    for name, usage in sorted(binary.usage.items()):
        loop = loops[name]
        print(
            f"{name:34} {usage.registers:4} {usage.shared:7} {len(loop.instructions):6} "
            f"{loop.multiply_adds:5} {loop.share:6.1%} {loop.integer:8} {loop.count('LDS.128'):8} "
            f"{loop.cover:6}"
        )


def cutlass_folders() -> list[Path] | None:
    """The include folders of CUTLASS and its CUDA headers; None if one of them is not installed."""
    library = importlib.util.find_spec("cutlass_library")
    nvidia = importlib.util.find_spec("nvidia")
    if library is None or nvidia is None:
        return None
    source = Path(next(iter(library.submodule_search_locations or ())), "source/include")
    headers = [
        folder
        for root in nvidia.submodule_search_locations or ()
        for pattern in ("*/include", "*/include/cccl")
        for folder in Path(root).glob(pattern)
    ]
    return [source, *headers]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GpucnnError as error:
        sys.exit(str(error))

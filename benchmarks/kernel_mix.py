"""Print the instruction mix of the products' main loops, and of CUTLASS's.

    pip install "gpucnn[nvrtc]"                         no GPU is needed
    pip install nvidia-cutlass==4.2.* nvidia-cuda-{cccl,runtime,crt}==13.0.*       for the peer
    python benchmarks/kernel_mix.py [ARCHITECTURE ...] [--only WORD]   default: 80 90, all kernels

`share` is the fraction of instructions that are multiply-adds: of a float32 loop, which is bound by
instruction issue, the highest share of peak that it can reach.  `one warp` is what the loop's
multiply-adds keep a quarter of a multiprocessor busy, by the sum of the stall counts: below 90 % a
second warp must hide what is missing (gpucnn/cuda/sass.py).  `cover` is the number of
multiply-adds between a load from global memory and the use of the loaded values; asynchronous
copies have none.  `spills` are bytes.  Both sides are compiled by the same NVRTC with CuPy's
options.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from gpucnn import cuda
from gpucnn.cuda import nvrtc, sass
from gpucnn.cuda.declarations import KERNELS
from gpucnn.cuda.tensor_plan import specialisations
from gpucnn.errors import GpucnnError

FLOAT32 = ("conv2d_forward.cu", "conv2d_grad_input.cu", "conv2d_grad_weight.cu", "gemm.cu")

# CUTLASS's defaults, channels last: 128 x 128 x 8 on CUDA cores, two stages; 128 x 128 x 64 bytes
# on tensor cores.
CONVOLUTION = """
#include "cutlass/cutlass.h"
#include "cutlass/conv/kernel/default_conv2d_{short}.h"
#include "cutlass/epilogue/thread/linear_combination.h"

using Layout = cutlass::layout::TensorNHWC;
using Kernel = typename cutlass::conv::kernel::DefaultConv2d{name}<
    {element}, Layout, {element}, Layout, float, Layout, float, cutlass::arch::OpClass{unit},
    cutlass::arch::Sm80, cutlass::gemm::GemmShape<128, 128, {k}>,
    cutlass::gemm::GemmShape<{warp}, 64, {k}>, {instruction},
    cutlass::epilogue::thread::LinearCombination<float, {vector}, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, {stages},
    cutlass::arch::OpMultiplyAdd, cutlass::conv::IteratorAlgorithm::kOptimized{unity}>::Kernel;
"""
GEMM = """
#include "cutlass/cutlass.h"
#include "cutlass/gemm/kernel/default_gemm.h"
#include "cutlass/epilogue/thread/linear_combination.h"

using Kernel = typename cutlass::gemm::kernel::DefaultGemm<
    {element}, cutlass::layout::RowMajor, {vector_in}, {element}, cutlass::layout::ColumnMajor,
    {vector_in}, float, cutlass::layout::RowMajor, float, cutlass::arch::OpClass{unit},
    cutlass::arch::Sm80, cutlass::gemm::GemmShape<128, 128, {k}>,
    cutlass::gemm::GemmShape<{warp}, 64, {k}>, {instruction},
    cutlass::epilogue::thread::LinearCombination<float, {vector}, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, {stages}, false,
    cutlass::arch::OpMultiplyAdd>::GemmKernel;
"""
ENTRY = """
extern "C" __global__ __launch_bounds__(Kernel::kThreadCount)
void cutlass_{title}(__grid_constant__ const typename Kernel::Params params) {{
    extern __shared__ int shared[];
    Kernel()(params, *reinterpret_cast<typename Kernel::SharedStorage*>(shared));
}}
"""
SHAPE = "cutlass::gemm::GemmShape<{}>"
UNITS = {
    "f32": {"element": "float", "unit": "Simt", "k": 8, "warp": 32, "stages": 2, "vector": 1,
            "vector_in": 1, "instruction": SHAPE.format("1, 1, 1")},
    "tf32": {"element": "cutlass::tfloat32_t", "unit": "TensorOp", "k": 16, "warp": 64, "stages": 4,
             "vector": 4, "vector_in": 4, "instruction": SHAPE.format("16, 8, 8")},
    "f16": {"element": "cutlass::half_t", "unit": "TensorOp", "k": 32, "warp": 64, "stages": 5,
            "vector": 4, "vector_in": 8, "instruction": SHAPE.format("16, 8, 16")},
}  # fmt: skip
UNITY = ", cutlass::conv::StrideSupport::kUnity"  # CUTLASS's fastest case
PEERS = (("fprop", "Fprop", UNITY), ("dgrad", "Dgrad", UNITY), ("wgrad", "Wgrad", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("architectures", nargs="*", type=int, default=[80, 90])
    parser.add_argument("--only", default="", help="only main loops with this word in the title")
    arguments = parser.parse_args()
    for architecture in arguments.architectures:
        print(f"\nsm_{architecture}, NVRTC {nvrtc.version()}")
        print(
            f"{'main loop':50} regs spills  shared  instr  madds  share  one warp  integer  "
            "shared loads  cover"
        )
        for file in FLOAT32:
            if arguments.only in file and (KERNELS / file).is_file():
                show("", nvrtc.compile_source(cuda.assemble(file), file, architecture))
        for case in specialisations():
            if arguments.only in case.title and case.exists_on(architecture):
                options = ("-std=c++17", *nvrtc.CUPY_OPTIONS, *case.options)
                source = cuda.assemble(case.file)
                binary = nvrtc.compile_source(source, case.file, architecture, options)
                show(case.title, binary, case.shared_bytes)
        folders = cutlass_folders()
        if folders is None:
            print("CUTLASS is not installed (see the top of this file)")
            continue
        includes = [f"-I{folder}" for folder in folders]
        options = ("-std=c++17", *nvrtc.CUPY_OPTIONS, "-default-device", *includes)
        for title, source in peers():
            if arguments.only in title and architecture >= 80:
                show("", nvrtc.compile_source(source, f"{title}.cu", architecture, options))


def peers() -> Iterator[tuple[str, str]]:
    for dtype, unit in UNITS.items():
        for short, name, unity in PEERS:
            title = f"conv_{short}_{dtype}"
            source = CONVOLUTION + ENTRY
            yield title, source.format(short=short, name=name, unity=unity, title=title, **unit)
        title = f"gemm_{dtype}"
        yield title, (GEMM + ENTRY).format(title=title, **unit)


def show(title: str, binary: nvrtc.Binary, shared: int = 0) -> None:
    loops = sass.main_loops(binary.cubin)
    architecture = binary.architecture
    for name, usage in sorted(binary.usage.items()):
        loop = loops[name]
        print(
            f"{title or name:50} {usage.registers:4} {usage.spilled:6} "
            f"{usage.shared + shared:7} {len(loop.instructions):6} {loop.multiply_adds:6} "
            f"{loop.share:6.1%} {loop.efficiency(architecture):9.1%} {loop.integer:8} "
            f"{loop.count('LDS', 'LDSM'):13} {loop.cover:6}",
            flush=True,
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
        main()
    except GpucnnError as error:
        sys.exit(str(error))

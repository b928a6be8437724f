"""A model of how long a launch takes on a GPU.  Nothing is measured.

    time_of(Load(memory=3e6, l2=3e6), chip_of(Card(90, 132)))

A launch takes RAMP and the longest of four times (a roofline):

    math     the multiply-adds that the multiprocessors issue, padding of ragged tiles included
    shared   bytes that blocks move through shared memory, SHARED a clock and multiprocessor
    memory   bytes asked of device memory / (bandwidth * MEMORY)
    L2       bytes asked of the L2 cache / (its bandwidth * L2)

and another RAMP if blocks meet to add the splits of a sum: the last one starts to read only when
the others have written.

Math and shared memory: blocks run in waves.  All multiprocessors hold as many as fit in a full
wave; in the last one each holds the rest of the blocks divided by the multiprocessors, rounded up,
so a tail with one block on a few of them lasts as long as one with a block on each.  A
multiprocessor with w warps for each of its four schedulers multiplies at min(1, 0.5 + 0.25 w) of
the speed that a kernel reaches at all: `reach` of the path's peak.

tensor_plan.py chooses tiles by this model, benchmarks/predict_step.py predicts a step by it.

Constants and where they come from:

    CHIPS         NVIDIA's data sheets and whitepapers: T4 (Turing TU104), A100 SXM 80 GB, H100 SXM.
                  Peaks are dense, at the boost clock; a T4 leaves it soon, at 70 W
    clock         boost, for caches and shared memory.  H100: 1755 MHz, that of the PCIe card, as
                  an SXM card does not hold its 1980 MHz under load (assumed)
    L2 bandwidth  bytes a clock times the clock: A100 5120 a clock (whitepaper), H100 the same and
                  T4 1024 (assumed)
    SHARED        128: 32 banks of 4 bytes (CUDA C++ Programming Guide)
    reach         of tensor cores by mma.sync: 85 %; on sm_90 60 %, as only wgmma reaches the peak
                  there (assumed)
    MEMORY, L2    85 % and 70 % (assumed; streaming kernels and caches reach about these)
    RAMP          1 us (assumed): loads of the first wave and stores of the last
"""

import functools
from dataclasses import dataclass, replace

from gpucnn.cuda.card import Card
from gpucnn.errors import ArgumentError
from gpucnn.integers import ceil_div

MEMORY, L2 = 0.85, 0.70
RAMP = 1e-6  # seconds
SHARED = 128  # bytes a clock and multiprocessor
SCHEDULERS = 4  # of a multiprocessor


@dataclass(frozen=True)
class Chip:
    """A GPU's speeds; peaks are operations per second, two a multiply-add."""

    name: str
    card: Card
    clock: float  # per second
    bandwidth: float  # bytes per second, of device memory
    l2_size: int
    l2_bandwidth: float
    peaks: dict[str, float]  # by path: "fp32" (FFMA), "tf32", "bf16", "fp16"
    reach: float  # of the tensor cores' peak


CHIPS = (
    Chip("T4", Card(75, 40), 1.59e9, 320e9, 4 << 20, 1024 * 1.59e9,
         {"fp32": 8.1e12, "fp16": 65e12}, 0.85),
    Chip("A100", Card(80, 108), 1.41e9, 2039e9, 40 << 20, 5120 * 1.41e9,
         {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12}, 0.85),
    Chip("H100", Card(90, 132), 1.755e9, 3350e9, 50 << 20, 5120 * 1.755e9,
         {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12}, 0.60),
)  # fmt: skip
# The chip for a compute capability, from it on.  Consumer chips of sm_86, 89 and 120 have half or
# less of an A100's tensor cores, L2 and memory for each multiprocessor: about the same ratios, on
# which a plan depends (assumed; also that sm_100 is like an H100).
_LIKE = {0: 0, 80: 1, 90: 2, 120: 1}


@functools.cache
def chip_of(card: Card) -> Chip:
    """The chip of the card's kind, with all speeds in proportion to its multiprocessors."""
    chip = CHIPS[_LIKE[max(sm for sm in _LIKE if sm <= card.sm)]]
    if card == chip.card:
        return chip
    part = card.multiprocessors / chip.card.multiprocessors
    return replace(
        chip,
        name=str(card),
        card=card,
        bandwidth=chip.bandwidth * part,
        l2_size=int(chip.l2_size * part),
        l2_bandwidth=chip.l2_bandwidth * part,
        peaks={path: peak * part for path, peak in chip.peaks.items()},
    )


def resident(card: Card, threads: int, shared: int, promised: int | None = None) -> int:
    """Blocks that a multiprocessor holds at a time, at least one.

    shared: bytes of dynamic shared memory; promised: blocks that the registers allow, as the
    kernel's __launch_bounds__ say.
    """
    held = card.threads // threads
    if shared:
        reserved = 1024 if card.sm >= 80 else 0  # by CUDA, for each block
        held = min(held, card.shared // (shared + reserved))
    return max(1, held if promised is None else min(held, promised))


@dataclass(frozen=True)
class Tiling:
    """`count` products of m x k and k x n numbers, each in tiles and `splits` of K."""

    m: int
    n: int
    k: int
    count: int  # of groups, or of phases of a strided gradient
    tile_m: int
    tile_n: int
    splits: int
    k_padded: int  # K of one split, in whole steps

    @property
    def rows(self) -> int:  # of tiles
        return ceil_div(self.m, self.tile_m)

    @property
    def columns(self) -> int:
        return ceil_div(self.n, self.tile_n)

    @property
    def blocks(self) -> int:
        return self.rows * self.columns * self.count * self.splits

    @property
    def issued(self) -> int:
        """Operations, those of ragged tiles included."""
        return 2 * self.blocks * self.tile_m * self.tile_n * self.k_padded

    def read(self, a_size: int, b_size: int) -> int:
        """Bytes that all blocks read, for numbers of a_size and b_size bytes."""
        each = self.m * self.columns * a_size + self.n * self.rows * b_size
        return self.count * self.k * each


@dataclass(frozen=True)
class Load:
    """What a launch asks of a GPU."""

    memory: float  # bytes of each array once, and those of split sums
    l2: float  # bytes
    path: str = ""  # of products
    issued: float = 0
    reach: float | None = None  # of the path's peak; None: that of tensor cores
    blocks: int = 0  # that multiply; 0: not known, as full waves
    threads: int = 32  # of a block
    resident: int = 1
    shared: float = 0  # bytes through shared memory, of all blocks
    meets: bool = False  # whether blocks add splits
    # Of a product: bytes of its factors; of the one that a further row of the grid reads again;
    # rows of the grid, and blocks of all of them
    factors: int = 0
    again: int = 0
    rows: int = 1
    in_rows: int = 1


@dataclass(frozen=True)
class Time:
    """Seconds of a launch, and which of its times is the longest."""

    seconds: float
    bound: str


def memory_of(load: Load, chip: Chip) -> float:
    """Bytes asked of device memory, behind the chip's L2 cache.

    If the factors do not fit in it together, one is read again by each further row of the grid,
    except that blocks which run at the same time share what they read.
    """
    if load.factors <= chip.l2_size:
        return load.memory
    waves = ceil_div(load.in_rows, load.resident * chip.card.multiprocessors)
    return load.memory + load.again * (min(load.rows, waves) - 1)


def times_of(load: Load, chip: Chip) -> dict[str, float]:
    """The four times, in seconds; ArgumentError if the chip has no such path."""
    times = {
        "math": 0.0,
        "shared": 0.0,
        "memory": memory_of(load, chip) / (chip.bandwidth * MEMORY),
        "L2": load.l2 / (chip.l2_bandwidth * L2),
    }
    if not load.path:
        return times
    if load.path not in chip.peaks:
        raise ArgumentError(f"{chip.name} has no tensor cores for {load.path}")
    speed = chip.peaks[load.path] * (chip.reach if load.reach is None else load.reach)
    if not load.blocks:
        return times | {"math": load.issued / speed}
    multiprocessors = chip.card.multiprocessors
    waves, rest = divmod(load.blocks, load.resident * multiprocessors)
    tail = ceil_div(rest, multiprocessors)

    def hidden(held: int) -> float:
        return min(1.0, 0.5 + 0.25 * held * load.threads / 32 / SCHEDULERS)

    busy = waves * load.resident / hidden(load.resident) + tail / hidden(tail)
    times["math"] = load.issued / load.blocks * multiprocessors / speed * busy
    each = load.shared / load.blocks / (SHARED * chip.clock)
    times["shared"] = each * (waves * load.resident + tail)
    return times


def time_of(load: Load, chip: Chip) -> Time:
    """The predicted Time of one launch; ArgumentError if the chip has no such path."""
    times = times_of(load, chip)
    bound = max(times, key=lambda name: times[name])
    return Time((2 * RAMP if load.meets else RAMP) + times[bound], bound)

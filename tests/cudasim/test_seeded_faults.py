"""Correct kernels pass in every mode of the simulator, and every seeded fault is detected.

A fault is detected if the launch fails or its result differs from NumPy's.  `pytest -s` prints a
table of them.  All variants of all victims are in one module, so that the compiler runs twice
instead of a hundred times.
"""

import functools

import numpy as np
import pytest
from victims import CODE, FAULTS, HEADER, VICTIMS, Fault, Victim

from gpucnn import cudasim
from gpucnn.errors import KernelError

MODES = {
    "fast": "fast",
    "highest": "fast,schedule=highest",
    "random": "fast,schedule=random:1",
    "address": "address",
    "race": "race",
}
BY_NAME = {victim.name: victim for victim in VICTIMS}


def variant(victim: Victim, fault: Fault | None) -> str:
    """The victim's source with the fault, its kernel renamed."""
    code = CODE[victim.name]
    if fault is not None:
        assert code.count(fault.old) == 1, f"{fault.what}: not found once in {fault.victim}"
        code = code.replace(fault.old, fault.new)
    return code.replace(f"void {victim.name}(", f"void {kernel_name(victim, fault)}(")


def kernel_name(victim: Victim, fault: Fault | None) -> str:
    return victim.name if fault is None else f"{victim.name}_{FAULTS.index(fault)}"


@functools.cache
def module() -> cudasim.RawModule:
    pieces = [variant(victim, None) for victim in VICTIMS]
    pieces += [variant(BY_NAME[fault.victim], fault) for fault in FAULTS]
    return cudasim.RawModule(code=HEADER + "\n".join(pieces))


def run(victim: Victim, fault: Fault | None = None) -> str:
    """Run a victim; return what was detected, or ""."""
    arguments = [cudasim.asarray(a) if isinstance(a, np.ndarray) else a for a in victim.arguments()]
    function = module().get_function(kernel_name(victim, fault))
    try:
        function(victim.grid, victim.block, tuple(arguments), shared_mem=victim.shared)
    except KernelError as error:
        return str(error).split("thread (", 1)[-1].split(") ", 1)[-1]
    same = np.array_equal(arguments[victim.result].get(), victim.expected)
    return "" if same else "wrong result"


@pytest.mark.parametrize(
    "mode", [*MODES.values(), "race,schedule=highest", "address,schedule=random:2"]
)
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_a_correct_kernel_passes(victim, mode, monkeypatch):
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    assert run(victim) == ""


def test_every_seeded_fault_is_detected(monkeypatch):
    lines, missed = [], []
    for fault in FAULTS:
        seen = {}
        for mode, setting in MODES.items():
            monkeypatch.setenv("GPUCNN_CUDASIM", setting)
            seen[mode] = run(BY_NAME[fault.victim], fault)
        marks = "".join(f"{'x' if notice else '.':^9}" for notice in seen.values())
        said = next(
            (
                n
                for n in (seen["address"], seen["race"], *seen.values())
                if n and n != "wrong result"
            ),
            "",
        )
        lines.append(f"{fault.victim + ': ' + fault.what:<48}{marks} {said:.90}")
        if not any(seen.values()):
            missed.append(fault)
    print(f"\n\n{'':48}{''.join(f'{mode:^9}' for mode in MODES)} what the simulator says")
    print("\n".join(lines))
    print(f"{len(FAULTS) - len(missed)} of {len(FAULTS)} seeded faults detected")
    assert not missed
    assert len(FAULTS) >= 24

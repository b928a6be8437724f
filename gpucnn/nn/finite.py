"""Which layer holds a parameter or a running statistic that is not finite."""

from gpucnn.device import Array, array_module, device_of, working_on
from gpucnn.nn.module import Module
from gpucnn.nn.normalization import BatchNorm1d, BatchNorm2d
from gpucnn.nn.parameter import Parameter
from gpucnn.optim.finite import is_finite
from gpucnn.out_of_memory import ModuleContext
from gpucnn.precision import is_floating
from gpucnn.tensor import Tensor


def damaged(model: Module) -> str:
    """Describe the first parameter or running statistic that is not finite; "" if all are.

    Other buffers may hold infinities, such as a mask, but no NaN.
    """
    owners = owners_of(model)
    for _, module in model.named_modules():
        found = damaged_layer(model, module, owners)
        if found:
            return found
    return ""


def owners_of(model: Module) -> dict[int, list[tuple[str, Tensor]]]:
    """{id(module): its own parameters and buffers}, without those of submodules."""
    owners: dict[int, tuple[int, str, Tensor]] = {}
    for _, module in model.named_modules():  # the innermost owner comes last
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            owners[id(tensor)] = (id(module), name, tensor)
    found: dict[int, list[tuple[str, Tensor]]] = {}
    for owner, name, tensor in owners.values():
        found.setdefault(owner, []).append((name, tensor))
    return found


def damaged_layer(
    model: Module, module: Module, owners: dict[int, list[tuple[str, Tensor]]]
) -> str:
    """`damaged` for one module, without its submodules; owners is owners_of(model)."""
    for name, tensor in owners.get(id(module), []):
        parameter = isinstance(tensor, Parameter) or tensor.requires_grad
        statistic = isinstance(module, BatchNorm1d | BatchNorm2d)
        if is_finite(tensor.data) if parameter or statistic else not _has_nan(tensor.data):
            continue
        what = f"its {'parameter ' if parameter else ''}{name}"
        return f"{layer_name(model, module)}: {what} is not finite"
    return ""


def _has_nan(x: Array) -> bool:
    if not is_floating(x.dtype):
        return False
    with working_on(device_of(x)):
        return bool(array_module(x).isnan(x).any())


def layer_name(model: Module, module: Module) -> str:
    """The layer as errors name it: "layer 3 (Linear)"."""
    return str(ModuleContext(model, module, 0, 0))

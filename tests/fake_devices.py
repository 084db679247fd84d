"""Devices that are not there: memory of their own, numbers computed on the CPU, every mixing an error.

A tensor "on" `lazy:0` or `lazy:1` (a device type that torch knows but no build has) wraps a CPU tensor.
Errors are those of a GPU: operands, values or indices on other devices, `numpy()`, and optionally float64.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "lazy"
CPU = torch.device("cpu")
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}  # what moves numbers from one device to another
INDEXING = {  # the indices of a tensor may lie on the CPU
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
}  # fmt: skip


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a device that is not there."""

    cpu_tensor: torch.Tensor

    @staticmethod
    def __new__(cls, cpu_tensor: torch.Tensor, device: torch.device) -> "Elsewhere":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, cpu_tensor.size(), strides=cpu_tensor.stride(), storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype, device=device, requires_grad=cpu_tensor.requires_grad,
        )  # fmt: skip
        wrapper.cpu_tensor = cpu_tensor
        return wrapper

    def __repr__(self) -> str:
        return f"Elsewhere({self.cpu_tensor}, {self.device})"

    def tolist(self) -> Any:
        return self.cpu_tensor.tolist()

    def numpy(self) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy: use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class FakeDevices(TorchDispatchMode):
    """Tensors can be made on, and moved to, devices that are not there."""

    def __init__(self, *, float64: bool = True) -> None:
        super().__init__()
        self.float64 = float64

    def __enter__(self) -> "FakeDevices":
        # torch.tensor(…, device=…) then makes it on the CPU and moves it, which this mode sees.
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = computed(func, args, kwargs or {})
        for each in tree_flatten(result)[0]:
            if not self.float64 and isinstance(each, Elsewhere) and each.dtype == torch.float64:
                raise TypeError(f"{func}: {each.device} has no float64.")
        return result


def computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """The result of an operation, computed on the CPU, on the device of its operands."""
    requested = kwargs.get("device")
    device = _device_of(func, args, kwargs)
    if requested is not None:
        device = torch.device(requested)
        kwargs = kwargs | {"device": CPU}
    if requested is not None and device.type == KIND and device.index is None:
        device = torch.device(KIND, 0)
    result = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if device == CPU:
        return result
    wrappers = {id(each.cpu_tensor): each for each in tree_flatten(args)[0] if isinstance(each, Elsewhere)}

    def there(each: Any) -> Any:
        if not isinstance(each, torch.Tensor) or isinstance(each, Elsewhere):
            return each
        # In place: the same tensor.
        return wrappers[id(each)] if id(each) in wrappers else Elsewhere(each, device)

    return tree_map(there, result)


def _device_of(func: Any, args: tuple, kwargs: dict) -> torch.device:
    """Where the operands are.

    Raises:
        RuntimeError: they are on several devices; single numbers may be on the CPU.
    """
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    if func in CROSSING:
        return tensors[0].device if func is aten.copy_.default else tensors[-1].device
    if func in INDEXING:
        values = [args[0], *args[2:3]] if len(args) > 2 else [args[0]]
        if args[0].device == CPU:
            values = tensors
        elif all(each.device in (CPU, args[0].device) for each in tensors if not _is_in(each, values)):
            tensors = [each for each in values if isinstance(each, torch.Tensor)]
    devices = {each.device for each in tensors if each.ndim or each.device != CPU} or {CPU}
    if len(devices) > 1:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {devices}.")
    return devices.pop()


def _is_in(one: torch.Tensor, others: list) -> bool:
    return any(one is other for other in others)


def _on_cpu(value: Any) -> Any:
    return value.cpu_tensor if isinstance(value, Elsewhere) else value

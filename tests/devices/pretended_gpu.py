"""A device called "gpu" that any machine has: it computes on the processor, and refuses what a GPU would refuse.

Its tensors are wrappers around tensors of the processor. As CUDA does, it refuses operations whose tensors lie on
different devices, generators of another device than the numbers that they draw, and NumPy arrays of what lies on it.
So code that forgets where its tensors are fails here, where no GPU is. It says nothing about speed or about kernels.

It changes torch for the whole process, and is meant for one of its own.
"""

from __future__ import annotations

import subprocess
import types
from pathlib import Path
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "gpu"

torch.inference_mode = torch.no_grad  # in which some copies ask the device for memory; before it decorates anything

# What CUDA lets tensors of two devices take part in: copies from one to the other, and places given by the processor.
_ACROSS = {f"aten.{name}" for name in ("_to_copy.default", "copy_.default", "index.Tensor", "index_put.default",
                                       "index_put_.default")}  # fmt: skip


def compile_device(folder: Path) -> Path:
    """Compile what torch asks a device for, and give the library; raises ``CalledProcessError``, ``OSError``."""
    library = folder / "pretended_gpu.so"
    inside = Path(torch.__file__).parent
    paths = [f"-I{inside / 'include'}", f"-L{inside / 'lib'}", "-lc10", "-ltorch_cpu"]
    source = Path(__file__).with_suffix(".cpp")
    command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", str(source), "-o", str(library), *paths]
    subprocess.run(command, check=True, capture_output=True)
    return library


def install_device(library: Path) -> None:
    """Make the device known to torch."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(NAME)
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    torch._register_device_module(NAME, module)
    torch.__future__.set_swap_module_params_on_conversion(True)  # modules take over wrappers whole


class OnGPU(torch.Tensor):
    """A tensor on the device; ``held`` is where it really is."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=torch.device(NAME, 0), **shape)
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnGPU({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGPU) else value


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
    name, device = str(func), kwargs.get("device")
    if here and name not in _ACROSS and any(t.dim() and not isinstance(t, OnGPU) for t in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME} and cpu ({name})")
    if device is not None:
        goes_here = torch.device(device).type == NAME
        kwargs = kwargs | ({"device": torch.device("cpu")} if goes_here else {})
    elif name in _ACROSS:
        goes_here = isinstance(args[0], OnGPU)
    else:
        goes_here = bool(here)
    generator = kwargs.get("generator")
    if generator is not None and (generator.device.type == NAME) != goes_here:
        raise RuntimeError(f"Expected a generator of {NAME if goes_here else 'cpu'} ({name})")
    known = {id(tensor.held): tensor for tensor in here}
    for tensor in here:
        assert tensor.stride() == tensor.held.stride(), f"{name}: a wrapper cannot follow changes of shape in place"

    def place(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, OnGPU) or not goes_here:
            return value
        return known[id(value)] if id(value) in known else OnGPU(value)

    return tree_map(place, func(*tree_map(_held, args), **tree_map(_held, kwargs)))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What torch does outside its dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        on_gpu = bool(args) and isinstance(args[0], OnGPU)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if on_gpu and func in (torch.Tensor.tolist, torch.Tensor.data_ptr, torch.Tensor.untyped_storage):
            return func(args[0].held)
        if on_gpu and func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError(f"can't convert a tensor of the {NAME} to numpy; use Tensor.cpu() first")
        if on_gpu and func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])
        if on_gpu and func in (torch.stft, torch.Tensor.stft):  # which transposes what it gives in place
            assert all(isinstance(one, OnGPU) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor))
            return OnGPU(func(*tree_map(_held, args), **tree_map(_held, kwargs)))
        return func(*args, **kwargs)


class PretendedGPU:
    """The device is there inside the block."""

    def __enter__(self) -> None:
        """Let it be there."""
        self._modes = (_Calls(), _Operations())
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        for mode in reversed(self._modes):
            mode.__exit__(*error)

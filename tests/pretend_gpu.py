"""A GPU that is not there: what runs on one can be tested where there is none.

While it is on, torch says that there is a CUDA device. Tensors that are sent to it or made on it lie in the CPU's
memory but say that they are there, and so do those that are computed from them. What a real one would refuse is
refused: an operation on tensors of both devices, numbers of 64 bits (as Apple's does), or to read a tensor as an
array. Each time that the CPU would have to wait for it is counted. It holds for the thread that turned it on. Its
speed, its memory and its own kernels are not pretended: FlashAttention is computed row by row, FlexAttention is not
there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_GPU, _CPU = torch.device("cuda", 0), torch.device("cpu")

# What takes tensors of both devices.
_BETWEEN = {"copy_", "_to_copy", "_pin_memory", "index", "index_put", "index_put_", "_index_put_impl_"}
# What gives the CPU something, or something whose size it has to know.
_WAITED_FOR = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}


class PretendGpu:
    """The device.

    Attributes:
        waits: the operations for which the CPU would have waited so far.
    """

    # Kept for good, so that no address comes twice, and what the code has cached stays where it is.
    _memory: ClassVar[dict[int, torch.UntypedStorage]] = {}

    def __init__(self) -> None:
        self.waits: list[str] = []

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is on it."""
        return tensor.untyped_storage()._cdata in self._memory

    def take(self, tensor: Tensor) -> None:
        """Have a tensor, and all that share its memory, be on it."""
        storage = tensor.untyped_storage()
        self._memory[storage._cdata] = storage


class _Operations(TorchDispatchMode):
    """What torch computes."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        options, name = dict(kwargs or {}), func.overloadpacket.__name__
        if "pin_memory" in options:  # which takes a GPU's driver
            options["pin_memory"] = False
        tensors = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        there = [self._gpu.has(tensor) for tensor in tensors]
        # A single number on the CPU may take part in what is computed on a GPU.
        here = [tensor for tensor, is_there in zip(tensors, there, strict=True) if not is_there and tensor.dim()]
        if any(there) and here and name not in _BETWEEN:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
        if name.startswith("index") and any(there[1:]) and not there[0]:
            raise RuntimeError(f"{func}: indices should be on the device of what they are for, cpu, found cuda:0")
        by_mask = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        fetched = name == "copy_" and there == [False, True]
        if fetched or (any(there) and (name in _WAITED_FOR or by_mask)):
            self._gpu.waits.append(name)
        on_it = there[0] if name in _BETWEEN and tensors else any(there)
        if any(map(_is_gpu, (*args, *options.values()))):
            on_it = True
            args = tuple(_CPU if _is_gpu(value) else value for value in args)
            options = {key: _CPU if _is_gpu(value) else value for key, value in options.items()}
        result = func(*args, **options)
        if on_it:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    if leaf.dtype == torch.float64:
                        raise TypeError(f"{func}: a GPU of Apple's has no float64")
                    self._gpu.take(leaf)
        return result


class _Calls(TorchFunctionMode):
    """What Python asks of tensors."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        name = func.__name__
        # torch has no code for the device, and wants its number.
        args, options = tuple(map(_numbered, args)), {key: _numbered(value) for key, value in (kwargs or {}).items()}
        if name == "__get__" and func.__self__ in (Tensor.device, Tensor.is_cuda, Tensor.is_cpu):
            asked: object = {"device": _GPU, "is_cuda": True, "is_cpu": False}[func.__self__.__name__]
            return asked if self._gpu.has(args[0]) else func(*args)
        if func in (torch.tensor, torch.as_tensor) and _is_gpu(options.get("device")):
            return func(*args, **options | {"device": _CPU}).to(_GPU)
        if name not in ("to", "cpu", "numpy") or not isinstance(args[0], Tensor):
            return func(*args, **options)
        there = self._gpu.has(args[0])
        if name == "numpy" and there:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        result = func(*args, **options)
        if there and (name == "cpu" or any(str(value) == "cpu" for value in (*args[1:], *options.values()))):
            self._gpu.waits.append(name)
            with _disable_current_modes():
                return result.clone()
        return result


def _numbered(value: Any) -> Any:  # noqa: ANN401
    return _GPU if _is_gpu(value) or (isinstance(value, str) and value == "cuda") else value


def _is_gpu(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def varlen_attn(
    query_NHC: Tensor,
    key_MKC: Tensor,
    value_MKC: Tensor,
    ends_of_queries: Tensor,
    ends_of_keys: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Row by row what torch's kernel does at once: its causal mask is aligned where queries and keys end."""
    assert (ends_of_queries.dtype, ends_of_keys.dtype) == (torch.int32, torch.int32)
    with _disable_current_modes():
        queries, keys = ends_of_queries.diff().tolist(), ends_of_keys.diff().tolist()
    assert (max(queries), max(keys)) == (longest_query, longest_key)
    mixed = []
    for query, key, value in zip(
        torch.split(query_NHC, queries), torch.split(key_MKC, keys), torch.split(value_MKC, keys), strict=True
    ):
        seen = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device)
        mixed.append(
            functional.scaled_dot_product_attention(
                query.transpose(0, 1)[None],
                key.transpose(0, 1)[None],
                value.transpose(0, 1)[None],
                attn_mask=seen.tril(len(key) - len(query)) if window_size == (-1, 0) else seen,
                scale=scale,
                enable_gqa=enable_gqa,
            )[0].transpose(0, 1)
        )
    return torch.cat(mixed)


@contextmanager
def pretend_gpu(*, half: bool) -> Iterator[PretendGpu]:
    """Have a GPU, of compute capability 9.0 if it is for 16 bits, else 7.5."""
    from llmindex.encode import ragged

    torch._C._ensureCUDADeviceGuardSet()  # what lets torch take the name of a device that it has no code for
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: (9, 0) if half else (7, 5),
        "is_bf16_supported": lambda including_emulation=True: half,
        "get_rng_state_all": list,
    }
    chance: dict[str, Any] = {
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }
    gpu = PretendGpu()
    with (
        patch.multiple(torch.cuda, **answers, **chance),
        patch.multiple(torch.cuda.random, **chance),
        patch.object(Tensor, "pin_memory", lambda tensor: tensor),
        patch("torch.nn.attention.varlen.varlen_attn", varlen_attn),
        patch.object(ragged, "compiles", lambda *about: False),
        _Calls(gpu),
        _Operations(gpu),
    ):
        yield gpu
    ragged.has_varlen.cache_clear()
    ragged.has_flex.cache_clear()

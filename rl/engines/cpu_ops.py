"""The decoder's fused CPU operations: compiles `cpu_ops.cpp` once a machine and wraps its functions for tensors.

The library has no dependency on torch's C++ interface: tensors cross as addresses. It shares torch's OpenMP threads, because both name
the same libgomp.

Axis suffixes: N tokens, E hidden, I intermediate, H query heads, K key/value heads, D head dimension, R rows, L columns.
"""

import ctypes
import functools
import platform
from pathlib import Path

import torch

from environments.compiled import compiled_library

MAX_HEAD_DIM = 128
_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-O3", "-march=native", "-funroll-loops", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_POINTER, _SIZE, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "rms_norm": (*[_POINTER] * 3, *[_SIZE] * 2, _FLOAT, _INT),
    "silu_mul": (*[_POINTER] * 2, *[_SIZE] * 2, _INT),
    "rope_store": (*[_POINTER] * 8, *[_SIZE] * 5, _INT),
    "attend": (*[_POINTER] * 5, *[_SIZE] * 5, _FLOAT, _INT),
}


class CpuOps:
    """The operations for tensors of one dtype, float32 or bfloat16. All tensors are contiguous; arithmetic is float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Compile at the machine's first use (some seconds). Raises ValueError when there is no compiler or it fails."""
        library, suffix = _library(), str(dtype).removeprefix("torch.")
        self._rms_norm, self._silu_mul, self._rope_store, self._attend = (getattr(library, f"{name}_{suffix}") for name in _ARGUMENTS)

    def rms_norm(self, hidden: torch.Tensor, weight_E: torch.Tensor, *, eps: float) -> torch.Tensor:
        """hidden / sqrt(mean(hidden^2) + eps) * weight over the last axis, [..., E]."""
        assert hidden.is_contiguous()
        normed, width = torch.empty_like(hidden), len(weight_E)
        n_rows = hidden.numel() // width
        self._rms_norm(hidden.data_ptr(), weight_E.data_ptr(), normed.data_ptr(), n_rows, width, eps, _threads(n_rows))
        return normed

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, [..., I], for gate and up side by side in [..., 2 * I]."""
        assert gate_up.is_contiguous()
        width = gate_up.shape[-1] // 2
        mixed = gate_up.new_empty(*gate_up.shape[:-1], width)
        n_rows = mixed.numel() // width
        self._silu_mul(gate_up.data_ptr(), mixed.data_ptr(), n_rows, width, _threads(n_rows))
        return mixed

    def rope_store(
        self,
        qkv: torch.Tensor,
        *,
        cos_NX: torch.Tensor,
        sin_NX: torch.Tensor,
        rows_N: torch.Tensor,
        columns_N: torch.Tensor,
        keys_RKLD: torch.Tensor,
        values_RKLD: torch.Tensor,
    ) -> torch.Tensor:
        """Rotate q and k of `qkv` [..., (H + 2K) * D]; write k and v into their row and column of the buffers; return q [N, H, D].

        `cos_NX` and `sin_NX`: float32[N, D / 2]; `rows_N` and `columns_N`: int64, within the buffers (not checked).
        """
        assert qkv.is_contiguous() and keys_RKLD.is_contiguous() and values_RKLD.is_contiguous()
        _, kv_heads, length, head_dim = keys_RKLD.shape
        n_tokens, heads = len(rows_N), qkv.shape[-1] // head_dim - 2 * kv_heads
        q_NHD = qkv.new_empty(n_tokens, heads, head_dim)
        tensors = (qkv, cos_NX, sin_NX, rows_N, columns_N, q_NHD, keys_RKLD, values_RKLD)
        self._rope_store(*(tensor.data_ptr() for tensor in tensors), n_tokens, heads, kv_heads, head_dim, length, _threads(n_tokens))
        return q_NHD

    def attend(
        self, q_NHD: torch.Tensor, keys_RKLD: torch.Tensor, values_RKLD: torch.Tensor, *, seen_N: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """[N, H * D]: softmax attention of query i over the first `seen_N[i]` >= 1 columns of row i."""
        assert q_NHD.is_contiguous() and keys_RKLD.is_contiguous() and values_RKLD.is_contiguous()
        n_rows, heads, head_dim = q_NHD.shape
        _, kv_heads, length, _ = keys_RKLD.shape
        mixed_NX = q_NHD.new_empty(n_rows, heads * head_dim)
        tensors = (q_NHD, keys_RKLD, values_RKLD, seen_N, mixed_NX)
        status = self._attend(
            *(tensor.data_ptr() for tensor in tensors), n_rows, heads, kv_heads, head_dim, length, scale, _threads(n_rows)
        )
        assert status == 0, f"head_dim {head_dim} is above {MAX_HEAD_DIM}"
        return mixed_NX


def _threads(n_rows: int) -> int:
    """Threads for an operation whose work is split by rows: a parallel region costs more than a few rows do."""
    return min(torch.get_num_threads(), max(1, n_rows // 4))


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled library, with its functions' types declared."""
    library = ctypes.CDLL(str(_compiled()))
    for name, arguments in _ARGUMENTS.items():
        for suffix in ("float32", "bfloat16"):
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = arguments, _INT if name == "attend" else None
    return library


def _compiled() -> Path:
    """Path of the library for this source, compiler and processor."""
    return compiled_library(_SOURCE, flags=_FLAGS, identity=_processor())


def _processor() -> bytes:
    """What decides about `-march=native`: a cache on a shared disk serves machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n", 1)[0].split(b"\n")
    except OSError:
        return platform.processor().encode()
    return b"\n".join(line for line in lines if line.startswith((b"flags", b"Features", b"model\t", b"cpu family", b"CPU part")))

"""The fused CPU operations against the same arithmetic in torch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rl.engines import cpu_ops
from rl.engines.cpu_ops import CpuOps

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def close(got: torch.Tensor, wanted: torch.Tensor, *, dtype: torch.dtype) -> bool:
    assert got.dtype is dtype
    return bool(torch.allclose(got.float(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (5, 24), (3, 2, 576)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight_E = torch.randn(shape).to(dtype) * 3, torch.randn(shape[-1]).to(dtype)
    wanted = F.rms_norm(hidden.float(), (shape[-1],), weight_E.float(), 1e-5)
    assert close(CpuOps(dtype).rms_norm(hidden, weight_E, eps=1e-5), wanted, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 80, 1536])
def test_silu_mul_covers_the_whole_range_of_gates(width: int, dtype: torch.dtype) -> None:
    gate = torch.linspace(-200, 200, 7 * width).view(7, width).to(dtype)
    up = torch.randn(7, width).to(dtype)
    wanted = F.silu(gate.double()) * up.double()
    assert close(CpuOps(dtype).silu_mul(torch.cat([gate, up], dim=1)), wanted.float(), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 32, 64, 80, 128])
def test_rope_store_rotates_and_writes_only_the_named_cells(head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    heads, kv_heads, rows, columns = 6, 2, 5, 7
    qkv = torch.randn(3, (heads + 2 * kv_heads) * head_dim).to(dtype)
    angles = torch.randn(3, head_dim // 2)
    rows_N, columns_N = torch.tensor([4, 0, 2]), torch.tensor([6, 1, 0])
    keys, values = (torch.full((rows, kv_heads, columns, head_dim), 7.0, dtype=dtype) for _ in range(2))
    q_NHD = CpuOps(dtype).rope_store(
        qkv, cos_NX=angles.cos(), sin_NX=angles.sin(), rows_N=rows_N, columns_N=columns_N, keys_RKLD=keys, values_RKLD=values
    )
    q, k, v = qkv.float().unflatten(1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=1)

    def turned(part: torch.Tensor) -> torch.Tensor:
        low, high = part.chunk(2, dim=-1)
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    assert close(q_NHD, turned(q), dtype=dtype)
    assert close(keys[rows_N, :, columns_N], turned(k), dtype=dtype)
    assert torch.equal(values[rows_N, :, columns_N].float(), v)
    for buffer in (keys, values):
        buffer[rows_N, :, columns_N] = 7.0
        assert bool((buffer == 7.0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 8), (6, 1, 16), (9, 3, 64), (5, 5, 80), (8, 1, 128), (48, 8, 128)])
def test_attention_reads_only_the_columns_that_are_seen(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    seen = [1, 15, 16, 17, 40]
    q_NHD = torch.randn(len(seen), heads, head_dim).to(dtype) * 2
    keys, values = (torch.randn(len(seen) + 1, kv_heads, 40, head_dim).to(dtype) for _ in range(2))
    for row, count in enumerate(seen):
        keys[row, :, count:], values[row, :, count:] = torch.nan, torch.nan
    mixed = CpuOps(dtype).attend(q_NHD, keys, values, seen_N=torch.tensor(seen), scale=head_dim**-0.5)
    for row, count in enumerate(seen):
        wanted = F.scaled_dot_product_attention(
            q_NHD[row].float().unsqueeze(1), keys[row, :, :count].float(), values[row, :, :count].float(), enable_gqa=True
        )
        assert close(mixed[row].view(heads, 1, head_dim), wanted, dtype=dtype)


def test_a_result_does_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    ops, q, keys, values = CpuOps(torch.bfloat16), *(torch.randn(16, 4, n, 32).bfloat16() for n in (1, 50, 50))
    seen_N = torch.arange(16) + 30
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.attend(q.squeeze(2), keys, values, seen_N=seen_N, scale=0.2))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_nan_and_infinity_stay_visible() -> None:
    """A policy whose weights went wrong must be noticed at its logits."""
    ops = CpuOps(torch.float32)
    hidden = torch.ones(2, 20)
    hidden[0, 3] = torch.nan
    normed = ops.rms_norm(hidden, torch.ones(20), eps=1e-5)
    assert bool(normed[0].isnan().all()) and bool(normed[1].isfinite().all())
    assert bool(ops.silu_mul(torch.tensor([[torch.nan, 1.0]])).isnan().all())
    keys = torch.ones(1, 1, 3, 8)
    keys[0, 0, 1, 0] = torch.nan
    assert bool(ops.attend(torch.ones(1, 2, 8), keys, torch.ones_like(keys), seen_N=torch.tensor([3]), scale=1.0).isnan().all())


def test_the_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cpu_ops._compiled()
    assert [path.name for path in (tmp_path / "codeworld-rl").iterdir()] == [first.name]
    monkeypatch.setenv("PATH", f"{other_compiler(tmp_path)}:/usr/bin:/bin")
    assert cpu_ops._compiled() != first  # another compiler, another library
    assert len(list((tmp_path / "codeworld-rl").iterdir())) == 2


def other_compiler(folder: Path) -> Path:
    """A g++ that says another version and compiles all the same, sooner."""
    wrapper = folder / "bin" / "g++"
    wrapper.parent.mkdir()
    wrapper.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo other; exit 0; }\nexec /usr/bin/g++ "$@" -O0\n')
    wrapper.chmod(0o755)
    return wrapper.parent


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "no-such-compiler"}, "apt-get install g\\+\\+, or set CXX"),
        ({"CXX": "false"}, "cannot compile cpu_ops.cpp"),
        ({"XDG_CACHE_HOME": "/proc/nowhere"}, "set XDG_CACHE_HOME to a writable folder"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ({"XDG_CACHE_HOME": str(tmp_path)} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        cpu_ops._compiled()

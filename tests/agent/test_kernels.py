"""The fused CPU kernels against the plain formulas in float64, and how they are built."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tdmpc2.agent import kernels
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.twohot import TwoHot
from tdmpc2.errors import UserError

built = pytest.mark.skipif(not kernels.available(), reason=kernels.load().reason)
BF16 = torch.bfloat16
ROUNDING = 2.0**-8
"""Rounding to bfloat16, with its 8 significant bits, changes a number by at most this share of it."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scale_and_offset(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 1 + 0.3 * draw(*shape, seed=11), 0.5 * draw(*shape, seed=12)


def by_formula(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, group: int, keep: torch.Tensor | None = None
) -> torch.Tensor:
    """Dropout factors, LayerNorm, then x tanh(log(1 + e^x)) or a softmax over each group; of any precision."""
    h = x if keep is None else x * keep
    centred = h - h.mean(-1, keepdim=True)
    normal = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
    rows = (lambda p: p.unsqueeze(1)) if weight.ndim == 2 else (lambda p: p)
    y = normal * rows(weight) + rows(bias)
    if group == 0:
        return y * torch.tanh(F.softplus(y))
    return torch.softmax(y.unflatten(-1, (-1, group)), dim=-1).flatten(-2)


def run(
    function: Callable[..., torch.Tensor], upstream: torch.Tensor, *inputs: torch.Tensor, **rest: Any
) -> list[torch.Tensor]:
    """A function's value, and the gradients of its inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves, **rest)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def assert_near(got: torch.Tensor, expected: torch.Tensor, relative: float = 2e-5, share: float = 2e-6) -> None:
    """Near, each number by itself, or where it is small by a share of the largest."""
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(got.double(), expected, rtol=relative, atol=share * max(largest, 1e-3))


def check_against_formula(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, group: int, keep: torch.Tensor | None = None
) -> None:
    upstream = draw(*x.shape, seed=13)
    got = run(kernels.normed, upstream, x, weight, bias, group=group, keep=keep)
    double = [t.double() for t in (upstream, x, weight, bias)]
    expected = run(by_formula, *double, group=group, keep=None if keep is None else keep.double())
    assert got[0].dtype == torch.float32
    assert got[0].is_contiguous()
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape
        assert_near(g, e)
    with torch.no_grad():
        assert torch.equal(kernels.normed(x, weight, bias, group, keep), got[0])


# --- LayerNorm with Mish or SimNorm


@built
@pytest.mark.parametrize(
    ("n", "group"), [(1, 0), (7, 0), (7, 7), (24, 0), (24, 8), (24, 4), (24, 1), (384, 0), (384, 8), (385, 0), (385, 5)]
)
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 4)])
def test_normed_and_its_gradients_follow_the_formula_at_any_width_and_shape(
    n: int, group: int, leading: tuple[int, ...]
) -> None:
    check_against_formula(2 * draw(*leading, n) + 0.5, *scale_and_offset(n), group)


@built
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("leading", [(0,), (3, 0)])
def test_no_rows_give_no_rows_and_gradients_of_zero(group: int, leading: tuple[int, ...]) -> None:
    weight, bias = scale_and_offset(16)
    y, dx, *sums = run(kernels.normed, torch.zeros(*leading, 16), torch.zeros(*leading, 16), weight, bias, group=group)
    assert y.shape == dx.shape == (*leading, 16)
    assert all((gradient == 0).all() for gradient in sums)


def lying(how: str, members: int, rows: int, n: int) -> torch.Tensor:
    """(members, rows, n) numbers that lie in memory as a layer may hand them over."""
    x = draw(members, rows, n)
    if how == "contiguous":
        return x
    if how == "member beside member":  # as the first wide product leaves them
        wide = x.transpose(0, 1).flatten(1).contiguous()
        return wide.unflatten(1, (members, n)).transpose(0, 1)
    if how == "within wider rows":
        return torch.cat([x, torch.full((members, rows, 3), math.nan)], dim=2)[..., :n]
    if how == "every other row":
        return x.repeat_interleave(2, dim=1)[:, ::2]
    if how == "columns first":
        return x.mT.contiguous().mT
    assert how == "one row for all"
    return x[:1, :1].expand(members, rows, n)


LAYOUTS = "contiguous", "member beside member", "within wider rows", "every other row", "columns first"


@built
@pytest.mark.parametrize("n", [7, 24])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("how", [*LAYOUTS, "one row for all"])
def test_each_member_of_an_ensemble_has_its_own_scales_however_its_rows_lie(how: str, dropout: bool, n: int) -> None:
    x = lying(how, 3, 5, n)
    keep = (draw(3, 5, n, seed=3) > -0.5).float() * 1.25 if dropout else None
    check_against_formula(x, *scale_and_offset(3, n), 0, keep)


@built
def test_rows_that_lie_upon_one_another_get_the_sum_of_their_gradients() -> None:
    base, weight, bias = draw(1, 1, 8), *scale_and_offset(3, 8)
    upstream = draw(3, 5, 8, seed=1)
    got = run(lambda x, *rest: kernels.normed(x.expand(3, 5, 8), *rest), upstream, base, weight, bias)
    double = [t.double() for t in (upstream, base, weight, bias)]
    expected = run(lambda x, w, b: by_formula(x.expand(3, 5, 8), w, b, group=0), *double)
    for g, e in zip(got, expected, strict=True):
        assert_near(g, e)


@built
@pytest.mark.parametrize("group", [0, 8])
def test_dropped_entries_count_in_the_mean_and_get_no_gradient(group: int) -> None:
    x, keep = draw(6, 16), (draw(6, 16, seed=4) > 0).float() * 2
    check_against_formula(x, *scale_and_offset(16), group, keep)
    _, dx, *_ = run(kernels.normed, draw(6, 16, seed=5), x, *scale_and_offset(16), group=group, keep=keep)
    assert (dx[keep == 0] == 0).all()
    assert (dx[keep != 0] != 0).all()


@built
def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = draw(4, 8).requires_grad_()
    y = kernels.normed(x, *scale_and_offset(8))
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# --- Mish alone: with scales of zero, LayerNorm hands on its offsets as they are


def mish_of(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's Mish and its slope, in float32."""
    x, weight = torch.zeros(1, len(a)), torch.zeros(len(a))
    y, _, _, slope = run(kernels.normed, torch.ones(1, len(a)), x, weight, a)
    return y[0], slope


@built
def test_mish_is_right_to_float_precision_at_every_scale() -> None:
    a = torch.cat([torch.linspace(-80, 30, 4401), torch.tensor([0.0, 1e-30, -1e-30])])
    y, slope = mish_of(a)
    exact = a.double()
    softplus = torch.log1p(exact.exp())
    expected = exact * torch.tanh(softplus)
    # d/da = tanh(s) + a sigmoid(a) / cosh(s)^2
    slopes = torch.tanh(softplus) + exact * torch.sigmoid(exact) / torch.cosh(softplus).square()
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope.double(), slopes, rtol=2e-6, atol=2e-7)


@built
def test_mish_of_large_numbers_is_the_number_or_zero() -> None:
    large = torch.tensor([20.0, 89.0, 1e4, 1e8, 3e38])
    y, slope = mish_of(torch.cat([large, -large[1:]]))
    assert torch.equal(y[:5], large)
    assert torch.equal(slope[:4], torch.ones(4))
    # e^-89 and less are zero beside any other activation.
    assert (y[5:8].abs() < 1e-28).all()
    assert (slope[5:8].abs() < 1e-28).all()


# --- numbers that are none


@built
@pytest.mark.parametrize("group", [0, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_with_an_entry_that_is_no_number_becomes_nan_and_no_other_row_changes(
    bad: float, dtype: torch.dtype, group: int
) -> None:
    x, (weight, bias) = draw(4, 24).to(dtype), scale_and_offset(24)
    broken = x.clone()
    broken[2, 5] = bad
    upstream = draw(4, 24, seed=1)
    clean_y, clean_dx, *_ = run(kernels.normed, upstream, x, weight, bias, group=group)
    y, dx, *sums = run(kernels.normed, upstream, broken, weight, bias, group=group)
    others = [0, 1, 3]
    for got, clean in ((y, clean_y), (dx, clean_dx)):
        assert got[2].isnan().all()
        assert torch.equal(got[others], clean[others])
        assert torch.isfinite(got[others]).all()
    assert all(gradient.isnan().all() for gradient in sums)


@built
@pytest.mark.parametrize("group", [0, 8])
def test_a_gradient_that_is_no_number_shows_in_its_row_and_in_the_sums(group: int) -> None:
    x, (weight, bias), upstream = draw(4, 24), scale_and_offset(24), draw(4, 24, seed=1)
    upstream[1, 7] = math.nan
    _, dx, dweight, dbias = run(kernels.normed, upstream, x, weight, bias, group=group)
    assert dx[1].isnan().all()
    assert torch.isfinite(dx[[0, 2, 3]]).all()
    assert dweight[7].isnan()
    assert dbias[7].isnan()


@built
@pytest.mark.parametrize("group", [0, 4, 8])
def test_an_infinite_entry_never_gives_a_distribution_or_a_finite_activation(group: int) -> None:
    weight, bias = torch.ones(8), torch.zeros(8)
    bias[3] = math.inf
    y = kernels.normed(draw(2, 8), weight, bias, group)
    if group == 0:
        assert (y[:, 3] == math.inf).all()
    else:
        assert y[:, :group].isnan().all()
        assert torch.isfinite(y[:, group:]).all()


@built
@pytest.mark.parametrize("group", [0, 8])
def test_huge_entries_stay_right(group: int) -> None:
    x = draw(5, 24)
    x[0, 3], x[1, 4], x[2, 5:7] = 1e4, -1e4, torch.tensor([1e4, -1e4])
    x[3] *= 1e4
    check_against_formula(x, *scale_and_offset(24), group)


@built
@pytest.mark.parametrize("group", [4, 8])
def test_simnorm_of_far_apart_entries_is_one_hot_and_never_overflows(group: int) -> None:
    bias = torch.zeros(2 * group)
    bias[2], bias[3], bias[group:] = 1e6 - 2**9, 1e6, -1e6  # each beyond what exp can tell, the next beyond it
    bias[-1] += 2**10
    y = kernels.normed(draw(3, 2 * group), torch.zeros(2 * group), bias, group)
    expected = torch.zeros(2 * group)
    expected[[3, -1]] = 1.0
    torch.testing.assert_close(y, expected.expand(3, -1), rtol=0, atol=1e-30)


# --- bfloat16


@built
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("into", [torch.float32, BF16])
@pytest.mark.parametrize("out_of", [torch.float32, BF16])
def test_bfloat16_is_read_and_written_with_one_rounding_each(
    out_of: torch.dtype, into: torch.dtype, group: int
) -> None:
    x, (weight, bias) = draw(3, 5, 24).to(out_of), scale_and_offset(3, 24)
    upstream = draw(3, 5, 24, seed=1).to(into)
    y, dx, dweight, dbias = run(kernels.normed, upstream, x, weight, bias, group=group, dtype=into)
    assert (y.dtype, dx.dtype, dweight.dtype, dbias.dtype) == (into, out_of, torch.float32, torch.float32)
    double = [t.double() for t in (upstream, x, weight, bias)]
    expected = run(by_formula, *double, group=group)
    rounding = {torch.float32: 2e-5, BF16: 1.01 * ROUNDING}
    for got, exact, relative in zip((y, dx), expected[:2], (rounding[into], rounding[out_of]), strict=True):
        assert_near(got, exact, relative)
    for got, exact in zip((dweight, dbias), expected[2:], strict=True):  # summed in float32
        assert_near(got, exact)


@built
def test_results_are_rounded_to_the_nearest_bfloat16_ties_to_even() -> None:
    # From 20 on Mish is the identity, so what is written is known exactly: steps of 1/16 of bfloat16's own, around
    # ties, at both parities, up to the overflow to infinity.
    bits = torch.arange(0x41A00000, 0x41A40000, 0x1000, dtype=torch.int32)
    largest = torch.tensor([0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF], dtype=torch.int32)
    a = torch.cat([bits, largest]).view(torch.float32)
    y = kernels.normed(torch.zeros(1, len(a)), torch.zeros(len(a)), a, dtype=BF16)
    assert torch.equal(y[0], a.bfloat16())
    assert y[0, -3:].tolist() == [3.3895313892515355e38, math.inf, math.inf]
    odd = torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)  # NaN in other dress
    assert kernels.normed(torch.zeros(1, 3), torch.zeros(3), odd, dtype=BF16).isnan().all()


@built
def test_bfloat16_rows_may_lie_member_beside_member() -> None:
    x, (weight, bias) = lying("member beside member", 3, 5, 24).to(BF16), scale_and_offset(3, 24)
    assert not x.is_contiguous()
    upstream = draw(3, 5, 24, seed=1)
    apart, together = (run(kernels.normed, upstream, x_, weight, bias) for x_ in (x, x.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


# --- threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@built
@pytest.mark.parametrize(("members", "rows", "group"), [(3, 1, 0), (3, 2, 8), (3, 33, 0), (3, 33, 8), (1, 100_000, 0)])
def test_two_threads_give_what_one_gives_and_the_same_every_time(
    two_threads: None, members: int, rows: int, group: int
) -> None:
    x, upstream = draw(members, rows, 24), draw(members, rows, 24, seed=1)
    (weight, bias), keep = scale_and_offset(members, 24), (draw(members, rows, 24, seed=2) > -1).float()
    logits, bins = draw(min(rows, 100), 101) * 3, torch.linspace(-10, 10, 101)

    def everything() -> list[torch.Tensor]:
        normed = run(kernels.normed, upstream, x, weight, bias, group=group, keep=keep)
        return normed + run(lambda values: kernels.decode(values, bins), upstream[0, :100, :1], logits)

    y, dx, dweight, dbias, scalar, dlogits = both = everything()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(both, everything(), strict=True))
    torch.set_num_threads(1)
    one = everything()
    for a, b in zip((y, dx, scalar, dlogits), (*one[:2], *one[4:]), strict=True):
        assert torch.equal(a, b)
    for sums, alone in zip((dweight, dbias), one[2:4], strict=True):  # summed in another order
        torch.testing.assert_close(sums, alone, rtol=1e-4, atol=1e-5 * rows**0.5)


# --- the two-hot expectation


def decode_by_formula(logits: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    x = (torch.softmax(logits, dim=-1) * bins).sum(-1, keepdim=True)
    return x.sign() * (x.abs().exp() - 1)


@built
@pytest.mark.parametrize("bins", [2, 7, 33, 101])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_decode_and_its_gradient_follow_the_formula(dtype: torch.dtype, spread: float, bins: int) -> None:
    two_hot = TwoHot(bins, -10.0, 10.0)
    two_hot.fused = True
    logits, upstream = (spread * draw(4, 3, bins)).to(dtype), draw(4, 3, 1, seed=1)
    value, gradient = run(two_hot.decode, upstream, logits)
    expected, slope = run(lambda x: decode_by_formula(x, two_hot.bins.double()), upstream.double(), logits.double())
    assert value.dtype == torch.float32
    assert value.shape == (4, 3, 1)
    assert gradient.dtype == dtype
    # Bins up to 10 are known to 1e-6 in float32, and so is their expectation x; e^|x| multiplies what it is off by.
    slack = 1e-5 * (expected.abs() + 1)
    assert ((value - expected).abs() <= slack).all()
    rounding = ROUNDING if dtype == BF16 else 0.0
    assert ((gradient - slope).abs() <= slack * upstream.abs() + 1.01 * rounding * slope.abs()).all()


@built
def test_decode_of_bins_by_hand_and_of_no_rows() -> None:
    bins = torch.tensor([-1.0, 0.0, 1.0])
    logits = torch.tensor([[0.0, 1e4, 0.0], [0.0, 0.0, 1e4], [math.log(3.0), -1e4, 0.0], [-1e30, 1e30, 0.0]])
    # All on 0; all on 1: e - 1; 3/4 on -1 and 1/4 on 1: -0.5, so 1 - e^0.5; all on 0.
    expected = torch.tensor([[0.0], [1.7182818], [-0.6487213], [0.0]])
    torch.testing.assert_close(kernels.decode(logits, bins), expected, rtol=1e-6, atol=1e-7)
    assert kernels.decode(torch.zeros(2, 0, 3), bins).shape == (2, 0, 1)


@built
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_decode_to_nan_in_their_row_alone(bad: float, dtype: torch.dtype) -> None:
    logits, bins = draw(3, 101).to(dtype), torch.linspace(-10, 10, 101)
    clean, _ = run(lambda x: kernels.decode(x, bins), torch.ones(3, 1), logits)
    logits[1, 100] = bad
    value, gradient = run(lambda x: kernels.decode(x, bins), torch.ones(3, 1), logits)
    assert value[1].isnan()
    assert gradient[1].isnan().all()
    assert torch.equal(value[[0, 2]], clean[[0, 2]])
    assert torch.isfinite(gradient[[0, 2]]).all()
    assert kernels.decode(torch.full((2, 101), math.nan), bins).isnan().all()


@built
def test_decode_takes_logits_however_they_lie() -> None:
    logits, bins = draw(101, 4).T, torch.linspace(-10, 10, 101)
    assert not logits.is_contiguous()
    assert torch.equal(kernels.decode(logits, bins), kernels.decode(logits.contiguous(), bins))


# --- building


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TDMPC2_CACHE", str(folder))
    return folder


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in the compiler's place; returns where it notes the words of each call to build."""
    real = kernels.find_compiler()

    def make(script: str) -> Path:
        path, log = tmp_path / "compiler", tmp_path / "calls"
        lines = [
            "#!/bin/sh",
            'if [ "$1" = --version ]; then echo "imagined 1.0"; exit 0; fi',
            f'echo "$@" >> {log}',
            f'REAL="{real}"',
            'OUT=$(echo "$@" | sed "s/.* -o //; s/ .*//")',  # where the library goes
            script,
        ]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(path))
        return log

    return make


def load() -> kernels.Availability:
    """As a new process would."""
    return kernels.load.__wrapped__()


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_where_there_is_a_compiler_there_are_kernels() -> None:
    # The tests above are skipped without kernels: a compiler must not make them pass by failing.
    assert kernels.find_compiler() is None or kernels.available(), kernels.load().reason


QUICKLY = '$REAL $(echo "$@" | sed s/-O3/-O0/)'


def test_without_a_compiler_there_are_no_kernels_and_the_reason_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    library, reason = load()
    assert library is None
    assert "no C++ compiler found" in reason
    assert "g++" in reason
    assert not cache.exists()


def test_a_compiler_that_cannot_even_tell_its_version_is_no_compiler(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "compiler"
    path.write_text("#!/bin/sh\necho 'license expired' >&2\nexit 3\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    library, reason = load()
    assert library is None
    assert f"{path} could not build the kernels: license expired" == reason
    assert not cache.exists()


def test_a_compiler_that_fails_leaves_nothing_and_its_message_is_the_reason(
    cache: Path, compiler: Callable[[str], Path]
) -> None:
    log = compiler('echo half > "$OUT"; echo "kernels.cpp:1: no such luck" >&2; exit 1')
    library, reason = load()
    assert library is None
    assert reason.endswith("could not build the kernels: kernels.cpp:1: no such luck")
    assert left_in(cache) == []
    assert len(log.read_text().splitlines()) == 2  # with and without threads


@pytest.mark.parametrize(
    "script", [":", ': > "$OUT"', 'echo "no library" > "$OUT"', '$REAL -shared -fPIC -x c++ /dev/null -o "$OUT"']
)
def test_a_broken_library_is_not_kept_and_the_next_start_builds_anew(
    script: str, cache: Path, compiler: Callable[[str], Path]
) -> None:
    if "REAL" in script and kernels.find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    log = compiler(script)
    for start in (1, 2):
        library, reason = load()
        assert library is None
        assert "could not build the kernels: " in reason
        assert left_in(cache) == []
        assert len(log.read_text().splitlines()) == start


def test_a_compiler_that_hangs_is_given_up(
    cache: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BUILD_SECONDS", 0.2)
    compiler("echo working >&2; exec sleep 30")
    library, reason = load()
    assert library is None
    assert "timed out after 0.2 seconds" in reason
    assert left_in(cache) == []


def test_a_cache_folder_that_cannot_be_made_is_the_reason(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TDMPC2_CACHE", str(tmp_path / "file" / "cache"))
    compiler(":")
    library, reason = load()
    assert library is None
    assert str(tmp_path / "file" / "cache") in reason


@built
def test_a_library_that_computes_something_else_is_refused(cache: Path, compiler: Callable[[str], Path]) -> None:
    wrong = "s|return a \\* (h / (h + 1.0f));|return a;|"
    compiler(
        f'sed \'{wrong}\' {kernels.SOURCE} > "$OUT.cpp"; $REAL -O0 -march=native -shared -fPIC "$OUT.cpp" -o "$OUT"'
    )
    library, reason = load()
    assert library is None
    assert "compute something else than torch" in reason


@built
def test_a_compiler_without_openmp_builds_kernels_of_one_thread(cache: Path, compiler: Callable[[str], Path]) -> None:
    log = compiler(f'case "$*" in *-fopenmp*) echo "unsupported option" >&2; exit 1;; esac; {QUICKLY}')
    library, reason = load()
    assert library is not None, reason
    assert ["-fopenmp" in call for call in log.read_text().splitlines()] == [True, False]
    assert [Path(name).suffix for name in left_in(cache)] == [".so"]


@built
def test_the_cache_may_be_named_relative_to_where_one_stands(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TDMPC2_CACHE", ".")
    compiler(QUICKLY)
    library, reason = load()
    assert library is not None, reason


@built
def test_processes_that_build_at_once_all_get_the_kernels_and_later_ones_do_not_build(
    cache: Path, tmp_path: Path, compiler: Callable[[str], Path]
) -> None:
    # Each build waits for the other to have begun.
    both_began = f'until [ "$(wc -l < {tmp_path}/calls)" -ge 2 ]; do sleep 0.05; done'
    log = compiler(f"{both_began}; {QUICKLY}")
    code = (
        "import json; from tdmpc2.agent import kernels; print(json.dumps([kernels.available(), kernels.load().reason]))"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    for process in processes:
        available, reason = json.loads(process.communicate(timeout=120)[0])
        assert available, reason
    assert len(log.read_text().splitlines()) == 2
    (name,) = left_in(cache)
    assert name.endswith(".so")
    library, _ = load()
    assert library is not None
    assert len(log.read_text().splitlines()) == 2
    assert left_in(cache) == [name]


@built
def test_another_compiler_source_or_processor_means_another_file(
    cache: Path, tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [kernels._library_path(str(kernels.find_compiler()))]
    compiler(":")
    imagined = os.environ["CXX"]
    paths.append(kernels._library_path(imagined))
    assert paths[1] == kernels._library_path(imagined)
    changed = tmp_path / "changed.cpp"
    changed.write_text(kernels.SOURCE.read_text() + "\n")
    monkeypatch.setattr(kernels, "SOURCE", changed)
    paths.append(kernels._library_path(imagined))
    monkeypatch.setattr("platform.machine", lambda: "another")
    paths.append(kernels._library_path(imagined))
    assert len(set(paths)) == 4
    assert {path.parent for path in paths} == {cache}


# --- an agent where nothing can be compiled


@pytest.fixture
def no_compiler() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        kernels.load.cache_clear()
        yield
    kernels.load.cache_clear()


def test_without_a_compiler_an_agent_runs_plain_operations_and_says_so_once(
    no_compiler: None, make_agent: Callable[..., TDMPC2], make_batch: Callable[..., dict[str, torch.Tensor]]
) -> None:
    agent = make_agent()
    assert agent.execution.compile == "none"
    assert agent.execution.notice.count("running uncompiled") == 1
    assert agent.execution.notice.count("no C++ compiler found") == 1
    plain = make_agent(compile="none")
    assert plain.execution.notice == ""
    obs, batch = draw(2, 3), make_batch()
    assert torch.equal(agent.act(obs, True), plain.act(obs, True))
    losses, expected = agent.update(batch), plain.update(batch)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)


@pytest.mark.parametrize("wanted", ["kernels", "full"])
def test_without_a_compiler_asking_for_compiled_code_is_refused_with_a_way_out(
    wanted: str, no_compiler: None, make_agent: Callable[..., TDMPC2]
) -> None:
    with pytest.raises(
        UserError, match=f"^compile: {wanted} is not to be had here: no C.. compiler.*compile=none"
    ) as e:
        make_agent(compile=wanted)
    assert "\n" not in str(e.value)

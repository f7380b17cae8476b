"""Histograms: exact counts, merged exactly in any order, without waiting for the device."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qdqpatch.calibration import histogram
from qdqpatch.calibration.counting import BatchCounts
from qdqpatch.calibration.histogram import BINS, CHUNK, LARGEST_CALL, SMALLEST_EXPONENT, UNSEEN, Histogram

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def numpys(values: Tensor, exponent: int) -> np.ndarray:
    """Count in float64, where the division by a power of two is exact."""
    magnitudes = np.abs(values.detach().float().double().numpy().reshape(-1))
    counts, _ = np.histogram(magnitudes, bins=np.arange(BINS + 1) * 2.0**exponent)
    return counts


def assert_same(actual: Histogram, expected: Histogram) -> None:
    for name in ("counts", "exponent", "amax"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
        assert getattr(actual, name).dtype == getattr(expected, name).dtype, name


def random(seed: int, size: int = 3000) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


TENSORS: dict[str, Callable[[], Tensor]] = {
    "fp32": lambda: random(1),
    "fp16": lambda: random(2).half(),
    "bf16": lambda: random(3).bfloat16(),
    "fp64": lambda: random(4).double() * (1 + 2.0**-40),
    "more than a chunk": lambda: random(5, 3 * histogram.CHUNK + 17),
    "non-contiguous": lambda: random(6).reshape(3, 40, 25)[:, ::3].transpose(0, 2),
    "expanded": lambda: random(7, 5).expand(9, 5),
    "0-dim": lambda: torch.tensor(-3.7),
    "huge": lambda: random(8).clamp(-3, 3) * 1e38,
    "largest": lambda: torch.tensor([torch.finfo(torch.float32).max, -1.0, 1e30]),
    "tiny": lambda: random(9) * 1e-38,
    "smallest usual width": lambda: random(10) * 2.0**-28,
    "subnormal": lambda: torch.tensor([1e-45, -1e-42, 0.0, 1e-40]),
    "tiny beside huge": lambda: torch.tensor([1e38, 1e-38, -1e-45, 0.0]),
    "zeros": lambda: torch.zeros(5, 7),
    "constant": lambda: torch.full((100,), -0.3),
    "on the edges": lambda: torch.arange(-4096, 4096) / 8,
    "a power of two": lambda: torch.tensor([1.0, 0.5, -1.0, 0.25]),
    "just below one": lambda: torch.tensor([1 - 2.0**-24, -0.1]),
    "fp64 rounding up to a power of two": lambda: torch.tensor([1 - 2.0**-40, 0.1], dtype=torch.float64),
    "heavy tail": lambda: random(11) ** 9,
}


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_counts_are_those_of_numpy(make: Callable[[], Tensor]) -> None:
    values = make()
    found = Histogram.of(values)
    assert found.counts.tolist() == numpys(values, int(found.exponent)).tolist()
    assert found.counts.dtype == torch.int64
    assert int(found.counts.sum()) == values.numel()
    assert torch.equal(found.amax, values.float().abs().amax())
    if float(found.amax) >= 2.0 ** (SMALLEST_EXPONENT + 12):
        assert int(found.counts.nonzero().max()) >= BINS // 2, "less resolution than 2,048 bins"


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_counting_elsewhere_gives_what_counting_on_a_cpu_gives(make: Callable[[], Tensor]) -> None:
    flat = make().reshape(-1)
    on_cpu = Histogram.of(flat)
    bins_per_unit = torch.tensor(2.0 ** -int(on_cpu.exponent))
    assert torch.equal(histogram._count(flat, bins_per_unit), on_cpu.counts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_show_in_the_largest_magnitude(bad: float, dtype: torch.dtype) -> None:
    values = random(1).to(dtype)
    values[17] = bad
    total = Histogram.of(random(2))
    total.add(Histogram.of(values))
    assert float(total.amax) == float("inf")
    total.add(Histogram.of(random(3)))
    assert float(total.amax) == float("inf")


def test_fp64_beyond_fp32_counts_as_infinite() -> None:
    assert float(Histogram.of(torch.tensor([1e300], dtype=torch.float64)).amax) == float("inf")


@pytest.mark.parametrize("values", [torch.empty(0), torch.empty(3, 0, 2)])
def test_nothing_is_counted_of_nothing(values: Tensor) -> None:
    assert_same(Histogram.of(values), Histogram.empty(CPU))
    assert float(Histogram.of(values).amax) == UNSEEN


def test_hidden_zeros_are_left_out() -> None:
    values = torch.tensor([0.0, 0.0, 0.0, 1.0])
    expected = Histogram.of(values[2:])
    assert_same(Histogram.of(values, hidden_zeros=2), expected)
    assert_same(Histogram.of(values, hidden_zeros=torch.tensor(2)), expected)


# Merging.

SCALES = [0.0, 1e-38, 1e-9, 2.0**-28, 1e-3, 0.9, 1.0, 3.0, 1e6, 1e38]


@settings(derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(SCALES), st.integers(0, 99)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_merging_is_exact_in_any_order_and_partition(parts: list[tuple[float, int]], shuffle: Any) -> None:
    tensors = [random(seed, 50).clamp(-3, 3) * scale for scale, seed in parts]
    expected = Histogram.of(torch.cat(tensors))
    shuffle.shuffle(tensors)
    cut = shuffle.randint(0, len(tensors))
    left, right = (Histogram.empty(CPU) for _ in range(2))
    for total, some in ((left, tensors[:cut]), (right, tensors[cut:])):
        for tensor in some:
            total.add(Histogram.of(tensor))
    left.add(right)
    assert_same(left, expected)


def test_adding_leaves_the_other_histogram_as_it_was() -> None:
    """It may be shared by several quantizers."""
    other, before = Histogram.of(random(1)), Histogram.of(random(1))
    for scale in (1, 1e3, 1e-3):
        total = Histogram.of(random(2) * scale)
        total.add(other)
        total.add(other)
        assert_same(other, before)


def test_a_histogram_of_nothing_changes_nothing() -> None:
    for first, second in itertools.permutations([Histogram.of(random(1)), Histogram.empty(CPU)]):
        first.add(second)
        assert_same(first, Histogram.of(random(1)))


@pytest.mark.parametrize("halvings", [0, 1, 5, 12, 13, 40, 100])
def test_coarser_bins_are_sums_of_neighbours(halvings: int) -> None:
    found = Histogram.of(random(1))
    expected = np.bincount(np.arange(BINS) >> min(halvings, 13), weights=found.counts, minlength=BINS)
    assert found.coarsened(found.exponent + halvings).tolist() == expected.tolist()


@pytest.mark.parametrize("many", [2**24, 2**31, 2**40])
def test_counts_do_not_saturate(many: int) -> None:
    """The toolkit's float32 counts stop growing at 2^24, and it casts them to int32."""
    total = Histogram.of(random(1))
    total.counts *= many
    before = total.counts.clone()
    total.add(Histogram.of(random(1)))
    assert torch.equal(total.counts, before + before // many)


@pytest.mark.slow
def test_one_tensor_of_more_than_2_to_the_24_equal_values() -> None:
    values = torch.zeros(()).expand(LARGEST_CALL + 5)
    assert int(histogram._count(values, torch.tensor(1.0))[0]) == LARGEST_CALL + 5


# No waiting for the device.

WAITING = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "bincount",
    "unique",
    "is_nonzero",
    "equal",
)


class NoWaiting(TorchDispatchMode):
    """Fails on operators that wait for a device: those that give a number, or a size that depends on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in WAITING, func
        if func.overloadpacket.__name__ in ("_to_copy", "copy_"):
            assert args[0].device == torch.device((kwargs or {}).get("device") or args[0].device), func
        return func(*args, **kwargs or {})


def test_the_guard_sees_waiting() -> None:
    for wait in (lambda x: x.item(), bool, lambda x: x.nonzero(), lambda x: x[x > 0], float):
        with NoWaiting(), pytest.raises(AssertionError):
            wait(torch.ones(()))


def test_counting_waits_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        histogram, "_count_on_cpu", lambda flat, bins_per_unit, amax: histogram._count(flat, bins_per_unit)
    )
    tensors, total = [random(1), random(2).half().reshape(30, 100).T], Histogram.empty(CPU)
    with NoWaiting():
        for tensor in tensors:
            total.add(Histogram.of(tensor, hidden_zeros=0))
    expected = Histogram.of(torch.cat([tensor.float().flatten() for tensor in tensors]))
    assert_same(total, expected)


@needs_cuda
@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_counting_on_a_gpu(make: Callable[[], Tensor]) -> None:
    values = make()
    on_device, total = values.cuda(), Histogram.empty(torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        total.add(Histogram.of(on_device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = Histogram(total.counts.cpu(), total.exponent.cpu(), total.amax.cpu())
    expected = Histogram.empty(CPU)
    expected.add(Histogram.of(values))
    assert_same(found, expected)


def test_threads_share_the_counting() -> None:
    """As many chunks as do not come out even, and fewer chunks than threads."""
    generator = torch.Generator().manual_seed(4)
    for size in (4 * CHUNK + 5, CHUNK + 1, 7):
        values = torch.randn(size, generator=generator)
        expected = Histogram.of(values)
        torch.set_num_threads(3)
        try:
            found = Histogram.of(values)
        finally:
            torch.set_num_threads(1)
        assert torch.equal(found.counts, expected.counts)
        assert int(found.counts.sum()) == size


def test_a_tensor_that_is_gone_is_forgotten() -> None:
    counts = BatchCounts(None)
    kept, gone = torch.ones(3), torch.full((4,), 2.0)
    for tensor in (kept, gone):
        counts.count(tensor, "_input_quantizer", Histogram.empty(CPU))
    del tensor, gone
    assert len(counts._known) == 1

"""The order of training data."""

import torch
from torch.utils.data import DataLoader

from qdqpatch.training.sampling import POOL, LengthGroupedSampler

LENGTHS = torch.randint(1, 100, (1003,), generator=torch.Generator().manual_seed(0)).tolist()


def test_every_feature_comes_once_and_batches_are_of_like_length() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 4, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(1003))
    assert len(sampler) == 1003
    batches = [[LENGTHS[index] for index in order[start : start + 4]] for start in range(0, 1003, 4)]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in batches)
    at_random = [LENGTHS[start : start + 4] for start in range(0, 1003, 4)]
    assert padding < 0.1 * sum(max(batch) * len(batch) - sum(batch) for batch in at_random)
    longest = [max(batch) for batch in batches[:POOL]]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(LENGTHS, 4, seed)
        sampler.set_epoch(epoch)
        torch.rand(3)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_a_small_last_batch_is_the_last_one() -> None:
    sampler = LengthGroupedSampler(LENGTHS[:10], 4, seed=0)
    assert [len(batch) for batch in DataLoader(list(range(10)), batch_size=4, sampler=sampler)] == [4, 4, 2]

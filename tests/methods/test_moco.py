"""MoCo's loss, queue, momentum and shuffled BatchNorm, against loops and lightly's memory bank."""

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightly.loss import NTXentLoss
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from histo_ssl.methods.batchnorm import GhostBatchNorm
from histo_ssl.methods.moco import Queue, moco_loss


def units(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


# the loss


def test_loss_is_the_loop_of_equation_1() -> None:
    query, key, queue = units(3, 5), units(3, 5, seed=1), units(7, 5, seed=2)
    terms = []
    for b in range(3):
        own = math.exp((query[b] @ key[b]).item() / 0.2)
        others = sum(math.exp((query[b] @ queue[n]).item() / 0.2) for n in range(7))
        terms.append(-math.log(own / (own + others)))
    loss = moco_loss(query, key, queue, temperature=0.2)
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_loss_is_the_log_of_the_candidates_when_all_vectors_coincide() -> None:
    same = units(1, 4)
    loss = moco_loss(same.expand(3, 4), same.expand(3, 4), same.expand(9, 4), temperature=0.07)
    assert loss.item() == pytest.approx(math.log(10), abs=1e-5)


def test_three_steps_equal_lightlys_loss_gradient_and_memory_bank(build: Any) -> None:
    moco, _ = build("moco")
    reference = NTXentLoss(temperature=0.2, memory_bank_size=(16, 8))
    reference(units(4, 8), units(4, 8))  # makes the bank, which lightly fills at random
    reference.memory_bank.bank.copy_(moco.queue.keys_NC)
    reference.memory_bank.bank_ptr.zero_()
    for n in range(6):  # 24 keys through 16 places
        query, key = 3.0 * units(4, 8, seed=n), 2.0 * units(4, 8, seed=10 + n)
        ours, theirs = query.clone().requires_grad_(), query.clone().requires_grad_()
        moco.query.forward = lambda _, p=ours: (p.detach(), p)
        moco.key.forward = lambda _, p=key: (p, p)
        loss = moco.step([torch.empty(4, 3, 2, 2)] * 2)["loss"]
        expected = reference(theirs, key)
        loss.backward()
        expected.backward()
        moco.after_step(0.0)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(ours.grad, theirs.grad)
        torch.testing.assert_close(moco.queue.keys_NC, reference.memory_bank.bank)


def test_only_queries_learn_and_a_queue_that_moves_on_changes_no_gradient(build: Any) -> None:
    moco, views = build("moco")
    moco.step(views)["loss"].backward()
    expected = [p.grad.clone() for p in moco.query.parameters()]
    assert [p.grad for p in moco.key.parameters()] == [None] * len(expected)
    for p in moco.query.parameters():
        p.grad = None
    loss = moco.step(views)["loss"]
    moco.queue.keys_NC.copy_(units(16, 8, seed=5))
    loss.backward()
    for p, grad in zip(moco.query.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


# the queue


def test_the_queue_is_born_normalised_and_is_in_the_checkpoint(build: Any) -> None:
    moco, _ = build("moco")
    torch.testing.assert_close(moco.queue.keys_NC.norm(dim=1), torch.ones(16))
    assert {"queue.keys_NC", "queue.n_enqueued"} <= moco.state_dict().keys()


def test_new_keys_take_the_places_of_the_oldest() -> None:
    queue = Queue(6, 1)
    for n in range(4):
        queue.enqueue(torch.tensor([[2.0 * n], [2.0 * n + 1]]))
    assert queue.keys_NC.flatten().tolist() == [6.0, 7.0, 2.0, 3.0, 4.0, 5.0]
    assert queue.n_enqueued.item() == 8


def test_keys_are_enqueued_after_the_loss_and_normalised(build: Any) -> None:
    moco, views = build("moco")
    born = moco.queue.keys_NC.clone()
    with torch.no_grad():
        keys = F.normalize(moco.key(views[1])[1], dim=1)
    out = moco.step(views)
    assert torch.equal(moco.queue.keys_NC, born)
    with torch.no_grad():
        expected = moco_loss(F.normalize(moco.query(views[0])[1], dim=1), keys, born, temperature=0.2)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    moco.after_step(0.0)
    torch.testing.assert_close(moco.queue.keys_NC[:4], keys)
    assert torch.equal(moco.queue.keys_NC[4:], born[4:])


def test_a_queue_of_another_length_is_refused_with_the_nearest(build: Any, fit: Any) -> None:
    moco, views = build("moco", "method.queue.n_keys=18")
    with pytest.raises(ValueError, match=r"n_keys=18 is no multiple of the 4 keys .* such as 16") as error:
        moco.step(views)
    assert "\n" not in str(error.value)
    moco, _ = build("moco", "method.queue.n_keys=12")
    with pytest.raises(
        ValueError, match=r"no multiple of the 8 keys that a step brings: choose one, such as 16"
    ):
        fit(moco, max_steps=1, accumulate=2, sides=(32, 32))


def test_accumulated_batches_are_enqueued_together_and_move_the_keys_encoder_once(
    build: Any, fit: Any
) -> None:
    moco, _ = build("moco")
    before, keys = weights(moco.key), []
    moco.key.register_forward_hook(lambda _, __, out: keys.append(F.normalize(out[1], dim=1)))
    fit(moco, max_steps=1, accumulate=2, sides=(32, 32))
    torch.testing.assert_close(moco.queue.keys_NC[:8], torch.cat(keys))
    assert moco.queue.n_enqueued.item() == 8
    for old, new, query in zip(before, weights(moco.key), weights(moco.query), strict=True):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * query)


def test_the_key_encoder_has_moved_before_it_makes_the_next_keys(build: Any, fit: Any) -> None:
    class Diary(Callback):
        def __init__(self) -> None:
            self.key: list[list[Tensor]] = []
            self.query: list[list[Tensor]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            self.key.append(weights(module.key))
            self.query.append(weights(module.query))

    moco, diary = build("moco", "method.optim.warmup=0.0")[0], Diary()
    fit(moco, max_steps=3, callbacks=[diary], sides=(32, 32))
    assert not torch.equal(diary.query[1][0], diary.query[0][0])
    for n in (1, 2):  # theta_k of eq. 2, with the query encoder as the last step has left it
        for old, new, query in zip(diary.key[n - 1], diary.key[n], diary.query[n], strict=True):
            torch.testing.assert_close(new, 0.99 * old + 0.01 * query)


# BatchNorm: a query must not share its tiles' statistics with its key


def test_keys_are_made_in_another_order_and_come_back_in_theirs(build: Any) -> None:
    moco, views = build("moco", backbone="test_resnet")
    seen: list[Tensor] = []
    moco.key.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    moco.key.eval()  # without statistics of the batch a tile's key does not depend on its neighbours
    with torch.no_grad():
        keys = moco._all_keys(views[1])
        expected = F.normalize(moco.key(views[1])[1], dim=1)
    order = [next(i for i in range(4) if torch.equal(tile, views[1][i])) for tile in seen[0]]
    assert sorted(order) == [0, 1, 2, 3]
    assert order != [0, 1, 2, 3]
    torch.testing.assert_close(keys, expected)


def test_each_step_has_its_own_order_and_the_same_one_when_it_is_repeated(build: Any) -> None:
    moco, views = build("moco", backbone="test_resnet")
    seen: list[Tensor] = []
    moco.key.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    steps = [0, 1, 2, 3, 1]
    kind = type(moco)
    for step in steps:
        subclass = type("At", (kind,), {"global_step": property(lambda _, n=step: n)})
        moco.__class__ = subclass
        torch.manual_seed(step)  # as the ranks of one step have seeds of their own
        with torch.no_grad():
            moco._all_keys(views[1])
    assert torch.equal(seen[1], seen[4])
    assert len({tuple(x.flatten(1).sum(1).tolist()) for x in seen}) > 1


def test_statistics_are_those_of_groups_or_of_all_tiles_as_asked(build: Any) -> None:
    grouped, views = build("moco", backbone="test_resnet")
    whole, _ = build("moco", "method.norm_tiles=null", backbone="test_resnet")
    whole.load_state_dict(grouped.state_dict())
    assert sum(isinstance(m, GhostBatchNorm) for m in grouped.modules()) > 0
    assert not any(isinstance(m, GhostBatchNorm) for m in whole.modules())
    with torch.no_grad():
        pairs = torch.cat([whole.query(x)[1] for x in views[0].split(2)])
        torch.testing.assert_close(grouped.query(views[0])[1], pairs)
    assert (grouped.is_shuffled, whole.is_shuffled) == (True, False)


class Brightness(nn.Module):
    """The mean of each channel, normalised."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mean(dim=(2, 3)))


def test_what_a_querys_group_has_in_common_is_not_taken_out_of_its_keys(tiny_method: Any) -> None:
    """The leak of section 3.3: BatchNorm hides what a group shares from queries; keys must still show it."""
    torch.manual_seed(0)
    moco = instantiate(
        tiny_method("moco", "method.norm_tiles=4")["method"],
        backbone=lambda **_: Brightness(),
        _convert_="all",
    )
    view = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    brighter = view + 4.0 * (torch.arange(16) < 4).view(16, 1, 1, 1)  # the first of four groups
    torch.testing.assert_close(moco.query(brighter)[1], moco.query(view)[1], rtol=1e-2, atol=1e-3)
    with torch.no_grad():
        assert (moco._all_keys(brighter) - moco._all_keys(view)).abs().max() > 0.1


def test_groups_of_one_and_groups_that_do_not_divide_the_batch_are_refused(build: Any) -> None:
    with pytest.raises(InstantiationException, match=r"norm_tiles=1: BatchNorm needs 2 tiles or more"):
        build("moco", "method.norm_tiles=1")
    moco, views = build("moco", "method.norm_tiles=3", backbone="test_resnet")
    with pytest.raises(ValueError, match=r"norm_tiles=3 does not divide the 4 tiles"):
        moco.step(views)


# a stale queue


def test_the_gap_is_the_newest_quarters_cosine_less_the_oldests_once_the_queue_is_full() -> None:
    queue, query = Queue(8, 2), torch.tensor([[1.0, 0.0]])
    old, new = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.6, 0.8]])
    queue.enqueue(old.expand(4, 2))
    assert queue.gap(query).item() == 0.0
    queue.enqueue(new.expand(4, 2))
    assert queue.gap(query).item() == pytest.approx(0.6)
    queue.enqueue(torch.tensor([[1.0, 0.0]]).expand(2, 2))  # over the oldest
    assert queue.gap(query).item() == pytest.approx(1.0)  # what is left of the old ones has come to the end


def test_a_stale_queue_is_named(build: Any, fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    moco, _ = build("moco")
    moco.is_shuffled = False
    angle = iter(range(100))

    def turning(_: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tensor(0.4 * next(angle))  # an encoder that turns all its keys from step to step
        p = torch.stack([a.cos(), a.sin(), *[torch.zeros(())] * 6]).expand(4, 8)
        return torch.eye(4, 8), p + 0.05 * torch.eye(4, 8)

    moco.key.forward = turning
    query = moco.query.forward
    moco.query.forward = lambda x: (
        query(x)[0],
        moco.queue.keys_NC[moco.queue._places()[-4:]] + 0 * query(x)[1],
    )
    with caplog.at_level(logging.WARNING):
        fit(moco, max_steps=10, sides=(32, 32))
    named = [message for message in caplog.messages if message.startswith("stale queue")]
    assert len(named) == 1
    assert "lower method.queue.n_keys" in named[0]

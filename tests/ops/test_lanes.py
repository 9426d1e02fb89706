"""Blocks are planned whole and fairly, and lanes compute what one thread computes."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from deepvit.ops import blocking, lanes, reattention
from tests.ops.test_agreement import assert_close, cancelled, problem, run, truth


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("lane_count", [1, 2, 3, 16])
@pytest.mark.parametrize(
    "shape", [(1, 12, 1025), (3, 12, 577), (8, 12, 197), (94, 12, 17), (5, 1, 1), (1, 3, 7)], ids=str
)
def test_every_entry_is_in_one_block(shape, lane_count):
    batch, heads, tokens = shape
    shares = blocking.plan(batch, heads, tokens, 4, "cpu", lane_count)
    assert 1 <= len(shares) <= lane_count
    blocks = [block for share in shares for block in share]
    assert [block.number for block in blocks] == list(range(len(blocks)))
    seen = torch.zeros(batch, tokens)
    for block in blocks:
        seen[block.images, block.rows] += 1
    assert (seen == 1).all()
    largest = max((b.images.stop - b.images.start) * (b.rows.stop - b.rows.start) for b in blocks)
    assert largest * heads * tokens * 4 <= blocking._BUFFER_BYTES + 4 * heads * tokens
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("lane_count", [1, 2, 3, 16])
@pytest.mark.parametrize(
    "shape", [(1, 12, 1025), (3, 12, 577), (8, 12, 197), (94, 12, 17), (5, 3, 1), (1, 3, 7)], ids=str
)
def test_every_row_is_in_one_piece(shape, lane_count):
    batch, heads, tokens = shape
    shares = blocking.share_rows(batch, heads, tokens, lane_count)
    assert 1 <= len(shares) <= lane_count
    seen, loads = torch.zeros(batch, tokens), []
    for share in shares:
        for piece in share:
            seen[piece.images, piece.rows] += 1
            assert piece.whole == (piece.rows == slice(0, tokens))
            assert piece.whole or piece.images.stop - piece.images.start == 1
        loads.append(sum((p.images.stop - p.images.start) * (p.rows.stop - p.rows.start) for p in share))
    assert (seen == 1).all()
    assert max(loads) - min(loads) <= (tokens if batch >= 8 * len(shares) else 1)


def test_work_too_small_to_hand_over_stays_with_the_caller():
    assert len(blocking.plan(32, 4, 17, 4, "cpu", 16)) == 1
    assert len(blocking.plan(32, 12, 65, 4, "cpu", 2)) == 2


# 577 tokens: the rows of one image are shared by two lanes, so that dk and dv have a part from each
@pytest.mark.parametrize(("backend", "dropout_p"), [("streaming", 0.0), ("streaming", 0.2), ("native", 0.0)])
@pytest.mark.parametrize("batch", [1, 3])
def test_lanes_give_what_one_thread_gives(backend, batch, dropout_p, two_threads):
    leaves, buffers, grad = problem(577, 16, 6, torch.float32, fresh=False, batch=batch)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        results.append(run(backend, leaves, buffers, grad, training=True, dropout_p=dropout_p))
    if dropout_p == 0:  # which mask a row gets depends on the blocks
        assert_close(*results, 2e-6, cancelled(577, 6, True))
        assert_close(results[0], truth(leaves, buffers, grad, training=True), 1e-5, cancelled(577, 6, True))
    torch.set_num_threads(2)
    torch.manual_seed(0)
    again = run(backend, leaves, buffers, grad, training=True, dropout_p=dropout_p)
    assert all(torch.equal(again[name], x) for name, x in results[0].items())


def test_lanes_leave_the_thread_settings_alone(two_threads):
    seen = lanes.run(lambda _: (torch.get_num_threads(), lanes.count("cpu"), threading.get_ident()), range(2))
    assert [x[:2] for x in seen] == [(1, 1), (1, 1)]
    assert threading.get_ident() not in [x[2] for x in seen]
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_an_error_in_a_lane_reaches_the_caller(two_threads):
    def fail(share):
        if share:
            raise ValueError(f"share {share}")

    with pytest.raises(ValueError, match="share 1"):
        lanes.run(fail, range(2))


@pytest.mark.parametrize("backend", ["streaming", "native"])
def test_inference_mode_and_ordinary_mode_share_memory(backend, two_threads):
    q, k, v = torch.randn(3, 2, 12, 197, 16).unbind(0)
    theta = torch.randn(12, 12)
    with torch.inference_mode():
        first = reattention(q, k, v, theta, norm="none", backend=backend)
    assert torch.equal(first, reattention(q, k, v, theta, norm="none", backend=backend))


@pytest.mark.parametrize("backend", ["streaming", "native"])
def test_a_mode_that_counts_operations_sees_them_all(backend, two_threads):
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = torch.randn(3, 2, 12, 197, 16).unbind(0)
    with FlopCounterMode(display=False) as counter:
        reattention(q, k, v, torch.randn(12, 12), norm="none", backend=backend)
    # two products with the head width, and the mixing
    assert counter.get_total_flops() == 2 * 12 * 197**2 * (2 * 2 * 16 + 2 * 12)


def test_released_lanes_come_back(two_threads):
    assert lanes.run(int, range(2)) == [0, 1]
    lanes.scratch("x", 8, torch.float32, torch.device("cpu"))
    before = threading.active_count()
    lanes.release()
    assert threading.active_count() == before - 2
    assert "held" not in lanes._own.__dict__
    assert lanes.run(int, range(2)) == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_lanes(two_threads):
    lanes.run(int, range(2))
    child = os.fork()
    if child == 0:
        os._exit(0 if lanes._pool is None and lanes.run(int, range(2)) == [0, 1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Dropout with cheap draws: shares, means, randomness and gradients."""

import pytest
import torch

from afa.ops import attention
from afa.ops.attention import attend
from afa.ops.dropout import draw_dropped, drop


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_mean(probability: float) -> None:
    torch.manual_seed(3)
    values = torch.ones(333, 301, requires_grad=True)  # no multiple of 4
    found = drop(values, probability)
    kept = found != 0
    deviation = (probability * (1 - probability) / values.numel()) ** 0.5
    assert float(kept.float().mean()) == pytest.approx(1 - probability, abs=5 * deviation + 1e-5)
    assert found[kept].unique().tolist() == pytest.approx([1 / (1 - probability)], rel=2e-4)
    found.sum().backward()
    assert values.grad is not None and torch.equal(values.grad, found.detach())


def test_draws_are_those_of_the_state_of_randomness_and_independent() -> None:
    torch.manual_seed(3)
    first, _ = draw_dropped((1000, 400), 0.25)
    second, _ = draw_dropped((1000, 400), 0.25)
    torch.manual_seed(3)
    again, _ = draw_dropped((1000, 400), 0.25)
    assert torch.equal(first, again) and not torch.equal(first, second)
    # Of two values of one number of 64 bits, of neighbouring rows, and of two draws, a sixteenth is dropped together.
    for one, other in ((first[:, ::2], first[:, 1::2]), (first[::2], first[1::2]), (first, second)):
        together = float((one & other).float().mean())
        assert together == pytest.approx(1 / 16, abs=5 * (1 / 16 / one.numel()) ** 0.5)


@pytest.mark.parametrize("at_once", [2**21, 90])
def test_attention_drops_a_share_of_its_probabilities(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """90: some queries of one head at a time."""
    monkeypatch.setattr(attention, "AT_ONCE", at_once)
    torch.manual_seed(3)
    query, key = torch.randn(3, 2, 60, 8), torch.randn(3, 2, 40, 8)
    value = torch.eye(40).expand(3, 2, 40, 40)  # what comes out are the probabilities
    plain = attend(query, key, value)
    dropped, others = attend(query, key, value, dropout=0.3), attend(query, key, value, dropout=0.3)
    kept = dropped != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / kept.numel()) ** 0.5 + 1e-5)
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.7, rtol=1e-4, atol=1e-6)
    # Images, heads, rows and calls have draws of their own.
    for one, other in (
        (kept, others != 0),
        (kept[0], kept[1]),
        (kept[:, 0], kept[:, 1]),
        (kept[:, :, 1:], kept[:, :, :-1]),
    ):
        together = float((one & other).float().mean())
        assert together == pytest.approx(0.49, abs=5 * (0.49 * 0.51 / one.numel()) ** 0.5)

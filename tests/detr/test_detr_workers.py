from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from deform_attn.detr.workers import add_gradients, replicate, share, worker_threads


def test_shares_are_even_complete_and_never_empty() -> None:
    assert share(range(7), 3) == [range(2), range(2, 4), range(4, 7)]
    assert share(range(2), 3) == [range(1), range(1, 2)]


@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_gradients_of_the_parts_add_up_to_those_of_the_whole(pictures: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(pictures, 4)
    model, whole = nn.Linear(4, 3), nn.Linear(4, 3)
    whole.load_state_dict(model.state_dict())
    expected = whole(inputs).square().mean()
    expected.backward()

    def loss(replica: nn.Module, part: Sequence[int]) -> Tensor:
        value = replica(inputs[list(part)]).square().mean()
        return torch.stack([value, 2 * value.detach()])

    replicas = replicate(model, 2)
    with worker_threads(2) as executor:
        for _ in range(2):  # the second time, gradients of the first must be gone from the replicas
            model.zero_grad()
            losses = add_gradients(executor, replicas, share(range(pictures), 2), loss)
    torch.testing.assert_close(losses, torch.stack([expected, 2 * expected]).detach())
    for parameter, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_replicas_share_values_but_not_buffers() -> None:
    model = nn.BatchNorm1d(3)
    _, replica = replicate(model, 2)
    with torch.no_grad():
        model.weight.fill_(7)
    replica(torch.randn(5, 3))
    assert replica.weight.tolist() == [7, 7, 7]
    assert isinstance(model.running_mean, Tensor)
    assert model.running_mean.tolist() == [0, 0, 0]


def test_an_error_in_a_worker_reaches_the_caller_and_torchs_threads_are_given_back() -> None:
    before = torch.get_num_threads()

    def loss(replica: nn.Module, part: Sequence[int]) -> Tensor:
        raise ValueError(f"no picture {part[0]}")

    with pytest.raises(ValueError, match="no picture 0"), worker_threads(2) as executor:
        add_gradients(executor, replicate(nn.Linear(2, 2), 2), share(range(4), 2), loss)
    assert torch.get_num_threads() == before

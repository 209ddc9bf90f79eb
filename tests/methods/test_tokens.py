"""The tokens of a micro-batch: means over all ranks with their gradient, and rewards per prompt."""

import pytest
import torch

from canon_trl.tokens import Tokens, token_mean


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_mean_and_gradient_do_not_depend_on_the_ranks(ranks):
    tokens = Tokens.example(responses=8, tokens=5)
    whole = tokens.entropies.detach().requires_grad_()
    token_mean(whole**2, tokens.mask).backward()
    rows = torch.arange(8).chunk(ranks)
    total = torch.tensor([(whole.detach() ** 2 * tokens.mask).sum(), tokens.mask.sum(), ranks], dtype=torch.float64)
    gradients, means, given = [], [], []
    for part in rows:
        here = whole.detach()[part].requires_grad_()
        rank = Tokens.example(responses=8, tokens=5, reduce=lambda local: given.append(local) or total)
        mean = rank.mean(here**2, tokens.mask[part])
        mean.backward()
        means.append(mean.item())
        gradients.append(here.grad / ranks)  # as DDP averages
    assert means == pytest.approx([token_mean(whole**2, tokens.mask).item()] * ranks)
    assert len(set(means)) == 1
    torch.testing.assert_close(torch.stack(given).sum(dim=0), total)  # the sum of the ranks' parts
    torch.testing.assert_close(torch.cat(gradients), whole.grad)


def test_the_mean_of_no_tokens_is_0_without_a_gradient():
    tokens = Tokens.example()
    for mean in (token_mean, tokens.mean):
        values = torch.full((2, 3), torch.nan, requires_grad=True)
        nothing = mean(values, torch.zeros(2, 3, dtype=torch.bool))
        nothing.backward()
        assert nothing.item() == 0
        assert (values.grad == 0).all()


def test_prompt_rewards_list_each_prompt_once():
    tokens = Tokens.example(responses=6, group=3)
    assert torch.equal(tokens.prompt_rewards.flatten(), tokens.rewards)
    assert tokens.prompt_rewards.shape == (2, 3)

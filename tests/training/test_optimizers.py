"""Optimisers: Muon's pair moves matrices and vectors each as its own optimiser would."""

import pytest
import torch
from torch import nn

from realcustom.training.config import OptimizerSettings
from realcustom.training.optimizers import Muon, adamw, muon

SETTINGS = OptimizerSettings(learning_rate=1e-2, betas=(0.9, 0.99), weight_decay=0.1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False))


def steps(net, optimizer, count):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        optimizer.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()


def test_vectors_move_as_under_adamw_and_matrices_by_orthogonal_steps():
    plain, paired = network(), network()
    before = {name: tensor.clone() for name, tensor in paired.named_parameters()}
    steps(plain, adamw(dict(plain.named_parameters()), SETTINGS), 1)
    steps(paired, muon(dict(paired.named_parameters()), SETTINGS), 1)
    for (name, one), two in zip(plain.named_parameters(), paired.parameters(), strict=True):
        if one.dim() != 2:
            assert torch.equal(one, two), name
            continue
        kept = (1 - SETTINGS.learning_rate * SETTINGS.weight_decay) * before[name]
        moved = (two.detach() - kept) / SETTINGS.learning_rate
        singular = torch.linalg.svdvals(moved).detach() / (0.2 * max(moved.shape) ** 0.5)
        # The normed inputs have no mean, so that one direction of the first matrix has no gradient.
        assert float(singular[min(moved.shape) - (name != "2.weight") - 1]) > 0.5, name
        assert float(singular.max()) < 1.4, name


def test_loaded_state_goes_on_alike():
    one, two = network(), network()
    first, second = (muon(dict(net.named_parameters()), SETTINGS) for net in (one, two))
    steps(one, first, 4)
    steps(two, second, 2)
    again = muon(dict(two.named_parameters()), SETTINGS)
    again.load_state_dict(second.state_dict())
    steps(two, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_muon_needs_matrices_and_others():
    with pytest.raises(ValueError, match="AdamW"):
        muon({"bias": nn.Parameter(torch.zeros(3))}, SETTINGS)


def test_matrices_move_as_under_torch_and_kernels_as_the_matrices_they_are():
    torch.manual_seed(0)
    matrix = torch.randn(6, 27)
    ours, theirs, kernel = (
        nn.Parameter(matrix.clone()),
        nn.Parameter(matrix.clone()),
        nn.Parameter(matrix.view(6, 3, 3, 3).clone()),
    )
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    optimizers = [Muon([tensor], learning_rate=1e-2, momentum=0.9, weight_decay=0.1) for tensor in (ours, kernel)] + [
        torch.optim.Muon([theirs], lr=1e-2, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ]
    for _ in range(3):
        gradient = torch.randn(6, 27)
        ours.grad, theirs.grad, kernel.grad = gradient, gradient.clone(), gradient.view(6, 3, 3, 3).clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, kernel.flatten(1))


def test_embeddings_move_as_under_adamw():
    torch.manual_seed(0)
    parameters = {
        "token_embedding.weight": nn.Parameter(torch.randn(7, 5)),
        "linear.weight": nn.Parameter(torch.randn(5, 5)),
    }
    alone = nn.Parameter(parameters["token_embedding.weight"].detach().clone())
    optimizer, plain = muon(parameters, SETTINGS), adamw({"alone": alone}, SETTINGS)
    for tensor in parameters.values():
        tensor.grad = torch.ones_like(tensor)
    alone.grad = torch.ones_like(alone)
    optimizer.step()
    plain.step()
    assert torch.equal(alone, parameters["token_embedding.weight"])

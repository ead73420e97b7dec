"""The chunked loss and its gradients, against torch.nn.functional.cross_entropy on the whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgpt.config import ModelConfig
from dgpt.model.gpt import Head
from dgpt.model.init import build_model
from dgpt.model.loss import IGNORE, linear_cross_entropy

N, C, V = 23, 16, 37


def example(dtype: torch.dtype = torch.float32, ignored: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[:ignored] = IGNORE
    return hidden, weight, targets


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    counted = targets != IGNORE
    squares = logits.logsumexp(dim=1).square() * counted
    return F.cross_entropy(logits, targets) + z_loss * squares.sum() / counted.sum()


@pytest.mark.parametrize("chunk_tokens", [1, 5, 23, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("ignored", [0, 9])
def test_loss_and_gradients_equal_the_naive_formula(chunk_tokens: int, z_loss: float, ignored: int) -> None:
    hidden, weight, targets = example(ignored=ignored)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens, z_loss=z_loss)
    expected = naive(hidden, weight, targets, z_loss)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(3 * loss, (hidden, weight))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradcheck_in_fp64(z_loss: float) -> None:
    hidden, weight, targets = example(torch.float64, ignored=3)
    torch.testing.assert_close(
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=4, z_loss=z_loss),
        naive(hidden, weight, targets, z_loss), atol=1e-13, rtol=1e-13,
    )  # fmt: skip
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, chunk_tokens=4, z_loss=z_loss), (hidden, weight)
    )


def test_bf16_is_as_close_to_fp32_as_the_whole_logits_in_bf16() -> None:
    exact_hidden, exact_weight, targets = example()
    exact = torch.autograd.grad(naive(exact_hidden, exact_weight, targets), (exact_hidden, exact_weight))
    hidden, weight, _ = example(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=4)
    assert loss.dtype == torch.float32
    whole = naive(hidden, weight, targets)
    torch.testing.assert_close(loss, whole, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(loss, (hidden, weight))
    theirs = torch.autograd.grad(whole, (hidden, weight))
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - truth).norm() <= 1.2 * (other - truth).norm() + 1e-3 * truth.norm()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = example()
    loss = linear_cross_entropy(hidden * 1000, weight, targets, chunk_tokens=7)
    torch.testing.assert_close(loss, naive(hidden * 1000, weight, targets))


def test_no_counted_target_gives_zero_loss_and_zero_gradient() -> None:
    hidden, weight, targets = example(ignored=N)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=4)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_only_what_needs_a_gradient_costs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = example()
    products = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(1) or real(*a, **k))
    with torch.no_grad():
        quiet = linear_cross_entropy(hidden, weight, targets, chunk_tokens=N)
    assert not products
    assert not quiet.requires_grad
    assert quiet == linear_cross_entropy(hidden, weight, targets, chunk_tokens=N)
    assert products


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_the_loss_of_a_model_is_the_cross_entropy_of_its_logits(shape: str) -> None:
    config = ModelConfig(shape=shape, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, seq_len=12, vocab_size=50)
    model = build_model(config, seed=0, device=torch.device("cpu"))
    tokens = torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 4:] = IGNORE
    model.head.chunk_tokens = 7
    loss = model(inputs, targets)
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_an_evaluation_measures_no_z_loss() -> None:
    head = Head(ModelConfig(n_layer=1, n_head=1, n_embd=6, vocab_size=11))
    torch.nn.init.normal_(head.weight)
    x, targets = torch.randn(2, 3, 6), torch.randint(11, (2, 3))
    plain = head(x, targets)
    head.z_loss = 0.1
    assert head(x, targets) > plain
    assert head.eval()(x, targets) == plain

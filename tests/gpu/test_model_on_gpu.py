"""The model on a GPU, in bf16 and fp32, against the CPU in fp32."""

import copy

import pytest
import torch
from torch import Tensor

from dgpt.config import ModelConfig
from dgpt.model.generate import generate
from dgpt.model.gpt import GPT
from dgpt.model.init import build_model
from dgpt.model.sampling import Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

T = 256
GPT2 = ModelConfig(n_layer=3, n_head=4, n_embd=256, seq_len=T, vocab_size=500, init_std=0.05)
LLAMA = ModelConfig(shape="llama", n_layer=3, n_head=4, n_kv_head=2, n_embd=256, seq_len=T, vocab_size=500,
                    init_std=0.05)  # fmt: skip


@pytest.fixture(params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return build_model(request.param, seed=0, device=torch.device("cpu"))


def some_tokens(rows: int) -> Tensor:
    return torch.randint(500, (rows, T), generator=torch.Generator().manual_seed(0))


def on_gpu(model: GPT, dtype: torch.dtype) -> GPT:
    return copy.deepcopy(model).to("cuda", dtype)


@torch.no_grad()
def relative_error(x: Tensor, reference: Tensor) -> float:
    return ((x.float().cpu() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_logits_loss_and_gradients_equal_those_of_the_cpu(model: GPT, dtype: torch.dtype, tolerance: float) -> None:
    tokens = some_tokens(2)
    twin = on_gpu(model, dtype)
    assert relative_error(twin(tokens.cuda()), model(tokens)) < tolerance
    model(tokens, tokens.roll(-1, 1)).backward()
    loss = twin(tokens.cuda(), tokens.roll(-1, 1).cuda())
    loss.backward()
    for (name, ours), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        if theirs.grad.norm() > 1e-6:  # a bias of the keys moves all scores alike: its gradient is rounding alone
            assert relative_error(ours.grad, theirs.grad) < 3 * tolerance, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_packed_documents_equal_each_alone(model: GPT, dtype: torch.dtype, tolerance: float) -> None:
    lengths = [100, 1, 155]
    tokens = some_tokens(1).cuda()
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None].cuda()
    twin = on_gpu(model, dtype)
    packed = twin(tokens, documents=documents)
    alone = torch.cat([twin(part) for part in tokens.split(lengths, dim=1)], dim=1)
    assert relative_error(packed, alone.float().cpu()) < tolerance


def test_greedy_tokens_equal_those_of_the_cpu(model: GPT) -> None:
    prompts = [[1, 2, 3], [4], list(range(100))]
    sampling = Sampling(max_new_tokens=20, temperature=0)
    ours = [sample.tokens for sample in generate(on_gpu(model, torch.float32), prompts, sampling)]
    assert ours == [sample.tokens for sample in generate(model, prompts, sampling)]

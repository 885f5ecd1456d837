"""The policy scores packed rows exactly as Hugging Face scores each sequence alone."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import CwmConfig, CwmForCausalLM, LlamaConfig, LlamaForCausalLM

from rl import policy as policy_module
from rl.attention_mask import Layout, blocks, visibility
from rl.policy import Policy

VOCAB = 97


def llama(*, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def cwm() -> CwmForCausalLM:
    torch.manual_seed(0)
    config = CwmConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention"] * 2,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e6,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    return CwmForCausalLM(config)


Documents = Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]
"""Prompt and responses of each document."""


def random_documents(*shapes: tuple[int, Sequence[int]]) -> Documents:
    """One document for each (prompt length, response lengths)."""
    draw = np.random.default_rng(3)
    return [
        (draw.integers(0, VOCAB, prompt).tolist(), [draw.integers(0, VOCAB, n).tolist() for n in lengths]) for prompt, lengths in shapes
    ]


def lay_out(documents: Documents, *, per_row: int = 1, padding: int = 0) -> tuple[torch.Tensor, ...]:
    """The six tensors of a micro-batch with so many documents a row; a response's last token is a target only."""
    rows = [documents[i : i + per_row] for i in range(0, len(documents), per_row)]
    length = padding + max(sum(len(prompt) + sum(len(r) - 1 for r in responses) for prompt, responses in row) for row in rows)
    tokens, positions = torch.zeros(len(rows), length, dtype=torch.int64), torch.zeros(len(rows), length, dtype=torch.int64)
    segments, inside = (torch.full((len(rows), length), -1, dtype=torch.int32) for _ in range(2))
    source, targets = [], []
    for b, row in enumerate(rows):
        end = 0
        for d, (prompt, responses) in enumerate(row):
            start, end = end, end + len(prompt)
            last = b * length + end - 1  # of the prompt
            tokens[b, start:end], positions[b, start:end], segments[b, start:end] = torch.tensor(prompt), torch.arange(len(prompt)), 0
            for segment, response in enumerate(responses, start=1):
                n = len(response) - 1
                tokens[b, end : end + n] = torch.tensor(response[:-1], dtype=torch.int64)
                positions[b, end : end + n] = torch.arange(len(prompt), len(prompt) + n)
                segments[b, end : end + n] = segment
                source += [last, *range(b * length + end, b * length + end + n)]
                targets += response
                end += n
            inside[b, start:end] = d
    return tokens, positions, segments, inside, torch.tensor(source), torch.tensor(targets)


def one_by_one(model: torch.nn.Module, documents: Documents) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs and entropies of all response tokens by Hugging Face's own forward on each sequence."""
    logprobs, entropies = [], []
    for prompt, responses in documents:
        for response in responses:
            ids = torch.tensor([[*prompt, *response]])
            logp = torch.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float(), dim=-1)
            logprobs.append(logp.gather(1, torch.tensor(response)[:, None])[:, 0])
            entropies.append(-(logp.exp() * logp).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


DOCUMENTS = random_documents((9, (7, 1, 12)), (3, (4,)), (6, (9, 9)))


@pytest.mark.parametrize("make", [llama, lambda: llama(tied=False), cwm], ids=["llama-tied", "llama-untied", "cwm"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("chunk", "per_row"), [(4, 1), (1000, 1), (7, 2), (7, 3)])
def test_packed_rows_score_like_separate_sequences(make, attention: str, chunk: int, per_row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    expected_logprobs, expected_entropies = one_by_one(model, DOCUMENTS)
    monkeypatch.setattr(policy_module, "EAGER_SCORES", 1 << 60 if attention == "eager" else 0)
    logprobs, entropies = Policy(model, chunk=chunk)(*lay_out(DOCUMENTS, per_row=per_row, padding=2))
    assert logprobs.dtype == entropies.dtype == torch.float32
    assert not entropies.requires_grad
    assert torch.allclose(logprobs, expected_logprobs, atol=1e-5)
    assert torch.allclose(entropies, expected_entropies, atol=1e-5)


@pytest.mark.parametrize("make", [llama, lambda: llama(tied=False), cwm], ids=["llama-tied", "llama-untied", "cwm"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_the_full_forward(make, checkpointing: bool) -> None:
    model, twin = make(), make()
    coefficients = torch.randn(sum(len(r) for _, responses in DOCUMENTS for r in responses), generator=torch.Generator().manual_seed(1))
    (one_by_one(model, DOCUMENTS)[0] * coefficients).sum().backward()
    policy = Policy(twin, chunk=5, checkpointing=checkpointing).train()
    (policy(*lay_out(DOCUMENTS, per_row=2))[0] * coefficients).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in policy.named_parameters():
        assert torch.allclose(parameter.grad, expected.pop(Policy.hf_name(name)), atol=1e-4), name
    assert not expected


def test_a_sample_sees_neither_its_siblings_nor_the_future() -> None:
    model = cwm()
    policy = Policy(model, chunk=8)
    (prompt, (first, *others)), *rest = DOCUMENTS
    before = policy(*lay_out(DOCUMENTS))[0][: len(first)]
    changed = [(prompt, [first, *[[(t + 1) % VOCAB for t in other] for other in others]]), *rest]
    assert torch.equal(policy(*lay_out(changed))[0][: len(first)], before)
    later = [(prompt, [[*first[:4], *[(t + 1) % VOCAB for t in first[4:]]], *others]), *rest]
    assert torch.equal(policy(*lay_out(later))[0][:4], before[:4])


def test_a_document_changes_nothing_in_the_others_of_its_row() -> None:
    policy = Policy(cwm(), chunk=8)
    before = policy(*lay_out(DOCUMENTS, per_row=3))[0]
    ends = np.cumsum([0, *(sum(map(len, responses)) for _, responses in DOCUMENTS)])
    for d in range(len(DOCUMENTS)):
        prompt, responses = DOCUMENTS[d]
        other = ([(t + 1) % VOCAB for t in prompt], [[(t + 1) % VOCAB for t in response] for response in responses])
        after = policy(*lay_out([*DOCUMENTS[:d], other, *DOCUMENTS[d + 1 :]], per_row=3))[0]
        same = [torch.equal(after[start:stop], before[start:stop]) for start, stop in itertools.pairwise(ends)]
        assert same == [i != d for i in range(len(DOCUMENTS))]


def test_sliding_window_is_counted_in_positions_of_the_own_sequence() -> None:
    layout = Layout(
        positions_BL=torch.tensor([[0, 1, 2, 3, 4, 3, 4, 0, 1, 0]]),
        segments_BL=torch.tensor([[0, 0, 0, 1, 1, 2, 2, 0, 1, -1]]),
        documents_BL=torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 1, -1]]),
    )
    seen = visibility(layout, window=3)[0]
    assert seen[6].nonzero().flatten().tolist() == [2, 5, 6]
    assert seen[4].nonzero().flatten().tolist() == [2, 3, 4]
    assert seen[2].nonzero().flatten().tolist() == [0, 1, 2]
    assert seen[8].nonzero().flatten().tolist() == [7, 8]
    assert seen[9].nonzero().flatten().tolist() == [9]


@pytest.mark.parametrize("window", [None, 5])
def test_the_blocks_of_the_gpu_kernel_hold_the_same_rule(window: int | None) -> None:
    tokens, positions, segments, documents, *_ = lay_out(DOCUMENTS, per_row=2, padding=3)
    layout = Layout(positions_BL=positions, segments_BL=segments, documents_BL=documents)
    n_rows, length = tokens.shape
    index = [
        torch.arange(n)[shape] for n, shape in ((n_rows, np.s_[:, None, None]), (length, np.s_[None, :, None]), (length, np.s_[None, None]))
    ]
    rows, queries, keys = index
    assert torch.equal(blocks(layout, window=window).mask_mod(rows, rows, queries, keys), visibility(layout, window=window))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_the_gpu_kernel_scores_like_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without its compiler, forward only: all of it that runs on a CPU."""
    policy = Policy(cwm(), chunk=8)
    with torch.no_grad():
        expected = policy(*lay_out(DOCUMENTS, per_row=2))[0]
        monkeypatch.setattr(policy_module, "_attention_for", lambda config, tokens: "flex_attention")
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        assert torch.allclose(policy(*lay_out(DOCUMENTS, per_row=2))[0], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_rows_stay_finite_in_both_directions(dtype: torch.dtype, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "EAGER_SCORES", 1 << 60 if attention == "eager" else 0)
    tokens, positions, segments, documents, *scored = lay_out(DOCUMENTS, padding=3)
    zeros, nothing = torch.zeros(1, tokens.shape[1], dtype=torch.int64), torch.full((1, tokens.shape[1]), -1, dtype=torch.int32)
    pairs = ((tokens, zeros), (positions, zeros), (segments, nothing), (documents, nothing))
    padded = (*(torch.cat(pair) for pair in pairs), *scored)
    policy = Policy(cwm().to(dtype), chunk=8)
    logprobs, entropies = policy(*padded)
    logprobs.sum().backward()
    assert logprobs.isfinite().all() and entropies.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_no_tokens_to_score_give_empty_results_and_a_zero_gradient() -> None:
    policy = Policy(llama(), chunk=8)
    *inputs, source, targets = lay_out(DOCUMENTS)
    logprobs, _ = policy(*inputs, source[:0], targets[:0])
    logprobs.sum().backward()
    assert len(logprobs) == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())


def test_head_never_holds_all_logits() -> None:
    largest = 0  # rows of any tensor as wide as the vocabulary, apart from the transposed weight (32 rows)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == VOCAB and tensor.shape[0] != 32:
                    largest = max(largest, tensor.shape[0])
            return out

    policy = Policy(llama(), chunk=5)
    with Watch():
        policy(*lay_out(DOCUMENTS))[0].sum().backward()
    assert largest == 5


def test_unsupported_models_are_named() -> None:
    model = llama()
    model.config.model_type = "gpt2"
    with pytest.raises(ValueError, match="'gpt2' is not supported; use one of llama, cwm"):
        Policy(model, chunk=8)

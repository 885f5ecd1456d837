"""Torch engine against transformers: logprobs, batching, shared prefills, weight swaps, stops, repeatability."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CwmConfig, CwmForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from environments.records import StopReason
from rl.engines import decoder
from rl.engines.torch_engine import FinishedSample, TorchEngine
from rl.records import Completion, GenerateRequest, Sampling

VOCAB = 96
WINDOW = 16


def make_llama(*, seed: int = 0, tied: bool = True, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes)))


def make_cwm(*, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = CwmConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=WINDOW,
        max_position_embeddings=4096,
        initializer_range=0.3,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    return CwmForCausalLM(config)


MODELS: dict[str, Callable[..., PreTrainedModel]] = {"llama": make_llama, "cwm": make_cwm}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved checkpoint of every tiny model."""
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_engine(folder: Path, *, slots: int = 8, context_length: int = 256) -> TorchEngine:
    return TorchEngine(folder, dtype=torch.float32, slots=slots, context_length=context_length)


def make_request(key: str, *, length: int, seeds: tuple[int, ...] = (1, 2, 3), **sampling: object) -> GenerateRequest:
    options: dict[str, object] = {"max_tokens": 12, **sampling}
    prompt = np.random.default_rng(sum(key.encode())).integers(0, VOCAB, length).astype(np.int32)
    return GenerateRequest(
        key=key,
        episodes=tuple(f"{key}-{i}" for i in range(len(seeds))),
        prompt_ids_P=prompt,
        seeds=seeds,
        sampling=Sampling(**options),  # type: ignore[arg-type]  # keywords of the caller
    )


Results = dict[tuple[str, int], Completion]


def collect(results: Results, finished: tuple[FinishedSample, ...]) -> None:
    for sample in finished:
        assert (sample.key, sample.index) not in results
        results[sample.key, sample.index] = sample.completion


def run(engine: TorchEngine, *requests: GenerateRequest) -> Results:
    for request in requests:
        engine.submit(request)
    results: Results = {}
    while engine.busy:
        collect(results, engine.step())
    assert set(results) == {(request.key, i) for request in requests for i in range(len(request.seeds))}
    return results


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, prompt_P: np.ndarray, completion: Completion) -> np.ndarray:
    """Raw logprobs of the completion by one transformers forward pass with eager attention."""
    model.set_attn_implementation("eager")
    tokens = torch.from_numpy(np.concatenate([prompt_P, completion.token_ids_T]).astype(np.int64))
    logprobs = torch.log_softmax(model.eval()(tokens[None]).logits[0].float(), dim=-1)
    source = torch.arange(len(prompt_P) - 1, len(tokens) - 1)
    return logprobs[source, tokens[source + 1]].numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_match_transformers_with_more_samples_than_slots(name: str, folders: dict[str, Path]) -> None:
    # Lengths below, at and beyond the sliding window; samples of one prompt start at different steps.
    requests = [
        make_request(f"r{n}", length=n, seeds=tuple(range(5)), max_tokens=20 + n, stop_token_ids=(3, 4)) for n in (2, 15, 16, 17, 40)
    ]
    engine = make_engine(folders[name], slots=7)
    results = run(engine, *requests)
    model = MODELS[name]()
    for request in requests:
        for index in range(5):
            completion = results[request.key, index]
            expected = reference_logprobs(model, request.prompt_ids_P, completion)
            np.testing.assert_allclose(completion.logprobs_T, expected, atol=1e-4)
    stats = engine.stats()
    assert (stats.prompts, stats.samples) == (5, 25)
    assert stats.prompt_tokens == 2 + 15 + 16 + 17 + 40
    assert stats.sampled_tokens == sum(len(completion.token_ids_T) for completion in results.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_prefill_in_chunks_gives_the_same_logprobs(name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "PREFILL_TOKENS", 24)
    request = make_request("long", length=101, seeds=(5,), max_tokens=30)
    completion = run(make_engine(folders[name]), request)["long", 0]
    expected = reference_logprobs(MODELS[name](), request.prompt_ids_P, completion)
    np.testing.assert_allclose(completion.logprobs_T, expected, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_depends_on_its_seed_not_on_its_company(name: str, folders: dict[str, Path]) -> None:
    request = make_request("a", length=10, seeds=(11, 12, 13), max_tokens=40)
    alone = run(make_engine(folders[name], slots=1), request)
    others = [make_request(f"o{n}", length=n, seeds=(7, 8), max_tokens=3 * n) for n in (3, 6, 9, 21)]
    together = run(make_engine(folders[name], slots=5), others[0], others[1], request, *others[2:])
    for index in range(3):
        np.testing.assert_array_equal(alone["a", index].token_ids_T, together["a", index].token_ids_T)
        np.testing.assert_allclose(alone["a", index].logprobs_T, together["a", index].logprobs_T, atol=1e-4)
    assert not np.array_equal(alone["a", 0].token_ids_T, alone["a", 1].token_ids_T)


def test_the_same_calls_give_the_same_bits(folders: dict[str, Path]) -> None:
    def session() -> Results:
        engine = make_engine(folders["cwm"], slots=4)
        results: Results = {}
        for n in (5, 20, 8):
            engine.submit(make_request(f"r{n}", length=n, seeds=(1, 2, 3), max_tokens=n + 6, temperature=0.9, top_p=0.9))
            for _ in range(3):
                collect(results, engine.step())
        while engine.busy:
            collect(results, engine.step())
        return results

    first, second = session(), session()
    assert list(first) == list(second)
    for key in first:
        assert first[key].token_ids_T.tobytes() == second[key].token_ids_T.tobytes()
        assert first[key].logprobs_T.tobytes() == second[key].logprobs_T.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_transformers(name: str, folders: dict[str, Path]) -> None:
    request = make_request("g", length=9, seeds=(1,), temperature=0.0, max_tokens=30)
    completion = run(make_engine(folders[name]), request)["g", 0]
    tokens = torch.from_numpy(request.prompt_ids_P.astype(np.int64))[None]
    model = MODELS[name]().eval()
    model.generation_config.eos_token_id = None
    expected = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=30, pad_token_id=0)
    assert completion.token_ids_T.tolist() == expected[0, 9:].tolist()
    assert completion.stop_reason is StopReason.MAX_TOKENS


def test_stop_tokens_end_a_completion_and_belong_to_it(folders: dict[str, Path]) -> None:
    free = run(make_engine(folders["llama"]), make_request("s", length=6, seeds=(4,), max_tokens=10))["s", 0].token_ids_T.tolist()
    stops = tuple(token for token in (free[3], free[5]))
    stopped = run(make_engine(folders["llama"]), make_request("s", length=6, seeds=(4,), max_tokens=10, stop_token_ids=stops))["s", 0]
    end = next(i for i, token in enumerate(free) if token in stops)
    assert stopped.token_ids_T.tolist() == free[: end + 1]
    assert stopped.stop_reason is StopReason.STOP_TOKEN
    assert stopped.token_ids_T.dtype == stopped.versions_T.dtype == np.int32


def test_max_tokens_and_a_full_context_end_a_completion(folders: dict[str, Path]) -> None:
    engine = make_engine(folders["cwm"], context_length=24)
    results = run(
        engine,
        make_request("one", length=4, max_tokens=1),
        make_request("budget", length=4, max_tokens=20),
        make_request("full", length=20, max_tokens=5),
        make_request("last", length=23, max_tokens=9),
    )
    ends = {key: (len(results[key, 0].token_ids_T), results[key, 0].stop_reason) for key in ("one", "budget", "full", "last")}
    assert ends == {
        "one": (1, StopReason.MAX_TOKENS),
        "budget": (20, StopReason.MAX_TOKENS),
        "full": (4, StopReason.CONTEXT_FULL),
        "last": (1, StopReason.CONTEXT_FULL),
    }


@pytest.mark.parametrize("tied", [True, False])
def test_weights_swapped_mid_flight_tag_and_change_the_later_tokens(tied: bool, tmp_path: Path) -> None:
    old, new = make_llama(seed=0, tied=tied), make_llama(seed=1, tied=tied)
    old.save_pretrained(tmp_path)
    engine = make_engine(tmp_path, slots=2)
    request = make_request("w", length=7, seeds=(1, 2, 3), max_tokens=10)
    engine.submit(request)
    results: Results = {}
    for _ in range(4):
        collect(results, engine.step())
    state = new.state_dict()
    parameters = engine.parameters()
    assert ("lm_head.weight" in parameters) == (not tied)
    assert set(parameters) == set(state) - ({"lm_head.weight"} if tied else set())
    for name, parameter in parameters.items():
        assert parameter.is_contiguous()
        parameter.view(-1).copy_(state[name].flatten())
    engine.version = 7
    while engine.busy:
        collect(results, engine.step())
    for index in (0, 1):
        # The first step draws two tokens: one from the prefill, one from a decode step.
        assert results["w", index].versions_T.tolist() == [0] * 5 + [7] * 5
        before = reference_logprobs(old, request.prompt_ids_P, results["w", index])
        np.testing.assert_allclose(results["w", index].logprobs_T[:5], before[:5], atol=1e-4)
    # The third sample waited for a slot: it starts from a fresh prefill and is the new policy's from its first token.
    late = results["w", 2]
    assert late.versions_T.tolist() == [7] * 10
    np.testing.assert_allclose(late.logprobs_T, reference_logprobs(new, request.prompt_ids_P, late), atol=1e-4)


def test_a_swapped_policy_goes_on_with_the_old_kv_cache(folders: dict[str, Path]) -> None:
    """After a swap the logits are the new model's over the keys and values that the old one wrote."""
    old, new = make_cwm(seed=0), make_cwm(seed=1)
    engine = make_engine(folders["cwm"])
    request = make_request("kv", length=5, seeds=(1,), max_tokens=9)
    engine.submit(request)
    results: Results = {}
    for _ in range(3):
        collect(results, engine.step())
    for name, parameter in engine.parameters().items():
        parameter.copy_(new.state_dict()[name])
    engine.version = 1
    while engine.busy:
        collect(results, engine.step())
    completion = results["kv", 0]
    tokens = torch.from_numpy(np.concatenate([request.prompt_ids_P, completion.token_ids_T]).astype(np.int64))[None]
    written = 5 + 3
    with torch.no_grad():
        cache = old.eval()(tokens[:, :written], use_cache=True).past_key_values
        logits = new.eval()(tokens[:, written:-1], past_key_values=cache).logits[0]
    expected = torch.log_softmax(logits, -1).gather(1, tokens[0, written + 1 :, None]).squeeze(1)
    assert completion.versions_T.tolist() == [0] * 4 + [1] * 5
    np.testing.assert_allclose(completion.logprobs_T[4:], expected.numpy(), atol=1e-4)


def test_cancel_forgets_queued_and_running_samples_only_of_that_key(folders: dict[str, Path]) -> None:
    requests = [make_request(key, length=5, seeds=(1, 2, 3), max_tokens=8) for key in ("a", "b", "c")]
    expected = run(make_engine(folders["cwm"], slots=9), requests[0], requests[2])
    engine = make_engine(folders["cwm"], slots=5)
    for request in requests:
        engine.submit(request)
    results: Results = {}
    collect(results, engine.step())
    engine.cancel("b")
    engine.cancel("unknown")
    while engine.busy:
        collect(results, engine.step())
    assert set(results) == set(expected)
    for key, completion in results.items():
        np.testing.assert_array_equal(completion.token_ids_T, expected[key].token_ids_T)
    run(engine, requests[1])


def test_bfloat16_follows_the_float32_model_before_and_after_a_swap(tmp_path: Path) -> None:
    old, new = (make_llama(seed=seed, initializer_range=0.05) for seed in (0, 1))
    old.save_pretrained(tmp_path)
    engine = TorchEngine(tmp_path, dtype=torch.bfloat16, slots=4, context_length=64)
    for version, model in enumerate((old, new)):
        if version:
            for name, parameter in engine.parameters().items():
                parameter.copy_(model.state_dict()[name])
            engine.version = version
        request = make_request("h", length=20, seeds=tuple(range(4)), max_tokens=30)
        for completion in run(engine, request).values():
            np.testing.assert_allclose(completion.logprobs_T, reference_logprobs(model, request.prompt_ids_P, completion), atol=0.05)


def test_requests_that_cannot_be_served_name_the_field(folders: dict[str, Path]) -> None:
    engine = make_engine(folders["llama"], context_length=16)
    for bad, message in (
        (make_request("x", length=16), "context_length 16"),
        (make_request("x", length=0), "prompt_ids_P holds 0 tokens"),
        (make_request("x", length=3, seeds=()), "seeds is empty"),
        (make_request("x", length=3, max_tokens=0), "sampling.max_tokens is 0"),
        (make_request("x", length=3, temperature=-1.0), "sampling.temperature is -1.0"),
        (make_request("x", length=3, top_p=0.0), "sampling.top_p is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(bad)
    engine.submit(make_request("x", length=3))
    with pytest.raises(ValueError, match="'x' is in use"):
        engine.submit(make_request("x", length=3))


def test_unsupported_checkpoints_are_refused(tmp_path: Path) -> None:
    make_llama(attention_bias=True).save_pretrained(tmp_path / "bias")
    with pytest.raises(ValueError, match="attention_bias is True"):
        make_engine(tmp_path / "bias")
    LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}).save_pretrained(tmp_path / "rope")
    with pytest.raises(ValueError, match="rope_type is 'yarn'"):
        make_engine(tmp_path / "rope")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        make_engine(tmp_path / "gpt2")
    make_llama(num_hidden_layers=2).save_pretrained(tmp_path / "short")
    make_llama(num_hidden_layers=3).config.save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="9 weights are missing"):
        make_engine(tmp_path / "short")

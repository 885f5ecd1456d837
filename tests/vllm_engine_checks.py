"""The vLLM engine against the torch engine and transformers: what `tests/test_vllm.py` runs in the environment that has vLLM."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from configs.vllm import VllmConfig
from environments.records import StopReason
from rl.engines.torch_engine import TorchEngine
from rl.engines.vllm_engine import VllmEngine
from rl.generator import Generator
from rl.model import tiny_cwm_config
from rl.weight_sender import WeightSender
from rl.weight_sync import BaseMissing, Piece
from tests.test_engine import Results, collect, make_llama, make_request, reference_logprobs

VOCAB = 96
WINDOW = 16
CONTEXT = 320
ATOL = 1e-4
"""Nats between logprobs of two float32 implementations."""


def reference_class() -> type[PreTrainedModel]:
    """transformers' CwmForCausalLM from a module of its own: vLLM changes the classes of the one that it runs."""
    original = importlib.util.find_spec("transformers.models.cwm.modeling_cwm")
    assert original is not None and original.origin is not None
    spec = importlib.util.spec_from_file_location("transformers.models.cwm.reference_cwm", original.origin)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CwmForCausalLM


CwmForCausalLM = reference_class()


def make_cwm(seed: int, **sizes: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden": 64, "heads": 2, "kv_heads": 1, **sizes}
    config = tiny_cwm_config(vocab=VOCAB, layers=4, sliding_window=WINDOW, context=1024, **sizes)
    config.initializer_range, config.eos_token_id = 0.3, [1]
    return CwmForCausalLM(config)


def make_tied_llama(seed: int) -> PreTrainedModel:
    return make_llama(seed=seed, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32, initializer_range=0.05)


def start(folder: Path, *, dtype: str = "float32", slots: int = 7, **options: Any) -> VllmEngine:
    settings = VllmConfig(kv_cache_gb=0.125, **options)
    return VllmEngine(folder, dtype=dtype, slots=slots, context_length=CONTEXT, settings=settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "cwm"
    make_cwm(0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def shared(folder: Path) -> VllmEngine:
    """An engine whose tests leave it idle, at whatever weights and version."""
    return start(folder)


@pytest.fixture
def engine(shared: VllmEngine) -> VllmEngine:
    """The shared one with the checkpoint's weights, at version 0."""
    swap(shared, make_cwm(0), version=0)
    return shared


def swap(engine: VllmEngine, model: PreTrainedModel, *, version: int) -> None:
    state = model.state_dict()
    parameters = engine.parameters()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(parameters) == set(state) - tied
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
    engine.version = version


def finish(engine: Any, results: Results) -> Results:
    while engine.busy:
        collect(results, engine.step())
    return results


def run(engine: Any, *requests: Any) -> Results:
    for request in requests:
        engine.submit(request)
    results = finish(engine, {})
    assert set(results) == {(request.key, i) for request in requests for i in range(len(request.seeds))}
    return results


def use_a_prompt_again(engine: VllmEngine) -> bool:
    """Whether a prompt is answered by the new weights alone, after the old ones have computed it."""
    new = make_cwm(1)
    before, after = (make_request("turn", length=200, seeds=(seed,), max_tokens=3) for seed in (1, 2))
    run(engine, before)
    swap(engine, new, version=1)
    completion = run(engine, after)["turn", 0]
    assert completion.versions_T.tolist() == [1, 1, 1]
    return np.allclose(completion.logprobs_T, reference_logprobs(new, after.prompt_ids_P, completion), atol=ATOL)


def test_a_prompt_of_earlier_weights_is_computed_again(engine: VllmEngine) -> None:
    assert use_a_prompt_again(engine)


def test_greedy_tokens_and_logprobs_are_the_torch_engines(engine: VllmEngine, folder: Path) -> None:
    # Lengths below, at and beyond the sliding window, and beyond a block of the prefix cache.
    requests = [make_request(f"g{n}", length=n, seeds=(1, 2, 3), temperature=0.0, max_tokens=30) for n in (2, 15, 16, 17, 40, 150)]
    ours = run(TorchEngine(folder, dtype=torch.float32, slots=7, context_length=CONTEXT), *requests)
    theirs = run(engine, *requests)
    for key, completion in ours.items():
        assert theirs[key].token_ids_T.tolist() == completion.token_ids_T.tolist()
        np.testing.assert_allclose(theirs[key].logprobs_T, completion.logprobs_T, atol=ATOL)


def test_raw_logprobs_whatever_the_sampling(engine: VllmEngine) -> None:
    model = make_cwm(0)
    requests = [
        make_request("plain", length=20, seeds=tuple(range(9)), max_tokens=25),
        make_request("shaped", length=20, seeds=tuple(range(9)), max_tokens=25, temperature=0.7, top_p=0.8, top_k=20),
    ]
    for (key, _), completion in run(engine, *requests).items():
        prompt = next(request.prompt_ids_P for request in requests if request.key == key)
        np.testing.assert_allclose(completion.logprobs_T, reference_logprobs(model, prompt, completion), atol=ATOL)
        assert completion.token_ids_T.dtype == completion.versions_T.dtype == np.int32
        assert not completion.versions_T.any()


def test_a_sample_depends_on_its_seed_not_on_its_company(engine: VllmEngine) -> None:
    request = make_request("a", length=10, seeds=(11, 12, 2**63 - 1), max_tokens=40)
    alone = run(engine, request)
    others = [make_request(f"o{n}", length=n, seeds=(7, 8), max_tokens=3 * n) for n in (3, 6, 9, 21)]
    together = run(engine, others[0], others[1], request, *others[2:])
    for index in range(3):
        assert alone["a", index].token_ids_T.tolist() == together["a", index].token_ids_T.tolist()
    assert alone["a", 0].token_ids_T.tolist() != alone["a", 1].token_ids_T.tolist()


def test_stop_and_length_rules_are_the_torch_engines(engine: VllmEngine, folder: Path) -> None:
    free = run(engine, make_request("s", length=6, seeds=(4,), temperature=0.0, max_tokens=12))["s", 0].token_ids_T.tolist()
    requests = [
        make_request("s", length=6, seeds=(4,), temperature=0.0, max_tokens=12, stop_token_ids=(free[3], free[7])),
        make_request("stop-last", length=6, seeds=(4,), temperature=0.0, max_tokens=4, stop_token_ids=(free[3],)),
        make_request("one", length=4, temperature=0.0, max_tokens=1),
        make_request("budget", length=4, temperature=0.0, max_tokens=20),
        make_request("full", length=CONTEXT - 4, temperature=0.0, max_tokens=5),
        make_request("last", length=CONTEXT - 1, temperature=0.0, max_tokens=9),
    ]
    ours, theirs = run(TorchEngine(folder, dtype=torch.float32, slots=7, context_length=CONTEXT), *requests), run(engine, *requests)
    assert {key: completion.token_ids_T.tolist() for key, completion in theirs.items()} == {
        key: completion.token_ids_T.tolist() for key, completion in ours.items()
    }
    ends = {key: completion.stop_reason for key, completion in theirs.items()}
    assert ends == {key: completion.stop_reason for key, completion in ours.items()}
    assert set(ends.values()) == {StopReason.STOP_TOKEN, StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL}
    assert theirs["s", 0].token_ids_T[-1] in (free[3], free[7])


def test_weights_swapped_mid_flight_tag_and_change_the_later_tokens(engine: VllmEngine) -> None:
    old, new = make_cwm(0), make_cwm(1)
    request = make_request("w", length=7, seeds=tuple(range(9)), max_tokens=10)
    engine.submit(request)
    results: Results = {}
    for _ in range(5):
        collect(results, engine.step())
    swap(engine, new, version=7)
    finish(engine, results)
    written = 7 + 4
    for index in range(7):
        completion = results["w", index]
        assert completion.versions_T.tolist() == [0] * 5 + [7] * 5
        np.testing.assert_allclose(completion.logprobs_T[:5], reference_logprobs(old, request.prompt_ids_P, completion)[:5], atol=ATOL)
        # Later logits are the new model's, over the keys and values that the old one wrote.
        tokens = torch.from_numpy(np.concatenate([request.prompt_ids_P, completion.token_ids_T]).astype(np.int64))[None]
        with torch.no_grad():
            cache = old.eval()(tokens[:, :written], use_cache=True).past_key_values
            logits = new.eval()(tokens[:, written:-1], past_key_values=cache).logits[0]
        expected = torch.log_softmax(logits, -1).gather(1, tokens[0, written + 1 :, None]).squeeze(1)
        np.testing.assert_allclose(completion.logprobs_T[5:], expected.numpy(), atol=ATOL)
    # Two samples waited for a slot: they are the new policy's from their first token.
    for index in (7, 8):
        late = results["w", index]
        assert late.versions_T.tolist() == [7] * 10
        np.testing.assert_allclose(late.logprobs_T, reference_logprobs(new, request.prompt_ids_P, late), atol=ATOL)


def test_the_generator_serves_whole_versions_and_deltas(engine: VllmEngine, folder: Path) -> None:
    """The service and the learner's side of weight sync, with the same checksums as the torch engine's."""

    async def serve(engine: Any) -> list[str]:
        generator, sums = Generator(engine, lockstep=False), []
        sender = WeightSender(rank=0, dtype="float32", bucket_bytes=20_000, deltas=True)
        model = make_cwm(3)
        for version in (1, 2):
            state = {name: value.flatten() for name, value in model.state_dict().items()}
            pieces = [Piece(name=name, start=0, values=values) for name, values in state.items()]
            base = version - 1 if version > 1 else None
            buckets = sender.delta(pieces, version=version) if base else sender.whole(pieces, version=version)
            await generator.begin_weights(version, base=base)
            for bucket in buckets:
                await generator.load_bucket(bucket)
            sums.append(await generator.commit_weights(version))
            request = make_request("r", length=12, seeds=(1, 2), max_tokens=8)
            for completion in await generator.generate(request):
                assert completion.versions_T.tolist() == [version] * 8
                np.testing.assert_allclose(completion.logprobs_T, reference_logprobs(model, request.prompt_ids_P, completion), atol=ATOL)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.view(-1)[::50] += 0.05
        with pytest.raises(BaseMissing):
            await generator.begin_weights(9, base=8)
        generator.close()
        return sums

    ours = TorchEngine(folder, dtype=torch.float32, slots=4, context_length=CONTEXT)
    assert asyncio.run(serve(engine)) == asyncio.run(serve(ours))


def test_cancel_forgets_queued_and_running_samples_only_of_that_key(engine: VllmEngine) -> None:
    requests = [make_request(key, length=5, seeds=(1, 2, 3), max_tokens=8) for key in ("a", "b", "c")]
    expected = run(engine, requests[0], requests[2])
    for request in requests:
        engine.submit(request)
    results: Results = {}
    collect(results, engine.step())
    engine.cancel("b")
    engine.cancel("unknown")
    finish(engine, results)
    assert {key: list(completion.token_ids_T) for key, completion in results.items()} == {
        key: list(completion.token_ids_T) for key, completion in expected.items()
    }
    run(engine, requests[1])


def test_requests_that_cannot_be_served_name_the_field(engine: VllmEngine) -> None:
    for bad, message in (
        (make_request("x", length=CONTEXT), f"context_length {CONTEXT}"),
        (make_request("x", length=3, seeds=()), "seeds is empty"),
        (make_request("x", length=3, top_p=0.0), "sampling.top_p is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(bad)
    engine.submit(make_request("x", length=3))
    with pytest.raises(ValueError, match="'x' is in use"):
        engine.submit(make_request("x", length=3))
    finish(engine, {})


def test_weights_that_are_not_numbers_are_an_error(engine: VllmEngine) -> None:
    broken = make_cwm(0)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    swap(engine, broken, version=1)
    engine.submit(make_request("nan", length=3, seeds=(1,)))
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.step()
    engine.cancel("nan")


# --- engines of their own: last, because the shared one does not outlive another in its process --------------------------


def test_a_prompt_of_earlier_weights_is_kept_by_choice(folder: Path) -> None:
    assert not use_a_prompt_again(start(folder, prefix_cache="keep"))


@pytest.mark.parametrize("make", [make_cwm, make_tied_llama])
def test_bfloat16_follows_the_float32_model_before_and_after_a_swap(make: Callable[[int], PreTrainedModel], tmp_path: Path) -> None:
    old, new = make(0), make(1)
    if make is make_cwm:  # rounding to bfloat16 must not change what is attended to
        for model in (old, new):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.0 if parameter.ndim == 1 else 1 / 6)
    old.save_pretrained(tmp_path)
    engine = start(tmp_path, dtype="bfloat16")
    for version, model in enumerate((old, new)):
        if version:
            swap(engine, model, version=version)
        request = make_request("h", length=20, seeds=tuple(range(4)), max_tokens=30)
        for completion in run(engine, request).values():
            np.testing.assert_allclose(completion.logprobs_T, reference_logprobs(model, request.prompt_ids_P, completion), atol=0.05)


def test_a_model_that_vllm_cannot_run_here_is_named(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vLLM 0\.\d+.*head_dim is 8; on a CPU it must be one of 32, 64"):
        start(tmp_path)


@pytest.mark.slow
def test_two_processes_share_a_model(tmp_path: Path) -> None:
    """Tensor parallelism: vLLM's processes load their shards of new weights from the engine's memory."""
    models = [make_cwm(seed, hidden=128, heads=4, kv_heads=2) for seed in (0, 1)]
    models[0].save_pretrained(tmp_path)
    engine = start(tmp_path, tensor_parallel_size=2)
    for version, model in enumerate(models):
        if version:
            swap(engine, model, version=version)
        request = make_request("tp", length=20, seeds=(1, 2), max_tokens=12)
        for completion in run(engine, request).values():
            assert completion.versions_T.tolist() == [version] * 12
            np.testing.assert_allclose(completion.logprobs_T, reference_logprobs(model, request.prompt_ids_P, completion), atol=ATOL)

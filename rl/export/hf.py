"""A Hugging Face dataset: `load_dataset(PATH)` reads the folder. Parquet, one file series a split, and a dataset card.

Conversational columns as TRL names them: `prompt` and `completion` are messages, `prompt_ids` and `completion_ids` tokens. What the
environment said is part of the completion; `completion_mask` is 1 where the policy sampled.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rl.export.card import card_table, dataset_card
from rl.export.parquet import ParquetSeries
from rl.export.records import LoggedMessage, LoggedRollout, LoggedTokens
from rl.export.source import Source

_MESSAGES = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string()), ("tool", pa.string()), ("arguments", pa.string())])
)
_STRING, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_SAME = {
    **dict.fromkeys(("run_id", "rollout_id", "group_id"), _STRING),
    **dict.fromkeys(("group_index", "sample_index", "dispatch_version", "policy_min", "policy_max"), _INT),
    **dict.fromkeys(("seed", "task_id", "task_hash", "source", "env", "env_version", "image_digest", "split"), _STRING),
    "reward": _FLOAT,
    **dict.fromkeys(("status", "reason", "stop_reason", "error_type", "scorer", "scorer_hash"), _STRING),
    **dict.fromkeys(("temperature", "top_p"), _FLOAT),
    **dict.fromkeys(("top_k", "max_tokens"), _INT),
    **dict.fromkeys(("tokenizer_hash", "template_hash", "outcome"), _STRING),
}
_PART = pa.struct([("name", pa.string()), ("value", pa.float64()), ("weight", pa.float64()), ("reason", pa.string())])
_LEARNED = {"train_step": _INT, "admitted": pa.bool_(), "drop_reason": _STRING, "advantage": _FLOAT, "kl": _FLOAT}
SCHEMA = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("completion", _MESSAGES),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("completion_mask", pa.list_(pa.int8())),
        ("logprobs", pa.list_(pa.float32())),
        ("learner_logprobs", pa.list_(pa.float32())),
        ("entropies", pa.list_(pa.float32())),
        ("policy_versions", pa.list_(pa.int32())),
        ("restarts", pa.list_(pa.int64())),
        *_SAME.items(),
        ("parts", pa.list_(_PART)),
        ("flags", pa.list_(pa.string())),
        *_LEARNED.items(),
        ("messages_cut", pa.int32()),
    ]
)
_ABOUT = {
    "prompt, completion": "messages up to the first that the policy sampled, and from there on, tool answers included",
    "prompt_ids, completion_ids": "tokens as the policy saw and sampled them, never tokenized again; null where the log has none",
    "completion_mask": "1 where the policy sampled, 0 where the environment spoke",
    "logprobs": "behaviour logprob of each completion token, nats, before temperature, top-k and top-p; null where the mask is 0",
    "learner_logprobs, entropies": "the learner's, aligned with `logprobs`; null for rollouts that were not trained on, or when retired",
    "policy_versions": "which version sampled each completion token; -1 where the mask is 0",
    "restarts": "positions in `completion_ids` where the conversation was rendered anew and the context starts over",
    "reward": "null when `status` is infra or ungradable: the environment failed, not the policy; never read it as 0",
    "parts": "components of the reward",
    "train_step, admitted, drop_reason, advantage, kl": "of the last training step that saw the rollout",
    "messages_cut": "messages whose text the log has only in part",
}


def export(source: Source, out: Path) -> dict[str, int]:
    """Write the folder `out`; how many of what it holds."""
    data = out / "data"
    data.mkdir(parents=True)
    splits: dict[str, ParquetSeries] = {}
    rows: Counter[str] = Counter()
    counts = {"rows": 0, "completion_tokens": 0, "files": 0}
    try:
        for rollout in source.rollouts(tokens=True):
            split = re.sub(r"\W", "_", rollout.row.split) or "train"
            row = _row(rollout)
            size = sum(len(m.text) for m in rollout.messages) + 32 * len(row["completion_ids"] if rollout.tokens else ())
            splits.setdefault(split, ParquetSeries(data, f"{split}-", SCHEMA)).add(row, size=size)
            rows[split] += 1
            counts["rows"] += 1
            counts["completion_tokens"] += len(row["completion_ids"]) if rollout.tokens else 0
    finally:
        for files in splits.values():
            files.close()
    counts["files"] = sum(files.files for files in splits.values())
    (out / "README.md").write_text(_card(source, rows))
    return counts


def _row(rollout: LoggedRollout) -> dict[str, Any]:
    row, messages = rollout.row, rollout.messages
    first = next((i for i, message in enumerate(messages) if message.turn is not None), len(messages))
    last = rollout.learned[-1] if rollout.learned else None
    return {
        "prompt": [_message(message) for message in messages[:first]],
        "completion": [_message(message) for message in messages[first:]],
        **_token_columns(rollout),
        **{name: getattr(row, name) for name in _SAME},
        "parts": [{"name": name, **part} for name, part in (row.parts or {}).items()],
        "flags": list(row.flags or ()),
        **{name: getattr(last, name) if last else None for name in _LEARNED},
        "messages_cut": sum(message.left_out > 0 for message in messages),
    }


def _message(message: LoggedMessage) -> dict[str, Any]:
    return {
        "role": message.role,
        "content": message.text,
        "name": message.name,
        "tool": message.tool,
        "arguments": message.arguments,
    }


def _token_columns(rollout: LoggedRollout) -> dict[str, Any]:
    tokens = rollout.tokens
    names = ("prompt_ids", "completion_ids", "completion_mask", "logprobs", "learner_logprobs", "entropies", "policy_versions", "restarts")
    if tokens is None:
        return dict.fromkeys(names)
    ids_T = np.asarray(tokens.token_ids, np.int32)
    sampled_T = np.zeros(len(ids_T), bool)
    for segment in tokens.segments:
        if segment["kind"] == "sampled":
            sampled_T[segment["start"] : segment["start"] + segment["len"]] = True
    start = int(np.argmax(sampled_T)) if sampled_T.any() else len(ids_T)
    mask_C = sampled_T[start:]
    learned = rollout.learned_tokens
    return {
        "prompt_ids": ids_T[:start],
        "completion_ids": ids_T[start:],
        "completion_mask": mask_C.astype(np.int8),
        "logprobs": _aligned(tokens.behaviour_logprob, mask_C),
        "learner_logprobs": _aligned(learned.learner_logprob if learned else None, mask_C),
        "entropies": _aligned(learned.entropy if learned else None, mask_C),
        "policy_versions": _versions(tokens, mask_C),
        "restarts": [s["start"] - start for s in tokens.segments if s["kind"] == "restart" and s["start"] >= start],
    }


def _aligned(values: Sequence[float] | None, mask_C: np.ndarray) -> pa.Array | None:
    """Values of the sampled tokens at their places, null between them."""
    if values is None or len(values) != int(mask_C.sum()):
        return None
    placed_C = np.zeros(len(mask_C), np.float32)
    placed_C[mask_C] = values
    return pa.array(placed_C, mask=~mask_C)


def _versions(tokens: LoggedTokens, mask_C: np.ndarray) -> np.ndarray:
    placed_C = np.full(len(mask_C), -1, np.int32)
    n = int(mask_C.sum())
    versions_N = np.zeros(n, np.int32)
    for segment in tokens.version_segments:
        versions_N[segment["start"] :] = segment["version"]
    placed_C[mask_C] = versions_N
    return placed_C


def _card(source: Source, rows: Mapping[str, int]) -> str:
    text = (
        "# Rollouts of a training run\n\n"
        f"Written by `rl export` of codeworld-rl; one row a rollout ({', '.join(f'{n} in {name}' for name, n in sorted(rows.items()))}). "
        "Texts are what models and tools wrote: treat them as data.\n\n"
        f"{card_table(('status', 'rollouts'), sorted(source.exported.items()))}\n{card_table(('columns', 'meaning'), _ABOUT.items())}"
    )
    files = {name: f"data/{name}-*.parquet" for name in sorted(rows)}
    return dataset_card(text, configs={"default": files}, tags=["reinforcement-learning", "rollouts", "codeworld-rl"])

"""Which settings a resumed run must share with the run that it continues."""

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from configs.load import load_config
from configs.schema import Config

_SECTIONS = ("model", "sampling", "objective", "filters")
_SETTINGS = (
    "learner.optimizer_steps_per_batch",
    "learner.ranks",
    "learner.zero_stage",
    "rollout.prompts_per_step",
    "rollout.samples_per_prompt",
    "rollout.max_staleness",
    "rollout.max_turns",
    "run.seed",
)
"""Lengths, processes and logging may differ."""


def kept_settings(config: Config) -> dict[str, Any]:
    """Those settings, by key."""
    whole = [f"{section}.{spec.name}" for section in _SECTIONS for spec in fields(getattr(config, section))]
    return {key: _value(config, key) for key in (*whole, *_SETTINGS)}


def fingerprint(config: Config) -> str:
    """Hash of them, for the checkpoint."""
    return hashlib.blake2b(repr(kept_settings(config)).encode(), digest_size=8).hexdigest()


def check_same_settings(config: Config, *, earlier: Path) -> None:
    """Compare with the resolved configuration of the run's last attempt. Raises ValueError that names the settings that differ."""
    if not earlier.is_file():
        return  # a run that was stopped before it wrote one; the checkpoint's fingerprint decides
    before, now = kept_settings(load_config([earlier])), kept_settings(config)
    changed = [f"{key} is {now[key]!r} and was {before[key]!r}" for key in now if now[key] != before[key]]
    if changed:
        raise ValueError(f"--resume goes on with the same settings, but {', '.join(changed)}: set it back, or start a new run.name")


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)

"""Options of the vLLM engine, `generator.engine: vllm`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from configs.checked import Checked, bounded


@dataclass(frozen=True, kw_only=True)
class VllmConfig(Checked):
    """One replica's engine. Its dtype, slots and context are those of the generator and the model."""

    section: ClassVar[str] = "vllm"
    python: str | None = None
    """Interpreter of the environment that has vLLM. None: this one if it has, else `.venv-vllm/bin/python` of `make vllm-cpu`."""
    tensor_parallel_size: int = bounded(1, low=1)
    """GPUs of one node that share a replica's model."""
    memory_share: float = bounded(0.9, above=0.0, high=1.0)
    """Of a GPU's memory: for weights, activations and the KV cache."""
    kv_cache_gb: float | None = bounded(None, above=0.0)
    """GiB of a replica's KV cache on each device. None: on a GPU what `memory_share` leaves, on a CPU 1."""
    enforce_eager: bool = True
    """False: compile the model and capture CUDA graphs; decoding on a GPU is faster, starting takes minutes longer."""
    prefix_cache: Literal["reset", "keep", "off"] = "reset"
    """What new requests may reuse of earlier prompts' KV. reset: what this version of the weights has computed; keep: also what
    earlier versions have; off: nothing, each sample computes its prompt."""

"""Puts new weights into vLLM: a backend of vLLM's own weight transfer that takes them from memory on the same node.

Each of a replica's processes copies its shards of the parameters out of the memory that the engine's process has filled. vLLM's layerwise
reload does the rest: it fuses, shards and packs the weights as at the first load, one layer at a time, into the buffers that CUDA graphs
have captured.
"""

import contextlib
from dataclasses import dataclass, field

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rl.engines.shared_weights import map_weights

BACKEND = "codeworld_rl"
"""The backend's name in vLLM."""


def register() -> None:
    """Make the backend known: vLLM calls this in each of its processes (entry point `vllm.general_plugins`)."""
    with contextlib.suppress(ValueError):  # known already
        WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryTransfer)


@dataclass
class SharedMemory(WeightTransferInitInfo):
    """Where the weights will be; see `rl.engines.shared_weights`."""

    path: str
    dtype: str
    shapes: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Filled(WeightTransferUpdateInfo):
    """The memory holds a whole version."""


class SharedMemoryTransfer(WeightTransferEngine[SharedMemory, Filled]):
    """One vLLM process's side."""

    init_info_cls = SharedMemory
    update_info_cls = Filled

    def init_transfer_engine(self, init_info: SharedMemory) -> None:
        """Map the memory."""
        shapes = {name: tuple(shape) for name, shape in init_info.shapes.items()}
        self._weights = map_weights(init_info.path, shapes, dtype=getattr(torch, init_info.dtype))

    def start_weight_update(self) -> None:
        """Get ready to load."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Filled) -> None:
        """Load this process's shards of every parameter."""
        self.model.load_weights(iter(self._weights.items()))

    def finish_weight_update(self) -> None:
        """Put what was loaded to use."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_text_config.tie_word_embeddings:
            # A tied head loads nothing itself: on a CPU vLLM would go on with what it has packed of the old embedding.
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Forget the memory."""
        self._weights = {}

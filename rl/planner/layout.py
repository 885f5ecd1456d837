"""How a configuration shares a model among cards."""

from configs.schema import Config


def replica_cards(config: Config) -> int:
    """Cards that hold one replica of the model together."""
    return config.vllm.tensor_parallel_size if config.generator.engine == "vllm" else 1


def sequence_ranks(config: Config) -> int:
    """Ranks that share the tokens of each row."""
    return config.learner.sequence_parallel

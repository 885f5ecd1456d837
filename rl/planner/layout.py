"""How a configuration shares a model among cards."""

from configs.schema import Config


def replica_cards(config: Config) -> int:
    """Cards that hold one replica of the model together."""
    return 1


def sequence_ranks(config: Config) -> int:
    """Ranks that share the tokens of each row."""
    return 1

"""From the configuration's sampling section to token ids."""

from configs.schema import Config
from rl.prompt import ChatTokenizer
from rl.records import Sampling


def make_sampling(config: Config, tokenizer: ChatTokenizer) -> Sampling:
    """Token-level sampling parameters. Raises ValueError for a stop token that is not one token of the tokenizer."""
    extra = [tokenizer.token_id(text) for text in config.sampling.stop_tokens]
    return Sampling(
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        top_k=config.sampling.top_k,
        max_tokens=config.sampling.max_tokens,
        stop_token_ids=tuple(sorted({*tokenizer.stop_ids, *extra})),
    )

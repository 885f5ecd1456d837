"""The tiny character tokenizer of the quickstart model, with CWM's special tokens and chat template.

Every printable ASCII character, newline and tab is a token; a few frequent strings are single tokens, so that sequences are
shorter. Concatenating the tokens of a text gives the text back. Real checkpoints bring their own tokenizer; this file only
builds the small one.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNK = "<|pad|>", "<|unk|>"
BEGIN_OF_TEXT, END_OF_TEXT, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
START_HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
SPECIAL_TOKENS = (PAD, UNK, BEGIN_OF_TEXT, END_OF_TEXT, START_HEADER, END_HEADER, EOT)
NUMBERS = tuple(map(str, range(10, 100)))
"""Two-digit numbers are one token, as numbers of up to three digits are in CWM's own tokenizer."""
WORDS = (
    *("system", "user", "assistant", "tool: "),
    *("\n\n", "```python\n", "```\n", "```", "\\boxed{", "print(", "def ", "return ", "    "),
    *("Write a function ", " that returns ", " plus ", " minus ", " times "),
    *NUMBERS,
)
"""Strings of more than one character that are one token; at a given place the longest wins."""
CHARACTERS = ("\n", "\t", *map(chr, range(0x20, 0x7F)))

CWM_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + ('tool: ' + message['name'] if message['role'] == 'tool' else message['role']) }}"
    "{{ '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def build_tiny_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A fast tokenizer over ASCII; ids are special tokens first, then `words`, then characters. Other characters are `UNK`."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *words, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN_OF_TEXT,
        eos_token=EOT,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[END_OF_TEXT, START_HEADER, END_HEADER],
        chat_template=CWM_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer, write it as Hugging Face tokenizer files into `folder` and return it."""
    tokenizer = build_tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer

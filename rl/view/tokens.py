"""A rollout's tokens as compact data for the heatmap: text pieces, and the channels as base64 arrays."""

import base64
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rl.log.text import visible
from rl.view.open_run import OpenRun, Row

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8, and so the most tokens of a byte-level vocabulary that it spans."""


class TokenTexts:
    """Texts of token ids by the tokenizer of each run, if its folder is still there."""

    def __init__(self) -> None:
        self._known: dict[Path, Tokenizer | None] = {}
        self._lock = threading.Lock()

    def of(self, run: OpenRun, ids: Sequence[int]) -> list[str] | None:
        """One piece of text a token, which together give the text; None when the run's tokenizer is gone."""
        with self._lock:
            if run.root not in self._known or self._known[run.root] is None:
                self._known[run.root] = _load(run)
            tokenizer = self._known[run.root]
        return None if tokenizer is None else _pieces(tokenizer, ids)


def _load(run: OpenRun) -> Tokenizer | None:
    model = run.config().get("model")
    configured = str(model.get("path", "")) if isinstance(model, dict) else ""
    folders = [run.root / "model", run.root / "warm_start", *([Path(configured)] if configured else [])]
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            try:
                return Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception:  # the library raises bare Exception on a damaged file; ids are shown then
                continue
    return None


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """A character of several tokens is the first one's text; the others are empty."""
    unique = list(dict.fromkeys(ids))
    if any(token.startswith("▁") for token in tokenizer.get_vocab()):  # its decoder strips the space before a lone word
        words = {one: (tokenizer.id_to_token(one) or "").replace("▁", " ") for one in unique}
    else:
        words = dict(zip(unique, tokenizer.decode_batch([[one] for one in unique], skip_special_tokens=False), strict=True))
    pieces = [words[one] for one in ids]
    position = 0
    while position < len(pieces):
        width = 1
        if _REPLACEMENT in pieces[position]:
            for wider in range(2, _LONGEST_CHARACTER + 1):
                text = tokenizer.decode(list(ids[position : position + wider]), skip_special_tokens=False)
                if _REPLACEMENT not in text:
                    pieces[position : position + wider] = [text, *[""] * (len(pieces[position : position + wider]) - 1)]
                    width = wider
                    break
        position += width
    return pieces


def payload(tokens: Row, *, learner: Row | None, pieces: Sequence[str] | None) -> dict[str, Any]:
    """What the heatmap script reads. Channels have one value a sampled token; the script spreads them over the segments."""
    n = len(tokens["behaviour_logprob"] or ())
    channels = {"logprob": _array(tokens["behaviour_logprob"], n)}
    for name, column in (("learner", "learner_logprob"), ("entropy", "entropy")):
        values = (learner or {}).get(column)
        if values and len(values) == n:
            channels[name] = _array(values, n)
    return {
        "ids": base64.b64encode(np.asarray(tokens["token_ids"], "<i4").tobytes()).decode(),
        "pieces": None if pieces is None else [piece if piece.isprintable() else visible(piece) for piece in pieces],
        "segments": [[segment["start"], segment["len"], segment["kind"]] for segment in tokens["segments"]],
        "versions": [[segment["start"], segment["version"]] for segment in tokens["version_segments"]],
        "channels": channels,
        "advantage": (learner or {}).get("advantage"),
    }


def _array(values: Sequence[float] | None, n: int) -> str:
    return base64.b64encode(np.asarray(values if values is not None else [np.nan] * n, "<f4").tobytes()).decode()


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Index of the first token that differs; the shorter length when one is the other's beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def sampled_start(tokens: Mapping[str, Any]) -> int:
    """Position of the first sampled token; the number of tokens when there is none."""
    return next((int(s["start"]) for s in tokens["segments"] if s["kind"] == "sampled"), len(tokens["token_ids"]))

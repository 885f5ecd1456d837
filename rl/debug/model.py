"""The model of a checkpoint folder as a writer of frames, by the torch engine."""

import numpy as np
import torch

from environments.records import StopReason
from environments.traces.text import END, FRAME
from rl.debug.neural import ContextFull
from rl.engines.torch_engine import TorchEngine
from rl.model_folder import read_settings
from rl.model_source import resolve_model
from rl.prompt import load_tokenizer
from rl.records import Completion, GenerateRequest, Sampling
from rl.seeds import derive_seed

_CHUNK = 64
"""Tokens between two looks at the text of a model that has no single token for the end of a frame."""


class ModelWriter:
    """Samples frames. Where the vocabulary has the tokens of traces, they are used; otherwise they are text like any other."""

    def __init__(self, model: str, *, temperature: float, seed: int, most_tokens: int) -> None:
        """`model`: as `model.path`. `most_tokens`: of one frame. Raises ValueError for a model that cannot be used."""
        folder = resolve_model(model)
        self._tokenizer = load_tokenizer(folder)
        settings = read_settings(folder)
        dtype = torch.bfloat16 if settings.get("dtype", settings.get("torch_dtype")) == "bfloat16" else torch.float32
        self._context = int(settings.get("max_position_embeddings", 2048))
        self._engine = TorchEngine(folder, dtype=dtype, slots=1, context_length=self._context)
        frame_end, trace_end = (self._tokenizer.encode(text) for text in (FRAME, END))
        self._trace_end = trace_end[0] if len(trace_end) == 1 else None
        one_token = len(frame_end) == 1
        self._chunk = most_tokens if one_token else _CHUNK
        stops = tuple(sorted({*self._tokenizer.stop_ids, *(frame_end if one_token else ())}))
        self._temperature, self._stops = temperature, stops
        self._seed, self._most_tokens = seed, most_tokens
        self._n_written = 0

    def write(self, prompt: str, *, starts: tuple[str, ...]) -> str:
        """One frame; less or something else where the model writes none. Raises ContextFull."""
        prompt_ids, ids = self._tokenizer.encode(prompt), list[int]()
        self._n_written += 1
        while True:
            used = len(prompt_ids) + len(ids)
            if used >= self._context:
                raise ContextFull(f"the trace has {used} tokens; the model's context is {self._context}")
            completion = self._sample([*prompt_ids, *ids])
            ids += completion.token_ids_T.tolist()
            text = self._text(ids)
            if ends := [text.index(end) + len(end) for end in (FRAME, END) if end in text]:
                return text[: min(ends)]
            frame = text.startswith(starts) or any(start.startswith(text) for start in starts)
            if not frame or completion.stop_reason is StopReason.STOP_TOKEN or len(ids) >= self._most_tokens:
                return text

    def _text(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids)
        return text + END if ids and ids[-1] == self._trace_end and not text.endswith(END) else text

    def _sample(self, ids: list[int]) -> Completion:
        key = f"frame {self._n_written}, token {len(ids)}"
        request = GenerateRequest(
            key=key,
            episodes=(key,),
            prompt_ids_P=np.asarray(ids, np.int32),
            seeds=(derive_seed(self._seed, self._n_written, len(ids)),),
            sampling=Sampling(temperature=self._temperature, max_tokens=self._chunk, stop_token_ids=self._stops),
        )
        self._engine.submit(request)
        while True:
            for finished in self._engine.step():
                return finished.completion

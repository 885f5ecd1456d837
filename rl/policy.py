"""The policy as the learner sees it: a Hugging Face causal LM that scores response tokens of packed rows.

It does not sample, load checkpoints or know about DeepSpeed. Axis suffixes as in `rl/records.py`: B rows, L row length,
N response tokens, H hidden size, V vocabulary, C response tokens of one chunk of the head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rl.attention_mask import Layout, additive, blocks
from rl.eager_scores import EAGER_SCORES
from rl.model_folder import SUPPORTED, check_heads
from rl.sequence_parallel import ATTENTION, SequenceParallel


def _attention_for(config: Any, token_ids_BL: Tensor) -> str:
    """On CPU eager attention is the faster one as long as its B x heads x L x L score matrix is small; on GPU no L x L exists."""
    if token_ids_BL.device.type == "cuda":
        return "flex_attention"
    n_rows, length = token_ids_BL.shape
    return "eager" if n_rows * config.num_attention_heads * length * length <= EAGER_SCORES else "sdpa"


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T) at the targets, and its entropy, `chunk` tokens at a time in both directions.

    The backward pass computes each chunk's logits again, save the last one's, which are kept: with p = softmax(logits) and
    upstream gradient g, d logits = g * (onehot(target) - p). The entropy carries no gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NH.device)
        entropies_N = torch.empty_like(logprobs_N)
        logits_CV = hidden_NH.new_empty(0, len(weight_VH))
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            logits_CV = hidden_NH[rows] @ weight_VH.T
            logp_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
            logprobs_N[rows] = logp_CV.gather(1, targets_N[rows, None])[:, 0]
            entropies_N[rows] = -torch.linalg.vecdot(logp_CV.exp(), logp_CV)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, logits_CV)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_NH, weight_VH, targets_N, last_logits_CV = ctx.saved_tensors
        grad_N = grads[0]
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets_N), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            hidden_CH, grad_C1, target_C1 = hidden_NH[rows], grad_N[rows, None], targets_N[rows, None]
            logits_CV = last_logits_CV if start + ctx.chunk >= len(targets_N) else hidden_CH @ weight_VH.T
            grad_logits_CV = torch.softmax(logits_CV, dim=-1, dtype=torch.float32).mul_(-grad_C1)
            grad_logits_CV.scatter_add_(1, target_C1, grad_C1)
            grad_CV = grad_logits_CV.to(weight_VH.dtype)
            del grad_logits_CV
            grad_hidden_NH[rows] = grad_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH.addmm_(grad_CV.T, hidden_CH)
        return grad_hidden_NH, grad_weight_VH, None, None


class ChunkedHead(nn.Module):
    """The output projection with a log softmax that never holds N x V numbers.

    It owns the language model's own `lm_head.weight` parameter, so that hooks around this module (ZeRO-3's gathers)
    find it in both directions, tied to the embeddings or not.
    """

    def __init__(self, weight: nn.Parameter, *, chunk: int) -> None:
        super().__init__()
        self.weight = weight
        self.chunk = chunk

    def forward(self, hidden_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Raw (temperature 1) log-probabilities of the targets and entropies, both float32[N] in nats; the latter detached."""
        return _ChunkedLogprobs.apply(hidden_NH, self.weight, targets_N, self.chunk)


class Policy(nn.Module):
    """Scores the response tokens of a micro-batch with a Llama or CWM causal LM."""

    def __init__(self, model: nn.Module, *, chunk: int, checkpointing: bool = False, sequence: SequenceParallel | None = None) -> None:
        """
        Args:
            model: a `LlamaForCausalLM` or `CwmForCausalLM`; its weights are used, not copied.
            chunk: response tokens whose logits exist at a time.
            checkpointing: recompute each layer's activations in the backward pass.
            sequence: the ranks that score a micro-batch together, each on its share of the columns.

        Raises:
            ValueError: an architecture outside `SUPPORTED`, an output projection with a bias, or heads that cannot be shared out.
        """
        super().__init__()
        config: Any = model.config
        if config.model_type not in SUPPORTED:
            raise ValueError(f"model_type {config.model_type!r} is not supported; use one of {', '.join(SUPPORTED)}")
        language_model: Any = model
        if language_model.lm_head.bias is not None:
            raise ValueError("the model's lm_head has a bias; only bias-free heads are supported")
        if sequence is not None:
            check_heads(config.num_attention_heads, config.num_key_value_heads, sequence_parallel=sequence.size)
        self.config = config
        self._sequence = sequence
        self.backbone: Any = language_model.model
        self.head = ChunkedHead(language_model.lm_head.weight, chunk=chunk)
        self.layer_types: tuple[str, ...] = tuple(getattr(config, "layer_types", None) or ())
        if checkpointing:
            self.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @staticmethod
    def hf_name(name: str) -> str:
        """The Hugging Face state-dict name of one of this module's parameters."""
        if name == "head.weight":
            return "lm_head.weight"
        return "model." + name.removeprefix("backbone.")

    def forward(
        self,
        token_ids_BL: Tensor,
        positions_BL: Tensor,
        segments_BL: Tensor,
        documents_BL: Tensor,
        source_N: Tensor,
        targets_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Raw log-probabilities and entropies of the response tokens, float32[N] in nats; see `rl.records.MicroBatch`.

        Entropies are detached. Temperature is not applied.
        """
        if self._sequence is not None:
            return self._forward_share(self._sequence, token_ids_BL, positions_BL, segments_BL, documents_BL, source_N, targets_N)
        self.config._attn_implementation = _attention_for(self.config, token_ids_BL)
        layout = Layout(positions_BL=positions_BL, segments_BL=segments_BL, documents_BL=documents_BL)
        hidden_BLH = self._hidden(token_ids_BL, positions_BL, layout)
        return self.head(hidden_BLH.flatten(0, 1).index_select(0, source_N), targets_N)

    def _forward_share(
        self,
        sequence: SequenceParallel,
        token_ids_BL: Tensor,
        positions_BL: Tensor,
        segments_BL: Tensor,
        documents_BL: Tensor,
        source_N: Tensor,
        targets_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`forward` with this rank's share of the columns; the results are those of all tokens."""
        length = token_ids_BL.shape[1]
        more = -length % sequence.size
        ids_BL, places_BL = nn.functional.pad(token_ids_BL, (0, more)), nn.functional.pad(positions_BL, (0, more))
        layout = Layout(
            positions_BL=places_BL,
            segments_BL=nn.functional.pad(segments_BL, (0, more), value=-1),
            documents_BL=nn.functional.pad(documents_BL, (0, more), value=-1),
        )
        self.config._attn_implementation = ATTENTION
        hidden_BlH = self._hidden(sequence.share(ids_BL), sequence.share(places_BL), layout)
        share = hidden_BlH.shape[1]
        column_N = source_N % length - sequence.rank * share
        mine_N = (column_N >= 0) & (column_N < share)
        own = (source_N // length * share + column_N)[mine_N]
        logprobs, entropies = self.head(hidden_BlH.flatten(0, 1).index_select(0, own), targets_N[mine_N])
        return sequence.merge(logprobs, mine_N), sequence.merge(entropies, mine_N).detach()

    def _hidden(self, token_ids_BL: Tensor, positions_BL: Tensor, layout: Layout) -> Tensor:
        hidden_BLH: Tensor = self.backbone(
            input_ids=token_ids_BL,
            position_ids=positions_BL,
            attention_mask=self._masks(layout),
            use_cache=False,
        ).last_hidden_state
        return hidden_BLH

    def _masks(self, layout: Layout) -> Any:
        """The mask of every layer type, in the form that the backbone takes ready-made."""
        if self.config.model_type != "cwm":
            return self._mask(layout, window=None)
        windows = {"full_attention": None, "sliding_attention": self.config.sliding_window}
        return {kind: self._mask(layout, window=windows[kind]) for kind in dict.fromkeys(self.layer_types)}

    def _mask(self, layout: Layout, *, window: int | None) -> Any:
        if layout.positions_BL.device.type == "cuda":
            return blocks(layout, window=window)
        return additive(layout, window=window, dtype=self.backbone.norm.weight.dtype)

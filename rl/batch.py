"""From training samples to micro-batches: optimizer steps, documents with a shared prompt, packed rows, token budget, ranks.

 samples ─► optimizer steps ─► documents ─► micro-batches ────► ranks
            (whole groups,     (one prompt)  (longest first;     (equal counts:
             index order)                     short ones fill     ZeRO-3 gathers in step)
                                              the rows up)

All of it is a pure function of its arguments, in numpy; Python loops run over samples, never over tokens.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import Config, ObjectiveConfig
from rl.records import Batch, MicroBatch, TrainSample

PADDING_ROLLOUT = ""
"""Rollout id of the dummy sample in a micro-batch that only keeps ranks in step; its one token has weight 0."""

_LINEAR_COST = 4096
"""What the linear layers cost a token, in keys attended to. About 6 * hidden for the usual decoder: 12 h^2 against 2 h."""
_MOST_STRETCH = 8
"""Longest row that is tried, in documents as long as its longest."""


def make_batches(samples: Sequence[TrainSample], *, config: Config, n_rollouts: int) -> tuple[tuple[Batch, ...], ...]:
    """Batches indexed [rank][optimizer step]; every rank has the same number of micro-batches in each step, and ranks that share
    sequences have the same micro-batches.

    `n_rollouts` counts all rollouts of the batch, those that were skipped or left out too: it is the denominator of the
    rollout-mean objectives. There are `learner.optimizer_steps_per_batch` steps, fewer when fewer groups have something to
    learn from, and none without any. A step stands for its share of the rollouts, so every group weighs the same.

    Samples of advantage 0 get no row, unless a KL penalty acts on them; the tokens they sampled still count in token means.
    """
    keep_zero = config.objective.kl_coef > 0
    signal = {sample.group_index for sample in samples if sample.advantage != 0}
    groups = sorted(signal)
    n_steps = min(config.learner.optimizer_steps_per_batch, len(groups))
    together = config.learner.sequence_parallel
    places: list[list[Batch]] = [[] for _ in range(config.learner.ranks // together)]
    for step_groups in np.array_split(np.array(groups, dtype=np.int64), n_steps) if n_steps else ():
        members = set(step_groups.tolist())
        counted = sorted((sample for sample in samples if sample.group_index in members), key=lambda sample: sample.group_index)
        trained = [sample for sample in counted if keep_zero or sample.advantage != 0]
        n_tokens = sum(int(np.count_nonzero(sample.agent_mask_T)) for sample in counted)
        step = _step_batches(trained, config=config, n_places=len(places), n_rollouts=n_rollouts / n_steps, n_tokens=n_tokens)
        for batches, batch in zip(places, step, strict=True):
            batches.append(batch)
    return tuple(tuple(places[rank // together]) for rank in range(config.learner.ranks))


def token_weights(objective: ObjectiveConfig, lengths_S: np.ndarray, *, n_rollouts: float, n_tokens: int, max_tokens: int) -> np.ndarray:
    """float64[S]: loss weight of each token of a sample whose rollout has `lengths_S` agent tokens.

    `n_rollouts` and `n_tokens` are totals over all ranks and micro-batches of one optimizer step.

    cwm, dr_grpo   1 / (n_rollouts * length_norm): a constant, so that no answer is favoured for its length (arXiv 2510.02387;
                   arXiv 2503.20783, section 3.2). Skipped rollouts count: their terms of the sum are zero.
    grpo, gspo     1 / (n_rollouts * L_i): mean over a response, then over responses (arXiv 2402.03300, equation 3; for gspo all
                   tokens of a sequence carry the sequence's loss, arXiv 2507.18071, equation 5). Skipped rollouts count.
    rloo           1 / (n_rollouts * L_i): all tokens carry the sequence's loss, a sequence is one action (arXiv 2402.14740,
                   equation 6). Skipped rollouts count.
    dapo, cispo    1 / n_tokens (arXiv 2503.14476, equation 8; arXiv 2506.13585, equation 4), over the groups with a non-zero
                   advantage: DAPO's dynamic sampling leaves the others out.
    reinforce_pp   1 / n_tokens: the mean over tokens of its PPO loss (arXiv 2501.03262).
    """
    if objective.name in ("cwm", "dr_grpo"):
        return np.full(len(lengths_S), 1.0 / (n_rollouts * (objective.length_norm or max_tokens)))
    if objective.name in ("grpo", "gspo", "rloo"):
        return 1.0 / (n_rollouts * lengths_S)
    return np.full(len(lengths_S), 1.0 / n_tokens)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Flat:
    """The trained samples of one optimizer step, laid end to end: S samples, F tokens."""

    samples: Sequence[TrainSample]
    tokens_F: np.ndarray
    agent_F: np.ndarray
    logprobs_F: np.ndarray
    offset_S: np.ndarray
    """First token of each sample."""
    prompt_S: np.ndarray
    """Prompt tokens."""
    remainder_S: np.ndarray
    """Tokens after the prompt."""
    weight_S: np.ndarray
    """Loss weight of each agent token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    """A prompt and the samples that share it: what attention never leaves."""

    members: tuple[int, ...]
    length: int
    """Prompt plus remainders, each without its last token."""


_Row = list[_Document]
"""Documents laid end to end."""


def _step_batches(trained: Sequence[TrainSample], *, config: Config, n_places: int, n_rollouts: float, n_tokens: int) -> list[Batch]:
    """One batch a place: a rank, or the ranks that share sequences."""
    flat = _flatten(trained, config=config, n_rollouts=n_rollouts, n_tokens=n_tokens)
    budget = config.learner.micro_batch_tokens
    micro_batches = _align(_fill(_documents(flat, budget=budget), budget=budget), budget=budget, n_ranks=n_places)
    packed = [_pack(flat, rows) if rows else _dummy() for rows in micro_batches]
    n_trained = int(np.count_nonzero(flat.agent_F))
    return [Batch(micro_batches=tuple(packed[place::n_places]), n_tokens=n_trained, n_samples=len(trained)) for place in range(n_places)]


def _flatten(trained: Sequence[TrainSample], *, config: Config, n_rollouts: float, n_tokens: int) -> _Flat:
    lengths_S = np.array([len(sample.token_ids_T) for sample in trained], dtype=np.int64)
    offset_S = np.cumsum(lengths_S) - lengths_S
    prompt_S = np.array([sample.prompt_len for sample in trained], dtype=np.int64)
    agent_F = np.concatenate([sample.agent_mask_T for sample in trained])
    agents_S = np.add.reduceat(agent_F.astype(np.int64), offset_S)
    bad = np.flatnonzero((prompt_S < 1) | (agents_S < 1))
    if len(bad):
        sample = trained[int(bad[0])]
        raise ValueError(
            f"sample {sample.rollout_id}: prompt_len {sample.prompt_len}, {agents_S[bad[0]]} agent tokens; both must be at least 1"
        )
    # A rollout weighs the same however many samples it was cut into: means over a response count the tokens of all of them.
    _, rollout_S = np.unique([sample.rollout_id for sample in trained], return_inverse=True)
    lengths_of_rollouts_S = np.bincount(rollout_S, weights=agents_S)[rollout_S]
    weight_S = token_weights(
        config.objective, lengths_of_rollouts_S, n_rollouts=n_rollouts, n_tokens=n_tokens, max_tokens=config.sampling.max_tokens
    )
    return _Flat(
        samples=trained,
        tokens_F=np.concatenate([sample.token_ids_T for sample in trained]),
        agent_F=agent_F,
        logprobs_F=np.concatenate([sample.behaviour_logprobs_T for sample in trained]),
        offset_S=offset_S,
        prompt_S=prompt_S,
        remainder_S=lengths_S - prompt_S,
        weight_S=weight_S,
    )


def _documents(flat: _Flat, *, budget: int) -> list[_Document]:
    """Put samples of a group with the same prompt together, into as many documents as `_document_limit` asks for."""
    prompts: dict[tuple[int, bytes], list[int]] = {}
    for s, sample in enumerate(flat.samples):
        prompts.setdefault((sample.group_index, sample.token_ids_T[: sample.prompt_len].tobytes()), []).append(s)
    remainders = (flat.remainder_S - 1).tolist()
    documents = []
    for sharers in prompts.values():
        prompt = int(flat.prompt_S[sharers[0]])
        limit = _document_limit(prompt, budget=budget)
        members: list[int] = []
        length = prompt
        for s in sharers:
            if members and length + remainders[s] > limit:
                documents.append(_Document(members=tuple(members), length=length))
                members, length = [], prompt
            members.append(s)
            length += remainders[s]
        documents.append(_Document(members=tuple(members), length=length))
    return documents


def _document_limit(prompt: int, *, budget: int) -> int:
    """Most tokens of a document of several samples.

    Sharing saves prompt tokens but makes every token attend over a longer document. With k samples of R tokens it costs
    (P + k R) * (c + P + k R), c being `_LINEAR_COST`; per sample that is least at k R = sqrt(P * (P + c)).
    """
    return min(budget, prompt + math.isqrt(prompt * (prompt + _LINEAR_COST)))


def _fill(documents: Sequence[_Document], *, budget: int) -> list[list[_Row]]:
    """Micro-batches of packed rows: rows * length <= budget, except for a single document that is longer.

    Longer rows leave less room unused, but masked attention costs their length for every token. Of some lengths, in units of each
    micro-batch's longest document, the cheapest is taken.
    """
    return min((_filled(documents, budget=budget, stretch=stretch) for stretch in range(1, _MOST_STRETCH + 1)), key=_cost)


def _filled(documents: Sequence[_Document], *, budget: int, stretch: int) -> list[list[_Row]]:
    """Best fit, longest first: a document goes where it leaves the least room; a row is opened where it fits nowhere."""
    micro_batches: list[list[_Row]] = []
    rooms: list[tuple[int, int, int]] = []  # sorted: tokens left in a row, its micro-batch, its place there
    length = 0
    for document in sorted(documents, key=lambda document: (-document.length, document.members)):
        best = bisect.bisect_left(rooms, (document.length, 0, 0))
        if best < len(rooms):
            room, m, r = rooms.pop(best)
            micro_batches[m][r].append(document)
            bisect.insort(rooms, (room - document.length, m, r))
            continue
        if not micro_batches or (len(micro_batches[-1]) + 1) * length > budget:
            micro_batches.append([])
            length = document.length * max(1, min(stretch, budget // document.length))
        micro_batches[-1].append([document])
        bisect.insort(rooms, (length - document.length, len(micro_batches) - 1, len(micro_batches[-1]) - 1))
    return micro_batches


def _cost(micro_batches: Sequence[Sequence[_Row]]) -> int:
    """Of linear layers and masked attention, padding included, in keys attended to."""
    return sum(_size(rows) * (_LINEAR_COST + max(map(_length, rows))) for rows in micro_batches)


def _align(micro_batches: list[list[_Row]], *, budget: int, n_ranks: int) -> list[list[_Row]]:
    """Make the count a multiple of the ranks, largest first: rank r takes every n_ranks-th from r, so that ranks run
    micro-batches of similar size at the same time. Halves the largest ones while it can, then adds empty ones."""
    aligned = list(micro_batches)
    while len(aligned) % n_ranks and any(_n_documents(rows) > 1 for rows in aligned):
        largest = max((i for i, rows in enumerate(aligned) if _n_documents(rows) > 1), key=lambda i: (_size(aligned[i]), -i))
        aligned[largest : largest + 1] = [half for part in _halves(aligned[largest]) for half in _fill(part, budget=budget)]
    aligned.sort(key=_size, reverse=True)
    return aligned + [[]] * (-len(aligned) % n_ranks)


def _halves(rows: Sequence[_Row]) -> tuple[list[_Document], list[_Document]]:
    """The longest documents, at most half of the tokens but one document at least, and the others."""
    documents = sorted((document for row in rows for document in row), key=lambda document: (-document.length, document.members))
    ends = np.cumsum([document.length for document in documents])
    cut = max(1, int(np.searchsorted(ends, ends[-1] / 2, side="right")))
    return documents[:cut], documents[cut:]


def _n_documents(rows: Sequence[_Row]) -> int:
    return sum(map(len, rows))


def _length(row: _Row) -> int:
    return sum(document.length for document in row)


def _size(rows: Sequence[_Row]) -> int:
    """Tokens, padding included."""
    return len(rows) * max(map(_length, rows))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, .. for lengths[0] values, then the same for the next."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def _pack(flat: _Flat, rows: Sequence[_Row]) -> MicroBatch:
    """Lay documents out as `MicroBatch` describes.

    The last token of a remainder is only ever a target, so it takes no place in the row.
    """
    shape = (len(rows), max(map(_length, rows)))
    documents = [document for row in rows for document in row]
    members_M = np.array([s for document in documents for s in document.members], dtype=np.int64)
    sharers_D = np.array([len(document.members) for document in documents], dtype=np.int64)
    first_D = np.cumsum(sharers_D) - sharers_D
    leader_D = members_M[first_D]
    starts = [np.cumsum([0, *(document.length for document in row[:-1])]) + i * shape[1] for i, row in enumerate(rows)]
    start_D = np.concatenate(starts).astype(np.int64)
    prompt_M, remainder_M = flat.prompt_S[members_M], flat.remainder_S[members_M]
    inputs_M = remainder_M - 1
    # Start of each remainder: after the prompt and after the remainders before it in the same document.
    before_M = np.cumsum(inputs_M) - inputs_M
    start_M = np.repeat(start_D, sharers_D) + prompt_M + before_M - np.repeat(before_M[first_D], sharers_D)
    segment_M = np.arange(len(members_M)) - np.repeat(first_D, sharers_D) + 1
    document_D = np.concatenate([np.arange(len(row)) for row in rows])

    pieces = np.concatenate([flat.prompt_S[leader_D], inputs_M])
    to = _ranges(np.concatenate([start_D, start_M]), pieces)
    tokens_BL, positions_BL = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segments_BL, documents_BL = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
    tokens_BL.flat[to] = flat.tokens_F[_ranges(np.concatenate([flat.offset_S[leader_D], flat.offset_S[members_M] + prompt_M]), pieces)]
    positions_BL.flat[to] = _ranges(np.concatenate([np.zeros_like(leader_D), prompt_M]), pieces)
    segments_BL.flat[to] = np.repeat(np.concatenate([np.zeros_like(leader_D), segment_M]), pieces)
    documents_BL.flat[to] = np.repeat(np.concatenate([document_D, np.repeat(document_D, sharers_D)]), pieces)

    source = _ranges(start_M - 1, remainder_M)
    source[np.cumsum(remainder_M) - remainder_M] = np.repeat(start_D, sharers_D) + prompt_M - 1
    target = _ranges(flat.offset_S[members_M] + prompt_M, remainder_M)
    agent = flat.agent_F[target]
    sample_N = np.repeat(np.arange(len(members_M)), remainder_M)[agent]
    advantage_M = np.array([flat.samples[s].advantage for s in members_M], dtype=np.float32)
    return MicroBatch(
        token_ids_BL=tokens_BL,
        positions_BL=positions_BL,
        segments_BL=segments_BL,
        documents_BL=documents_BL,
        source_N=source[agent],
        targets_N=flat.tokens_F[target[agent]].astype(np.int64),
        behaviour_logprobs_N=flat.logprobs_F[target[agent]],
        advantages_N=advantage_M[sample_N],
        weights_N=flat.weight_S[members_M].astype(np.float32)[sample_N],
        sample_N=sample_N.astype(np.int32),
        rollout_ids=tuple(flat.samples[s].rollout_id for s in members_M),
        parts=tuple(flat.samples[s].part for s in members_M),
    )


def _dummy() -> MicroBatch:
    """One token that predicts itself with weight 0: keeps a rank's forward and backward in step with the others."""
    zero_N, nothing_N = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    return MicroBatch(
        token_ids_BL=np.zeros((1, 1), dtype=np.int64),
        positions_BL=np.zeros((1, 1), dtype=np.int64),
        segments_BL=np.zeros((1, 1), dtype=np.int32),
        documents_BL=np.zeros((1, 1), dtype=np.int32),
        source_N=zero_N,
        targets_N=zero_N,
        behaviour_logprobs_N=nothing_N,
        advantages_N=nothing_N,
        weights_N=nothing_N,
        sample_N=np.zeros(1, dtype=np.int32),
        rollout_ids=(PADDING_ROLLOUT,),
        parts=(0,),
    )

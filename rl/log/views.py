"""Named views: the questions that are asked of every run, each with documented columns.

They read narrow columns only, so that they answer within a second over a million rollouts. `rl sql RUN "FROM contrast"` is a use of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_TRAIN = "split = 'train'"


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedView:
    """One view."""

    about: str
    """What a row is, and the order of rows."""
    columns: Mapping[str, str]
    """What each column means, in order."""
    sql: str


CONTRAST = NamedView(
    about="a group of training with both winners and losers; those that were won least often come first",
    columns={
        "group_id": "of the rollouts",
        "group_index": "position in the task source's order",
        "task_id": "what was asked",
        "source": "task source",
        "env": "environment",
        "dispatch_version": "policy version when the group was started",
        "n": "graded rollouts",
        "won": "of them with status ok",
        "pass_rate": "won / n",
        "reward_low": "least reward",
        "reward_high": "highest reward",
        "winner": "id of the first winner",
        "loser": "id of the first loser",
    },
    sql=f"""SELECT group_id, any_value(group_index) AS group_index, any_value(task_id) AS task_id, any_value(source) AS source,
        any_value(env) AS env, dispatch_version, count(*) AS n, count(*) FILTER (status = 'ok') AS won,
        count(*) FILTER (status = 'ok') / count(*) AS pass_rate, min(reward) AS reward_low, max(reward) AS reward_high,
        min(rollout_id) FILTER (status = 'ok') AS winner, min(rollout_id) FILTER (status <> 'ok') AS loser
        FROM rollouts WHERE {_TRAIN} AND reward IS NOT NULL GROUP BY group_id, dispatch_version
        HAVING count(*) FILTER (status = 'ok') > 0 AND count(*) FILTER (status = 'ok') < count(*) ORDER BY pass_rate, group_index""",
)

BIOGRAPHY = NamedView(
    about="a task at one policy version, in training and held out: one task through training",
    columns={
        "task_id": "what was asked",
        "source": "task source",
        "split": "train or heldout",
        "dispatch_version": "policy version when the rollouts were started",
        "n": "rollouts",
        "graded": "of them with a reward",
        "won": "of them with status ok",
        "pass_rate": "won / graded; null when nothing was graded",
        "reward_mean": "over the graded",
        "sampled_tokens": "mean a rollout",
        "first": "id of the first rollout",
        "best": "id of the rollout with the highest reward",
    },
    sql="""SELECT task_id, source, split, dispatch_version, count(*) AS n, count(reward) AS graded,
        count(*) FILTER (status = 'ok') AS won, count(*) FILTER (status = 'ok') / nullif(count(reward), 0) AS pass_rate,
        avg(reward) AS reward_mean, avg(sampled_tokens) AS sampled_tokens, min(rollout_id) AS first,
        arg_max(rollout_id, reward) AS best FROM rollouts GROUP BY task_id, source, split, dispatch_version
        ORDER BY task_id, source, split, dispatch_version""",
)

MISMATCH = NamedView(
    about="a trained rollout and the sampled token on which generator and learner differ most; the 10,000 worst, worst first",
    columns={
        "rollout_id": "of the rollout",
        "train_step": "step in which it was trained on",
        "dispatch_version": "policy version when it was started",
        "difference": "learner's logprob - generator's, nats",
        "token_index": "among the sampled tokens, from 0; `behaviour_logprob[token_index + 1]` in SQL",
        "token_id": "of the token",
        "behaviour_logprob": "generator's, raw, nats",
        "learner_logprob": "learner's before the update, raw, nats",
        "kl": "mean k3 over the rollout's tokens, nats",
        "staleness_mean": "versions between sampling and training",
    },
    sql="""SELECT rollout_id, train_step, dispatch_version, worst_learner - worst_behaviour AS difference, worst_index AS token_index,
        worst_token AS token_id, worst_behaviour AS behaviour_logprob, worst_learner AS learner_logprob, kl, staleness_mean
        FROM learner WHERE admitted AND kl IS NOT NULL
        ORDER BY abs(worst_learner - worst_behaviour) DESC NULLS LAST, kl DESC LIMIT 10000""",
)

MOVERS = NamedView(
    about="one of the 100 rollouts that moved the policy most in a training step, by |advantage| x trained tokens",
    columns={
        "train_step": "1-based",
        "rank": "1 moved the policy most",
        "rollout_id": "of the rollout",
        "group_id": "of its group",
        "advantage": "of all its tokens",
        "n_tokens": "trained on",
        "pull": "|advantage| x n_tokens",
        "share": "of the step's pull",
        "n_clipped": "tokens whose gradient the objective cut",
        "kl": "mean k3 over its tokens, nats",
        "dispatch_version": "policy version when it was started",
    },
    sql="""WITH pulled AS (SELECT train_step, rollout_id, group_id, advantage, n_tokens, abs(advantage) * n_tokens AS pull, n_clipped, kl,
        dispatch_version FROM learner WHERE admitted AND advantage IS NOT NULL),
        ranked AS (SELECT *, row_number() OVER (PARTITION BY train_step ORDER BY pull DESC, rollout_id) AS rank,
        pull / nullif(sum(pull) OVER (PARTITION BY train_step), 0) AS share FROM pulled)
        SELECT train_step, rank, rollout_id, group_id, advantage, n_tokens, pull, share, n_clipped, kl, dispatch_version FROM ranked
        WHERE rank <= 100 ORDER BY train_step, rank""",
)

DROPS = NamedView(
    about="a reason why something was not trained on or not logged, in a training step",
    columns={
        "train_step": "1-based; null for records of the log",
        "what": "rollout: not trained on. group: never became rollouts. log: an optional record that was not written",
        "reason": "drop reason, or the dataset of the record",
        "n": "how many",
        "share": "of the step's rollouts; null for others",
    },
    sql="""WITH seen AS (SELECT train_step, drop_reason AS reason, count(*) AS n FROM learner GROUP BY ALL),
        rollout AS (SELECT train_step, 'rollout' AS what, reason, n, n / sum(n) OVER (PARTITION BY train_step) AS share FROM seen
        QUALIFY reason IS NOT NULL),
        counted AS (SELECT step AS train_step, unnest(map_keys(drops)) AS reason, unnest(map_values(drops)) AS n FROM metrics),
        lost AS (SELECT unnest(map_keys(dropped)) AS reason, unnest(map_values(dropped)) AS n FROM writers)
        SELECT train_step, what, reason, n, share FROM rollout
        UNION ALL SELECT train_step, 'group', reason, n, NULL FROM counted ANTI JOIN seen USING (train_step, reason) WHERE n > 0
        UNION ALL SELECT NULL, 'log', reason, sum(n)::BIGINT, NULL FROM lost GROUP BY reason
        ORDER BY train_step, n DESC""",
)

ZERO_VARIANCE = NamedView(
    about="a policy version: how many of its groups of training had equal rewards",
    columns={
        "dispatch_version": "policy version when the groups were started",
        "groups": "with at least one graded rollout",
        "same": "of them with equal rewards",
        "share": "same / groups",
        "all_won": "of them with every rollout ok",
        "none_won": "of them with no rollout ok",
    },
    sql=f"""WITH grouped AS (SELECT dispatch_version, group_id, min(reward) = max(reward) AS same,
        bool_and(status = 'ok') AS won, NOT bool_or(status = 'ok') AS lost FROM rollouts WHERE {_TRAIN} AND reward IS NOT NULL
        GROUP BY dispatch_version, group_id)
        SELECT dispatch_version, count(*) AS groups, count(*) FILTER (same) AS same, avg(same::INT) AS share,
        count(*) FILTER (same AND won) AS all_won, count(*) FILTER (same AND lost) AS none_won FROM grouped
        GROUP BY dispatch_version ORDER BY dispatch_version""",
)

REWARD_PARTS = NamedView(
    about="a component of the reward at one policy version, over rollouts of training",
    columns={
        "part": "name of the component",
        "dispatch_version": "policy version when the rollouts were started",
        "n": "rollouts that have it",
        "mean": "of its value",
        "weighted": "mean of value x weight: what it adds to the reward",
        "low": "least value",
        "high": "highest value",
    },
    sql=f"""WITH parted AS (SELECT dispatch_version, unnest(map_keys(parts)) AS part, unnest(map_values(parts)) AS it
        FROM rollouts WHERE {_TRAIN})
        SELECT part, dispatch_version, count(*) AS n, avg(it.value) AS mean, avg(it.value * it.weight) AS weighted,
        min(it.value) AS low, max(it.value) AS high FROM parted GROUP BY part, dispatch_version ORDER BY part, dispatch_version""",
)

FLAGS = NamedView(
    about="a flag that was raised, on rollouts or on the run; the most frequent come first",
    columns={
        "name": "of the rule",
        "level": "rollout or run",
        "count": "rollouts (or steps) that carry it",
        "share": "of all rollouts; null for the run's",
        "first_version": "first policy version with it",
        "last_version": "last policy version with it",
        "examples": "ids of the five newest rollouts, or `step N`",
        "reason": "why it was raised last",
    },
    sql="""WITH flagged AS (SELECT rollout_id, dispatch_version, flag_reasons, unnest(rollouts.flags) AS name FROM rollouts
        WHERE len(rollouts.flags) > 0)
        SELECT name, 'rollout' AS level, count(*) AS count, count(*) / (SELECT count(*) FROM rollouts) AS share,
        min(dispatch_version) AS first_version, max(dispatch_version) AS last_version,
        max_by(rollout_id, (dispatch_version, rollout_id), 5) AS examples,
        max_by(flag_reasons[name], (dispatch_version, rollout_id)) AS reason FROM flagged GROUP BY name
        UNION ALL SELECT name, 'run', count(*), NULL, min(step), max(step), max_by('step ' || step, step, 5), max_by(reason, step)
        FROM run_flags GROUP BY name ORDER BY count DESC, name""",
)

VIEWS: dict[str, NamedView] = {
    "contrast": CONTRAST,
    "biography": BIOGRAPHY,
    "mismatch": MISMATCH,
    "movers": MOVERS,
    "drops": DROPS,
    "zero_variance": ZERO_VARIANCE,
    "reward_parts": REWARD_PARTS,
    "flags": FLAGS,
}
"""By name."""

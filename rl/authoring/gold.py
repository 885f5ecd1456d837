"""The reply, or the replies of an episode, that a problem's own data says are right."""

from environments.code_tests.read import TEST_ENVS
from environments.records import Problem
from environments.sources.code_rows import CODE_ENVS
from environments.traces.tasks import FULL, INPUT, NEXT_FRAME, OUTPUT, RETURN


def gold_reply(problem: Problem) -> str | tuple[str, ...] | None:
    """`reference['replies']`, one a turn; else `reference['solution']`; of the code and trace environments, else the row's right code,
    output, input or frames; None without any."""
    replies = problem.reference.get("replies")
    if isinstance(replies, list):
        return tuple(map(str, replies))
    solution = problem.reference.get("solution")
    if isinstance(solution, str):
        return solution
    env = problem.task.env
    if env in (NEXT_FRAME, FULL, RETURN):
        answer = problem.reference.get("answer")
        return answer if isinstance(answer, str) else None
    if env not in (*CODE_ENVS, OUTPUT, INPUT):
        return None
    code = problem.reference.get("reference" if env in TEST_ENVS and env != "code_input" else "answer")
    return f"```\n{code}\n```" if isinstance(code, str) else None

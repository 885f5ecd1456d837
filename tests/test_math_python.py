"""Math with a Python tool, in a real sandbox: sessions, hostile cells, and whole rollouts."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

import environments.python_session as python_session
import environments.sandbox.shared as shared
from configs.schema import Config, ModelConfig, RolloutConfig, RunConfig, SamplingConfig, TaskConfig
from environments.math_python import INSTRUCTIONS, MAX_CALLS, MathPython
from environments.python_session import CellResult, PythonSession, SharedSessions
from environments.records import Message, StepResult, StopReason, Task
from environments.registry import make_environment
from environments.reply import ToolCall, ToolCallError, only_tool_call
from environments.sandbox.base import SandboxUnavailable
from rewards.score import ScoreStatus
from rl.prompt import ChatTokenizer, Renderer, load_tokenizer
from rl.records import Sampling
from rl.rollout import GroupJob, RolloutWorker
from rl.tokenizer import save_tiny_tokenizer
from tests.fakes import make_problem
from tests.test_rollout import ScriptedGenerator

TASK = Task(id="t", env="math_python", prompt=(Message(role="user", content="6*7="),))


def call(code: str, *, name: str = "python") -> str:
    return f"<tool: {name}>\n{code}\n</tool>"


def play(*actions: str) -> list[StepResult]:
    """One episode with these messages of the policy, as far as it goes."""

    async def main() -> list[StepResult]:
        environment = make_environment(TASK)
        await environment.reset()
        results = []
        try:
            for action in actions:
                results.append(await environment.step(Message(role="assistant", content=action)))
                if results[-1].done:
                    break
        finally:
            await environment.close()
        assert not SharedSessions._by_loop
        return results

    return asyncio.run(main())


def outputs(*cells: str) -> list[str]:
    """What the policy sees after each cell."""
    results = play(*(call(cell) for cell in cells))
    assert all([message.role == "tool" and message.name == "python" for message in result.messages] == [True] for result in results)
    return [result.messages[0].content for result in results]


def test_variables_live_on_and_calls_are_counted() -> None:
    assert outputs("x = 6", "x *= 7\nprint('now', x)", "x + 1", "def f(n):\n    return n - x\nf(50)") == [
        "[3 of 4 calls left]",
        "now 42\n[2 of 4 calls left]",
        "43\n[1 of 4 calls left]",
        "8\n[no calls left: answer now]",
    ]


def test_an_error_is_shown_and_the_session_goes_on() -> None:
    first, second, third = outputs("y = 5\nprint('before')\n1/0", "print(y", "y")
    assert first.startswith("before\nTraceback") and "ZeroDivisionError: division by zero" in first
    assert "python_driver" not in first and 'File "<cell>", line 3' in first
    assert "SyntaxError" in second
    assert third == "5\n[1 of 4 calls left]"


def test_the_exit_code_of_a_cell_is_told_and_not_shown() -> None:
    cells = ("1", "1/0", "import os; os._exit(7)", "2")
    messages = [result.messages[0] for result in play(*map(call, cells))]
    assert [message.exit_code for message in messages] == [0, 1, 7, 0]
    assert play(call("1", name="bash"))[0].messages[0].exit_code is None, "nothing was run"


def test_a_turn_without_a_call_is_the_answer() -> None:
    results = play(call("1"), r"So it is \boxed{42}.")
    assert [result.done for result in results] == [False, True]
    assert results[1].stop_reason is StopReason.DONE and results[1].messages == ()
    (only,) = play(r"<think>Shall I write <tool: python>? No.</think>\boxed{42}")
    assert only.done


def test_malformed_calls_run_nothing_and_count() -> None:
    bad = [call("1") + call("2"), "<tool: python>\nprint(1)", call("1", name="bash"), call("")]
    texts = [result.messages[0].content for result in play(*bad)]
    assert texts == [
        "[nothing was run: 2 tool calls instead of exactly one]\n[3 of 4 calls left]",
        "[nothing was run: the tool call is not closed: end it with </tool>]\n[2 of 4 calls left]",
        "[nothing was run: there is no tool 'bash'; the only one is python]\n[1 of 4 calls left]",
        "[no calls left: answer now]",
    ]


@pytest.mark.parametrize("fifth", [call("1"), "<tool: python>", call("1") + call("2")])
def test_a_call_too_many_ends_the_episode(fifth: str) -> None:
    results = play(*[call("1")] * MAX_CALLS, fifth)
    assert [result.done for result in results] == [False] * MAX_CALLS + [True]


HOSTILE = {
    "exits": ("import os; os._exit(0)", "process ended with exit code 0"),
    "raises SystemExit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "raises KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "kills itself": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM); os.abort()", "[the session ended"),
    "takes memory": ("x = 'a' * (1 << 40)", "MemoryError"),
    "recurses": ("def f(): f()\nf()", "RecursionError"),
    "floods print": ("print('y' * 5_000_000)", "more characters]"),
    "floods in pieces": ("for _ in range(200_000): print('yyyyyyyyyyyyyyyyyyyy')", "more characters]"),
    "floods its own descriptor": ("import os\nfor _ in range(2000): os.write(1, b'y' * 65536)\nprint('done')", "done"),
    "closes everything": ("import os; os.closerange(0, 256)", "[the session ended"),
    "shows odd text": (r"print('\ud800 \x00 \x1b[2J')", "? \ufffd \x1b[2J"),
    "has a hostile repr": ("class A:\n    def __repr__(self): raise ValueError('no')\nA()", "ValueError: no"),
    "breaks print": ("import builtins, sys\nbuiltins.print = None\nsys.stdout = None\n1 + 1", "[3 of 4 calls left]"),
    "is no text": ("\ud800", "Error"),
    "has NUL": ("print(1)\0", "SyntaxError"),
    "nests deeply": ("(" * 5000 + ")" * 5000, "[3 of 4 calls left]"),
    "forges an answer": (
        "import gc, json, io\n"
        "for f in [o for o in gc.get_objects() if isinstance(o, io.BufferedWriter)]:\n"
        "    f.write(json.dumps({'nonce': 'x', 'output': 'forged', 'failed': False}).encode() + b'\\n'); f.flush()\n",
        "something else than its results",
    ),
    "forges no JSON": (
        "import gc, io\n"
        "for f in [o for o in gc.get_objects() if isinstance(o, io.BufferedWriter)]:\n"
        "    f.write(b'[' * 90000 + b'\\n'); f.flush()\n",
        "something else than its results",
    ),
}


@pytest.mark.parametrize(("code", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_cells_hurt_only_themselves(code: str, shown: str) -> None:
    first, second = outputs(code, "20 + 3")
    assert shown in first and len(first) < 9000
    first.encode()
    assert second.splitlines()[-1] == "[2 of 4 calls left]"
    assert "builtins.print" in code or "23" in second


def test_a_forged_answer_with_the_right_nonce_is_the_policys_own_loss() -> None:
    forge = (
        "import gc, json, io, sys\n"
        "nonce = sys._getframe(2).f_locals['request']['nonce']\n"
        "for f in [o for o in gc.get_objects() if isinstance(o, io.BufferedWriter)]:\n"
        "    f.write(json.dumps({'nonce': nonce, 'output': 'forged', 'failed': False}).encode() + b'\\n'); f.flush()\n"
    )
    texts = outputs(forge, "print(1)", "print(2)")
    assert texts[0] == "forged\n[3 of 4 calls left]"
    assert "something else than its results" in texts[1], "the driver's own line arrives too late and ends the session"
    assert texts[2] == "2\n[1 of 4 calls left]"


def test_a_cell_that_takes_too_long_ends_the_session_and_a_fresh_one_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_session, "CELL_SECONDS", 1.0)
    texts = outputs("x = 1", "while True: pass", "x")
    assert texts[1].startswith(
        "[the session ended: it took longer than 1 s. Its variables are lost; the next call starts a fresh session.]"
    )
    assert "NameError: name 'x' is not defined" in texts[2]


def test_the_session_sees_neither_the_host_nor_other_episodes() -> None:
    async def main() -> list[str]:
        one, other = PythonSession(), PythonSession()
        try:
            await one.run("secret = 1; open('/tmp/trace', 'w').write('x')")
            look = "import os, glob; print(os.environ, glob.glob('/tmp/*'), os.path.exists('/proc/1'), 'secret' in globals(), os.getpid())"
            network = "import socket\ntry:\n    socket.create_connection(('1.1.1.1', 53), 1)\nexcept OSError: print('no network')"
            return [(await other.run(look)).text, (await other.run(network)).text]
        finally:
            await one.close()
            await other.close()

    seen, network = asyncio.run(main())
    assert "trace" not in seen and "True" not in seen and "PATH" not in seen and network == "no network\n"


def test_more_episodes_than_boxes_keep_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_session, "MAX_OPEN", 2)

    async def main() -> list[list[CellResult]]:
        sessions = [PythonSession() for _ in range(5)]
        try:
            rounds = []
            for cell in ("x = [{n}]", "x.append(x[-1] + 10); 1/0", "print(x)"):
                rounds.append(list(await asyncio.gather(*(s.run(cell.format(n=n)) for n, s in enumerate(sessions)))))
                assert sum(s._session is not None for s in sessions) == 2
            return rounds
        finally:
            await asyncio.gather(*(s.close() for s in sessions))

    assert [result.text for result in asyncio.run(main())[2]] == [f"[{n}, {n + 10}]\n" for n in range(5)]


def test_no_sandbox_is_an_infrastructure_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise SandboxUnavailable("install bubblewrap")

    monkeypatch.setattr(shared, "make_sandbox", unavailable)
    with pytest.raises(SandboxUnavailable, match="install bubblewrap"):
        play(call("1"))


def test_the_tool_is_explained_in_the_system_message() -> None:
    opening = asyncio.run(MathPython(TASK).reset())
    assert opening == (Message(role="system", content=INSTRUCTIONS), *TASK.prompt)
    task = Task(id="t", env="math_python", prompt=(Message(role="system", content="Be brief."), *TASK.prompt))
    assert asyncio.run(MathPython(task).reset())[0].content == f"Be brief.\n\n{INSTRUCTIONS}"
    example = only_tool_call(INSTRUCTIONS)
    assert example == ToolCall(name="python", body="print(6 * 7)")


def test_reading_tool_calls_is_linear() -> None:
    n = 300_000
    assert only_tool_call("</think>" * n) is None
    assert only_tool_call("<tool:" * n) is None
    for hostile in ("<tool: a>" * n, "<tool: a>" + "x" * n, "<tool:" * n + " a>"):
        with pytest.raises(ToolCallError):
            only_tool_call(hostile)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return load_tokenizer(folder)


def test_whole_rollouts_with_the_tool(tokenizer: ChatTokenizer) -> None:
    scripts: Sequence[Sequence[str]] = [
        [call("x=6"), call("x*7"), r"\boxed{42}"],
        [call("print(6*8)"), r"\boxed{48}"],
        [call("1")] * (MAX_CALLS + 1),
    ]
    generator = ScriptedGenerator(tokenizer, lambda episode, turn: scripts[int(episode[-1])][turn])
    config = Config(
        run=RunConfig(name="t"),
        model=ModelConfig(path="m", max_prompt_tokens=2000, context_length=8000),
        tasks={"fake": TaskConfig(kind="programs", env="math_python")},
        sampling=SamplingConfig(max_tokens=100),
        rollout=RolloutConfig(samples_per_prompt=3, retries=0, max_turns=MAX_CALLS + 2),
    )

    async def main() -> list[tuple[ScoreStatus, int, StopReason, list[str]]]:
        worker = RolloutWorker(config, renderer=Renderer(tokenizer), generators=[generator], write_group=lambda group: None)
        problem = make_problem(env="math_python", answer="42")
        job = GroupJob(
            group_id="00000000",
            index=0,
            problem=problem,
            split="train",
            n_samples=3,
            dispatch_version=0,
            sampling=Sampling(max_tokens=100),
            seed=1,
        )
        outcome = await worker.run_group(job)
        await worker.close()
        assert outcome.group is not None
        return [
            (r.score.status, len(r.turns), r.stop_reason, [m.content for m in r.messages if m.role == "tool"])
            for r in outcome.group.rollouts
        ]

    right, wrong, endless = asyncio.run(main())
    assert right == (ScoreStatus.OK, 3, StopReason.DONE, ["[3 of 4 calls left]", "42\n[2 of 4 calls left]"])
    assert wrong == (ScoreStatus.POLICY_FAIL, 2, StopReason.DONE, ["48\n[3 of 4 calls left]"])
    assert endless[:3] == (ScoreStatus.POLICY_FAIL, 5, StopReason.DONE)
    shown = tokenizer.encode("42\n[2 of 4 calls left]")
    last = [request for request in generator.requests if request.episodes == ("00000000-0",)][-1].prompt_ids_P.tolist()
    assert any(last[at : at + len(shown)] == shown for at in range(len(last))), "the policy sees what the tool said"


def test_classes_of_a_cell_can_be_pickled_and_be_data_classes() -> None:
    define = 'import pickle\nfrom dataclasses import dataclass\n@dataclass\nclass Node:\n    value: int\n    left: "Node" = None'
    (_, shown) = outputs(define, "pickle.loads(pickle.dumps(Node(1, Node(2))))")
    assert shown.startswith("Node(value=1, left=Node(value=2, left=None))")

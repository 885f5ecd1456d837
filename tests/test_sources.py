"""Task sources and mixtures: same seed, same draws, after any resume; held-out problems never trained on; clear errors."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pytest

from configs.schema import Config, RunConfig, TaskConfig
from environments.records import Message, Problem, Task
from environments.registry import task_source
from environments.sources.base import content_key, random_stream
from environments.sources.build import build_tasks
from environments.sources.mixture import BLOCK, Mixture, MixturePart, MixtureState

SHARED = Path(__file__).parents[2] / "shared" / "data"
ROW = {"id": "r0", "question": "1+1?", "answer": "2"}


def mix(seed: int = 0, plugins: Sequence[str] = (), **tasks: TaskConfig) -> Mixture:
    return build_tasks(Config(run=RunConfig(name="test", seed=seed, plugins=tuple(plugins)), tasks=tasks))


def programs(
    kind: str = "addition", env: str = "math", *, weight: float = 1.0, heldout: int = 0, limit: int = 0, **options: Any
) -> TaskConfig:
    return TaskConfig(kind="programs", env=env, weight=weight, heldout=heldout, limit=limit, options={"kind": kind, **options})


def jsonl(path: Path, *rows: object, env: str = "math", **settings: Any) -> TaskConfig:
    """Write rows (objects, or lines as text) and return a source that reads them."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return TaskConfig(kind="jsonl", env=env, path=str(path), **settings)


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "question": f"{i}+1?", "answer": i + 1} for i in range(count)]


def draw(mixture: Mixture, count: int) -> list[tuple[int, Problem]]:
    return [mixture.next() for _ in range(count)]


def ids(problems: Sequence[Problem]) -> list[str]:
    return [problem.task.id for problem in problems]


# Mixtures


def test_a_restored_mixture_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    def make() -> Mixture:
        return mix(
            7,
            rows=jsonl(tmp_path / "rows.jsonl", *numbered(30), heldout=5),
            sums=programs(heldout=5, weight=2.0),
            gym=TaskConfig(kind="reasoning_gym", env="math", options={"dataset": "chain_sum"}),
        )

    straight = make()
    whole = draw(straight, BLOCK + 50)
    assert [index for index, _ in whole] == list(range(BLOCK + 50))
    for stop in (0, 1, 100, BLOCK - 1, BLOCK + 3):
        first = make()
        draw(first, stop)
        saved = json.loads(json.dumps(asdict(first.state())))
        second = make()
        second.restore(MixtureState(**saved))
        assert draw(second, 40) == whole[stop : stop + 40]
    assert [make().at(index) for index in (BLOCK + 1, 3, 500)] == [whole[index][1] for index in (BLOCK + 1, 3, 500)]
    assert make().heldout() == straight.heldout()
    assert draw(mix(8, sums=programs()), 5) != draw(mix(9, sums=programs()), 5)


def test_resuming_on_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    saved = mix(1, rows=jsonl(path, *numbered(10), heldout=2)).state()
    mix(1, rows=jsonl(path, *numbered(10), heldout=2)).restore(saved)
    changed = [
        mix(2, rows=jsonl(path, *numbered(10), heldout=2)),
        mix(1, rows=jsonl(path, *numbered(10), heldout=3)),
        mix(1, rows=jsonl(path, *numbered(10), heldout=2, prompt="{question} Think.")),
        mix(1, rows=jsonl(path, *numbered(11), heldout=2)),
        mix(1, rows=jsonl(path, *numbered(10), heldout=2), more=programs()),
    ]
    for other in changed:
        with pytest.raises(ValueError, match="other data, weights or seed"):
            other.restore(saved)


def test_sources_are_drawn_by_weight() -> None:
    mixture = mix(3, a=programs(weight=1.0), b=programs(weight=3.0), c=programs("function", "code", weight=0.5))
    counts = Counter(problem.source for _, problem in draw(mixture, 4500))
    # the expected counts are 1000, 3000 and 500; five standard deviations are at most 160
    assert abs(counts["a"] - 1000) < 160 and abs(counts["b"] - 3000) < 160 and abs(counts["c"] - 500) < 110


def test_each_source_advances_by_its_own_draws_only() -> None:
    mixture = mix(3, a=programs(), b=programs("output", "code_output"))
    drawn = [problem for _, problem in draw(mixture, 3 * BLOCK)]
    for name, kind in (("a", "addition"), ("b", "output")):
        own = [problem.task.id for problem in drawn if problem.source == name]
        assert own == [f"{kind}-{position}" for position in range(len(own))]


def test_every_epoch_is_another_permutation(tmp_path: Path) -> None:
    mixture = mix(5, rows=jsonl(tmp_path / "rows.jsonl", *numbered(20), heldout=4))
    drawn = ids([problem for _, problem in draw(mixture, 48)])
    epochs = [drawn[0:16], drawn[16:32], drawn[32:48]]
    assert {frozenset(epoch) for epoch in epochs} == {frozenset(f"r{i}" for i in range(20)) - set(ids(mixture.heldout()))}
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_heldout_rows_are_chosen_by_the_seed_and_never_trained_on(tmp_path: Path) -> None:
    task = jsonl(tmp_path / "rows.jsonl", *numbered(200), heldout=50)
    mixture = mix(1, rows=task)
    held = mixture.heldout()
    assert len(set(ids(held))) == 50 and ids(held) == ids(mix(1, rows=task).heldout()) != ids(mix(2, rows=task).heldout())
    trained = {problem.task.id for _, problem in draw(mixture, 300)}
    assert len(trained) == 150 and trained.isdisjoint(ids(held))


def test_a_row_that_repeats_a_heldout_question_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": f"{i % 10}?", "answer": 1} for i in range(40)]
    mixture = mix(1, rows=jsonl(tmp_path / "rows.jsonl", *rows, heldout=3))
    held = {content_key(problem) for problem in mixture.heldout()}
    assert len(held) == 3
    assert {content_key(problem) for _, problem in draw(mixture, 100)}.isdisjoint(held)


def test_procedural_heldout_problems_are_distinct_and_never_trained_on() -> None:
    """Ten by ten sums, a third held out: chance alone would draw them again and again."""
    mixture = mix(1, sums=programs(heldout=30))
    held = {content_key(problem) for problem in mixture.heldout()}
    assert len(held) == len(mixture.heldout()) == 30
    trained = {content_key(problem) for _, problem in draw(mixture, 3000)}
    assert trained.isdisjoint(held)
    assert len(trained) == 70


def test_what_one_source_holds_out_no_other_trains_on(tmp_path: Path) -> None:
    rows = [{"id": f"{a}+{b}", "question": f"{a}+{b}=", "answer": a + b} for a in range(10) for b in range(10)]
    mixture = mix(4, sums=programs(heldout=20), rows=jsonl(tmp_path / "rows.jsonl", *rows, heldout=20))
    held = {content_key(problem) for problem in mixture.heldout()}
    assert [problem.source for problem in mixture.heldout()] == ["sums"] * 20 + ["rows"] * 20
    assert {content_key(problem) for _, problem in draw(mixture, 2000)}.isdisjoint(held)


def test_a_limit_restricts_any_source_to_its_first_problems(tmp_path: Path) -> None:
    few = mix(1, rows=jsonl(tmp_path / "rows.jsonl", *numbered(50), limit=8, heldout=2))
    assert {problem.task.id for _, problem in draw(few, 30)} | set(ids(few.heldout())) == {f"r{i}" for i in range(8)}
    pool = mix(1, sums=programs(limit=12, max_operand=10**6, heldout=2))
    assert {problem.task.id for _, problem in draw(pool, 30)} | set(ids(pool.heldout())) == {f"addition-{i}" for i in range(12)}


def test_holding_out_too_much_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks\.rows\.heldout is 10, but the source has 10 problems"):
        mix(rows=jsonl(tmp_path / "a.jsonl", *numbered(10), heldout=10))
    same = [{"question": "same?", "answer": 1}] * 3
    with pytest.raises(ValueError, match=r"tasks\.rows: all 3 problems are held out"):
        mix(rows=jsonl(tmp_path / "b.jsonl", *same, heldout=1))
    with pytest.raises(ValueError, match=r"tasks\.sums\.heldout is 101, but only 100 different problems"):
        mix(sums=programs(heldout=101))
    with pytest.raises(ValueError, match=r"tasks\.sums: most problems that this source makes are held out"):
        mix(sums=programs(heldout=95))


def test_random_streams_differ_by_key_and_never_by_call_order() -> None:
    first = random_stream("a", 1).random(4).tolist()
    random_stream("b", 1).random(100)
    assert random_stream("a", 1).random(4).tolist() == first
    assert len({tuple(random_stream(*key).random(2)) for key in [("a", 1), ("a", 2), ("b", 1), ("a1",)]}) == 4


# Rows and JSON lines


def test_rows_become_problems_that_hide_their_answers(tmp_path: Path) -> None:
    row = {"id": 7, "question": "6*7?", "answer": 42, "solution": r"\boxed{42}", "tests": [1], "note": "n", "reference": {"a": 1}}
    problem = mix(rows=jsonl(tmp_path / "a.jsonl", row, system="Be brief.")).at(0)
    assert problem == Problem(
        task=Task(id="7", env="math", prompt=(Message(role="system", content="Be brief."), Message(role="user", content="6*7?"))),
        reference={"answer": "42", "solution": r"\boxed{42}", "tests": [1], "reference": {"a": 1}},
        source="rows",
    )


def test_templates_insert_values_as_they_are(tmp_path: Path) -> None:
    row = {"question": "{answer} {0} {{x}} %s", "context": [1, {"ü": None}], "n": 3, "answer": "1"}
    prompt = "Q: {question}\nC: {context} {n} {{literal}}"
    problem = mix(rows=jsonl(tmp_path / "a.jsonl", row, prompt=prompt)).at(0)
    assert problem.task.prompt[0].content == 'Q: {answer} {0} {{x}} %s\nC: [1, {"ü": null}] 3 {literal}'
    assert problem.task.id == "00000000"


def test_a_solution_template_makes_the_ideal_reply_without_showing_it(tmp_path: Path) -> None:
    row = {**ROW, "steps": "{1+1}"}
    (problem,) = (p for _, p in draw(mix(a=jsonl(tmp_path / "a.jsonl", row, solution="{steps} = \\boxed{{{answer}}}")), 1))
    assert problem.reference["solution"] == "{1+1} = \\boxed{2}"
    assert all("boxed" not in message.content for message in problem.task.prompt)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*'step'.*solution template"):
        mix(a=jsonl(tmp_path / "a.jsonl", row, solution="{step}"))


def test_code_rows_carry_hidden_tests_and_a_visible_name(tmp_path: Path) -> None:
    tests = [{"args": [1], "expected": 2}]
    rows = [{"question": "a", "entry_point": "inc", "tests": tests}, {"question": "b", "entry_point": "inc", "tests": json.dumps(tests)}]
    mixture = mix(rows=jsonl(tmp_path / "a.jsonl", *rows, env="code"))
    for problem in (mixture.at(0), mixture.at(1)):
        assert problem.task.payload == {"entry_point": "inc"}
        assert problem.reference == {"tests": tests, "entry_point": "inc"}


def test_the_answer_field_may_have_another_name(tmp_path: Path) -> None:
    row = {"key": "k", "code": "print(1)", "output": "1\n", "answer": "wrong one"}
    problem = mix(rows=jsonl(tmp_path / "a.jsonl", row, env="code_output", prompt="{code}", answer_field="output", id_field="key")).at(0)
    assert problem.reference == {"answer": "1\n"} and problem.task.id == "k"


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n" + json.dumps(ROW | {"id": "r1"}).encode())
    assert {problem.task.id for _, problem in draw(mix(rows=TaskConfig(kind="jsonl", env="math", path=str(path))), 2)} == {"r0", "r1"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", "answer": }', r"a\.jsonl:2:29: not valid JSON: Expecting value"),
        ('{"question": "a"', r"a\.jsonl:2:17: not valid JSON"),
        ('["question"]', r"a\.jsonl:2: the line is of type list; each line must be an object"),
        ("3", r"a\.jsonl:2: the line is of type int"),
        ('{"question": "a", "answer": NaN}', r"a\.jsonl:2: not usable JSON: NaN is not a JSON number"),
        ("[" * 100_000, r"a\.jsonl:2: not usable JSON"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", r"a\.jsonl:2: not usable JSON: .*4300"),
        ('{"question": "\\ud800", "answer": 1}', r"a\.jsonl:2: a text holds a lone surrogate"),
        ('{"quesiton": "a", "answer": 1}', r"a\.jsonl:2: unknown field 'question'; did you mean 'quesiton'\? known: answer, quesiton"),
        ('{"question": null, "answer": 1}', r"a\.jsonl:2: field 'question' is null"),
        ('{"question": " ", "answer": 1}', r"a\.jsonl:2: the prompt is empty"),
        ('{"question": "a", "result": 1}', r"a\.jsonl:2: no 'answer' field .*fields: question, result; set tasks\.rows\.answer_field"),
        ('{"question": "a", "answer": null}', r"a\.jsonl:2: no 'answer' field \(or it is null\)"),
        ('{"question": "a", "answer": ""}', r"a\.jsonl:2: field 'answer' is empty"),
        ('{"question": "a", "answer": [1]}', r"a\.jsonl:2: field 'answer' is \[1\]; an answer is a text or a number"),
        ('{"id": "r0", "question": "a", "answer": 1}', r"a\.jsonl:2: field 'id': id 'r0' is already used on line 1"),
        ('{"id": [], "question": "a", "answer": 1}', r"a\.jsonl:2: field 'id' is \[\]; an id is"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix(rows=jsonl(tmp_path / "a.jsonl", ROW, line))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tests": []}, "field 'tests' is empty"),
        ({"tests": None}, "field 'tests' is missing"),
        ({"tests": 3}, "field 'tests' is of type int"),
        ({"tests": "f(1) = 2"}, "field 'tests' is no Python source"),
        ({"tests": ""}, "field 'tests' has no assert statement"),
        ({"tests": "assert f(1) == 2 if False else 1", "entry_point": "g"}, "field 'tests' never uses the entry point 'g'"),
        ({"tests": [{"args": 1, "expected": 2}]}, "field 'tests', entry 0 is"),
        ({"tests": [{"args": [1], "expected": 2}, {"args": [1]}]}, "field 'tests', entry 1 is"),
        ({"entry_point": None}, "field 'entry_point' is missing"),
        ({"entry_point": "a b"}, "field 'entry_point' is 'a b'"),
    ],
)
def test_code_rows_without_usable_tests_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"question": "q", "entry_point": "f", "tests": [{"args": [1], "expected": 2}]} | change
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: {message}"):
        mix(rows=jsonl(tmp_path / "a.jsonl", row, env="code"))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{question.__class__}", r"tasks\.rows\.prompt .*is not a plain field name"),
        ("{question[0]}", "is not a plain field name"),
        ("{question!r}", "is not a plain field name"),
        ("{question:>{width}}", "is not a plain field name"),
        ("{}", "is not a plain field name"),
        ("{question", "is not a template: .*literal braces"),
        ("question}", "is not a template"),
        ("{question} {answer}", "shows the hidden field 'answer'"),
        ("{question} {solution}", "shows the hidden field 'solution'"),
        ("{gold}", "shows the hidden field 'gold'"),
    ],
)
def test_templates_are_plain_and_hide_the_answer(tmp_path: Path, prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix(rows=jsonl(tmp_path / "a.jsonl", ROW | {"gold": 1}, prompt=prompt, answer_field="gold"))


def test_unreadable_and_empty_files_are_named(tmp_path: Path) -> None:
    def source(path: Path, **settings: Any) -> TaskConfig:
        return TaskConfig(kind="jsonl", env="math", path=str(path), **settings)

    with pytest.raises(ValueError, match=r"tasks\.rows\.path: cannot read .*absent\.jsonl: No such file"):
        mix(rows=source(tmp_path / "absent.jsonl"))
    with pytest.raises(ValueError, match="Is a directory"):
        mix(rows=source(tmp_path))
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
        mix(rows=jsonl(tmp_path / "empty.jsonl", "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl:1:18: not UTF-8"):
        mix(rows=source(tmp_path / "latin.jsonl"))
    with pytest.raises(
        ValueError, match=r"a\.jsonl:1: unknown field 'key'; known: answer, id, question \(asked for by tasks\.rows\.id_field\)"
    ):
        mix(rows=jsonl(tmp_path / "a.jsonl", ROW, id_field="key"))


# Hugging Face data sets


@pytest.fixture
def quiet_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("quiet_hub")
def test_hf_rows_come_from_saved_folders_data_files_and_folders_of_them(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(numbered(12))
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(3))}).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    rows.to_parquet(tmp_path / "files" / "train.parquet")
    rows.to_json(tmp_path / "one.json")
    places = {"saved": 12, "splits": 12, "files": 12, "files/train.parquet": 12, "one.json": 12}
    for place, size in places.items():
        mixture = mix(rows=TaskConfig(kind="hf", env="math", path=str(tmp_path / place)))
        drawn = {problem.task.id: problem for _, problem in draw(mixture, size)}
        assert set(drawn) == {f"r{i}" for i in range(size)}
        assert drawn["r3"].reference == {"answer": "4"} and drawn["r3"].task.prompt[0].content == "3+1?"
    validation = mix(rows=TaskConfig(kind="hf", env="math", path=str(tmp_path / "splits"), split="validation", limit=2))
    assert {problem.task.id for _, problem in draw(validation, 10)} == {"r0", "r1"}


@pytest.mark.usefixtures("quiet_hub")
def test_hf_errors_name_the_data_set_row_and_field(tmp_path: Path) -> None:
    def source(place: str, **settings: Any) -> TaskConfig:
        return TaskConfig(kind="hf", env="math", path=str(tmp_path / place), **settings)

    def save(place: str, *rows: dict[str, Any]) -> None:
        datasets.Dataset.from_list(list(rows)).save_to_disk(tmp_path / place)

    save("fields", {"q": "a", "answer": 1})
    save("nulls", ROW, {"id": "r1", "question": "b", "answer": None})
    save("ids", ROW, ROW)
    datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "bare").mkdir()
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(ValueError, match=r"tasks\.rows\.path: no file or folder .*absent"):
        mix(rows=source("absent"))
    with pytest.raises(ValueError, match=r"fields\[train\] row 0: unknown field 'question'"):
        mix(rows=source("fields"))
    with pytest.raises(ValueError, match=r"nulls\[train\] row 1: no 'answer' field \(or it is null\)"):
        mix(rows=source("nulls"))
    with pytest.raises(ValueError, match=r"ids\[train\] row 1: field 'id': id 'r0' is already used in row 0"):
        mix(rows=source("ids"))
    with pytest.raises(ValueError, match=r"tasks\.rows: cannot load .*unknown split 'trian'; did you mean 'train'"):
        mix(rows=source("splits", split="trian"))
    with pytest.raises(ValueError, match=r"tasks\.rows: cannot load .*bare"):
        mix(rows=source("bare"))
    with pytest.raises(ValueError, match=r"cannot load .*a data file ends in one of"):
        mix(rows=source("text.txt"))
    with pytest.raises(ValueError, match=r"tasks\.rows\.options: unknown option 'subset'"):
        mix(rows=source("fields", options={"subset": "main"}))
    with pytest.raises(ValueError, match=r"tasks\.rows: cannot load 'someone/not-there', split 'train'"):
        mix(rows=TaskConfig(kind="hf", env="math", path="someone/not-there"))


# reasoning-gym


def gym(env: str = "math", heldout: int = 0, **options: Any) -> TaskConfig:
    return TaskConfig(kind="reasoning_gym", env=env, heldout=heldout, options=options)


def test_reasoning_gym_problems_are_reproducible_and_fit_their_arguments() -> None:
    options: dict[str, Any] = {"dataset": "chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    mixture = mix(3, sums=gym(heldout=10, **options))
    drawn = draw(mixture, 50)
    assert drawn == draw(mix(3, sums=gym(heldout=10, **options)), 50) != draw(mix(4, sums=gym(heldout=10, **options)), 50)
    for _, problem in drawn:
        left, operator, right, _ = problem.task.prompt[0].content.split(": ")[1].split(" ")
        answer = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert problem.reference == {"answer": str(answer), "solution": f"\\boxed{{{answer}}}"}
    held = {content_key(problem) for problem in mixture.heldout()}
    assert len(held) == 10 and held.isdisjoint(content_key(problem) for _, problem in drawn)


def test_several_reasoning_gym_sets_are_mixed_by_weight() -> None:
    mixture = mix(1, gym=gym(datasets=[{"dataset": "chain_sum", "weight": 3}, {"dataset": "gcd"}]))
    counts = Counter(problem.task.id.split("-")[0] for _, problem in draw(mixture, 800))
    assert abs(counts["chain_sum"] - 600) < 65 and counts["gcd"] == 800 - counts["chain_sum"]


def test_reasoning_gym_sets_of_fixed_size_have_epochs() -> None:
    mixture = mix(1, gym=gym(env="code_output", dataset="word_ladder", size=6))
    drawn = ids([problem for _, problem in draw(mixture, 12)])
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == [f"word_ladder-{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"tasks\.gym\.options\.dataset is None"),
        ({"dataset": "chain_sun"}, r"unknown reasoning-gym data set 'chain_sun'; did you mean 'chain_sum'"),
        (
            {"dataset": "chain_sum", "min_term": 2},
            r"tasks\.gym\.options: unknown argument of chain_sum 'min_term'; did you mean 'min_terms'",
        ),
        ({"dataset": "chain_sum", "min_terms": 9, "max_terms": 2}, "chain_sum refuses .*max_terms must be >= min_terms"),
        ({"dataset": "rush_hour"}, "rush_hour has no single reference answer"),
        ({"dataset": "word_ladder"}, r"fixed number of rows; say how many by tasks\.gym\.options\.size"),
        ({"datasets": []}, "must be a list"),
        ({"datasets": [{"dataset": "gcd"}], "seed": 1}, r"move seed into the entries of tasks\.gym\.options\.datasets"),
        ({"datasets": [{"dataset": "gcd", "weight": 0}]}, r"datasets\[0\]\.weight is 0; it must be a number above 0"),
    ],
)
def test_bad_reasoning_gym_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix(gym=gym(**options))


# Building from the configuration


def test_a_plugin_file_may_bring_its_own_source_and_environment(tmp_path: Path) -> None:
    plugin = tmp_path / "echo_plugin.py"
    plugin.write_text(
        "from environments.records import Message, Problem, Task\n"
        "from environments.registry import environment, task_source\n"
        "from environments.single_turn import SingleTurn\n"
        "environment('echo_env')(SingleTurn)\n"
        "@task_source('echo_source')\n"
        "class EchoSource:\n"
        "    def __init__(self, name, /, *, config, seed):\n"
        "        self.name, self.config, self.size = name, config, config.options['size']\n"
        "    def problem(self, index):\n"
        "        task = Task(id=str(index), env=self.config.env, prompt=(Message(role='user', content=f'say {index}'),))\n"
        "        return Problem(task=task, reference={'answer': str(index)}, source=self.name)\n"
    )
    task = TaskConfig(kind="plugin", env="echo_env", path="echo_source", options={"size": 5}, heldout=1)
    mixture = mix(plugins=[str(plugin)], echo=task)
    assert len({problem.task.id for _, problem in draw(mixture, 4)} | set(ids(mixture.heldout()))) == 5


def test_misnamed_environments_and_plugin_sources_are_named() -> None:
    with pytest.raises(ValueError, match=r"tasks\.sums\.env: unknown environment 'mth'; did you mean 'math'"):
        mix(sums=programs(env="mth"))
    with pytest.raises(ValueError, match=r"tasks\.p\.path: unknown task source 'nope'.*run\.plugins"):
        mix(p=TaskConfig(kind="plugin", env="math", path="nope"))


def test_an_empty_plugin_source_is_an_error() -> None:
    @task_source("empty_source")
    class EmptySource:
        size = 0

        def __init__(self, name: str, /, *, config: TaskConfig, seed: int) -> None:
            pass

        def problem(self, index: int) -> Problem:
            raise IndexError(index)

    with pytest.raises(ValueError, match=r"tasks\.none has no problems"):
        mix(none=TaskConfig(kind="plugin", env="math", path="empty_source"))
    with pytest.raises(ValueError, match="at least one task source"):
        Mixture([], seed=0)
    with pytest.raises(ValueError, match=r"tasks\.none has no problems"):
        Mixture([MixturePart(name="none", source=EmptySource("none", config=programs(), seed=0))], seed=0)


# Real data, where the development folder is there


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with real data is not part of the project")
def test_real_word_problems_and_programs_are_read() -> None:
    def real(name: str, env: str = "math", **settings: Any) -> TaskConfig:
        return TaskConfig(kind="jsonl", env=env, path=str(SHARED / name), **settings)

    mixture = mix(
        1,
        svamp=real("svamp.jsonl", answer_field="answer", heldout=100, weight=2.0),
        arith=real("rg_arith.jsonl", heldout=20),
        gsm=real("gsm8k.jsonl", limit=200, system="Put the answer in a box."),
        crux=real("cruxeval.jsonl", env="code_output", prompt="{code}\nprint(repr(f({input})))"),
    )
    held = mixture.heldout()
    assert Counter(problem.source for problem in held) == {"svamp": 100, "arith": 20}
    drawn = [problem for _, problem in draw(mixture, 1000)]
    assert {content_key(problem) for problem in drawn}.isdisjoint(content_key(problem) for problem in held)
    assert all(isinstance(problem.reference["answer"], str) for problem in drawn)
    assert all("\n" in problem.task.prompt[0].content for problem in drawn if problem.source == "crux")
    svamp = next(problem for problem in drawn if problem.source == "svamp")
    assert svamp.task.id.startswith("svamp-chal-") and float(svamp.reference["answer"]) >= 0

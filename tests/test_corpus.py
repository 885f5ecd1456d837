"""Corpora for the supervised stage: which tokens a row becomes, which of them are learned, and what is refused."""

import json
from pathlib import Path

import pytest

from rl.cli import main
from rl.corpus import corpus_examples, read_corpus
from rl.prompt import ChatTokenizer, load_tokenizer
from tests.ring import make_tiny_model, rl, write_config

CHAT = {"prompt": [{"role": "user", "content": "1+1="}], "completion": [{"role": "assistant", "content": "2"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("corpus") / "model")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> ChatTokenizer:
    return load_tokenizer(model)


def write_rows(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_each_shape_is_learned_as_it_says(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    whole = {"text": "<|begin_of_text|>ab<|end_of_text|>", "prompt": None, "id": "kept"}
    raw = {"prompt": "ab", "completion": "cd<|end_of_text|>"}
    learned = {}
    for name, row in {"whole": whole, "raw": raw, "chat": CHAT}.items():
        found = corpus_examples([write_rows(tmp_path / name, row)], tokenizer=tokenizer, n_examples=9, context_length=64, seed=0)
        (example,) = found.examples
        learned[name] = [token for token, in_mask in zip(example.token_ids, example.mask, strict=True) if in_mask]
        assert len(example.token_ids) == {"whole": 4, "raw": 5}.get(name, len(example.token_ids))
    end, turn_end = tokenizer.token_id("<|end_of_text|>"), tokenizer.token_id("<|eot_id|>")
    assert learned["whole"] == [*tokenizer.encode("<|begin_of_text|>ab"), end]
    assert learned["raw"] == [*tokenizer.encode("cd"), end]
    assert learned["chat"] == [*tokenizer.encode("2"), turn_end]


def test_rows_are_drawn_by_the_seed_from_all_files(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    paths = [write_rows(tmp_path / name, *({"text": letter * 3} for letter in letters)) for name, letters in (("1", "abcd"), ("2", "efgh"))]

    def drawn(seed: int, n: int) -> list[str]:
        found = corpus_examples(paths, tokenizer=tokenizer, n_examples=n, context_length=64, seed=seed)
        assert found.n_rows == 8
        return [tokenizer.decode(example.token_ids) for example in found.examples]

    assert drawn(0, 6) == drawn(0, 6) != drawn(1, 6)
    assert sorted(drawn(0, 100)) == [letter * 3 for letter in "abcdefgh"]


def test_rows_beyond_the_context_are_counted(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = write_rows(tmp_path / "c", {"text": "abc"}, {"text": "abcd"})
    found = corpus_examples([path], tokenizer=tokenizer, n_examples=9, context_length=3, seed=0)
    assert (len(found.examples), found.too_long) == (1, 1)
    with pytest.raises(ValueError, match=r"none of 2 rows has at most model\.context_length=2 tokens"):
        corpus_examples([path], tokenizer=tokenizer, n_examples=9, context_length=2, seed=0)


@pytest.mark.parametrize(
    "row",
    [
        {"text": ""},
        {"trace": "abc"},
        {"prompt": "a", "completion": ""},
        {"prompt": "a", "completion": CHAT["completion"]},
        {"prompt": [], "completion": CHAT["completion"]},
        {"prompt": CHAT["prompt"], "completion": CHAT["prompt"]},
        {"prompt": [{"role": "robot", "content": "a"}], "completion": CHAT["completion"]},
        {"prompt": CHAT["prompt"], "completion": [*CHAT["completion"], *CHAT["completion"]]},
    ],
)
def test_rows_of_no_known_shape_are_named(tmp_path: Path, row: dict[str, object]) -> None:
    path = write_rows(tmp_path / "c", CHAT, row)
    with pytest.raises(ValueError, match=r"/c:2: (field 'text' is|prompt and completion must be)"):
        list(read_corpus([path]))


def test_a_missing_corpus_is_told_before_a_run(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, model=model, warm_start={"steps": 1, "corpus": [str(tmp_path / "none.jsonl")]})
    assert main(["train", str(config), "--dry-run"]) == 2
    assert "rl train: warm_start.corpus: cannot read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_learns_from_its_corpus_first(tmp_path: Path, model: Path) -> None:
    path = write_rows(tmp_path / "corpus.jsonl", CHAT, {"text": "ab" * 40}, {"text": "ab"})
    warm: dict[str, object] = {"steps": 1, "batch_size": 2, "corpus": [path]}
    output = rl("train", write_config(tmp_path, model=model, run={"steps": 1}, evaluation={"enabled": False}, warm_start=warm))
    assert "warm start: 2 of the corpus's 3 rows, 18 tokens, 1 longer than the context left out" in output
    assert "1 supervised steps on 2 examples" in output

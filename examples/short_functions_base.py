"""Makes a base model for tasks of `short_functions.py`: a tiny CWM that reads such a file and names an edit, often a wrong one.

    python -m examples.short_functions_base data/short --out models/short-base

It learns from broken functions and the edits that repair them, as text: nothing runs, and no function of the repositories in the folder is
among them. First it learns to name the file, then the edit, then whole episodes, as those of the oracle in the ring are but for a share
of wrong operators. It starts as the quickstart's base, with more tokens: what every such episode repeats is one token each, so that an
episode is short.
"""

import argparse
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoTokenizer

from environments.records import Budget, Message
from environments.reply import ToolCall
from environments.swe.observation import observation
from environments.swe.script import SUBMIT
from environments.swe.snippets import smallest_edits
from environments.swe.text_patch import Replacement
from environments.swe.tool_bodies import Edit
from environments.swe.tool_format import parse_call, render_call
from examples.short_functions import NAMES, Function, arguments, different_functions, module_text, value_of
from rl.model import load_model, save_model
from rl.prompt import ChatTokenizer, Renderer, load_tokenizer
from rl.records import TokenExample
from rl.warm_start import SftExample, tokenize_example, warm_start

BLANK = "configs/base/tiny-cwm"
"""The quickstart's base; it knows the characters, and what `x plus 3` is in Python."""
WORDS = (
    *("Fix ", ".py\n", " gives ", ", not ", 'def f(x):\n    """x', 'def f(x,y):\n    """x', '."""\n    return '),
    *("<tool: edit>\n", "<<<<<<< SEARCH\n", "\n=======\n", "\n>>>>>>> REPLACE\n</tool>", "<tool: submit>\n\n</tool>"),
    *("<output>\n", ".py changed at line 3; it has 3 lines now.\n", "</output>\n\n<budget>\n* Remaining turns: "),
    *("\n* Remaining tokens: ", "\n* Remaining time: at least ", " s\n</budget>"),
)
"""Tokens besides those of the quickstart's base."""
COPY_STEPS, COPY_BATCH, STEPS, BATCH_SIZE, EPISODE_STEPS = 150, 128, 700, 64, 80
"""Of the stages: names, edits, whole episodes."""
SLIP_RATE = 0.6
"""Share of the whole episodes whose edit has a wrong operator. The base is weak by design, as that of the quickstart is: RL has that gap to
close."""
LEARNING_RATE, EPISODE_LEARNING_RATE = 2e-3, 1e-3
CONTEXT, SECONDS = 384, 300.0
"""`model.context_length` and `rollout.max_seconds` of the run, which an episode's text tells."""
N_FUNCTIONS = 2000
"""Functions that the demonstrations are about. Few of them would be learned by heart."""


def demonstrations(functions: list[Function], rng: random.Random, *, slip_rate: float = 0.0) -> Iterator[SftExample]:
    """Endlessly: a function with a wrong operator, what a test says, and the edit; at `slip_rate` an edit to another wrong one."""
    while True:
        steps, name = rng.choice(functions), rng.choice(NAMES)
        head, docstring, line = module_text(steps).splitlines(keepends=True)
        place = rng.choice([found.start() for found in re.finditer(r"[-+*]", line)])
        wrong_ones = rng.sample("+-*".replace(line[place], ""), 2)
        broken, slipped = (line[:place] + operator + line[place + 1 :] for operator in wrong_ones)
        answer = slipped if rng.random() < slip_rate else line
        values = rng.sample(range(3, 20), len(arguments(steps).split(",")))
        wrong, right = value_of_line(broken, values), value_of(steps, values)
        change = Replacement(start=2, old=(broken.encode(),), new=(answer.encode(),))
        edits = smallest_edits((head + docstring + broken).encode(), (change,))
        if wrong == right or not edits or len(edits) > 1:
            continue
        (search, replace) = edits[0]
        body = Edit(path=f"{name}.py", search=search.decode(), replace=replace.decode()).body()
        said = f"f({','.join(map(str, values))}) gives {wrong}, not {right}"
        prompt = Message(role="user", content=f"Fix {name}.py\n{said}\n{head}{docstring}{broken}")
        yield SftExample(prompt=(prompt,), answer=render_call(ToolCall(name="edit", body=body), tool_format="cwm"))


def episode(example: SftExample, tokenizer: ChatTokenizer) -> TokenExample:
    """The edit, what the environment says to it, and submit."""
    first = tokenize_example(example, tokenizer=tokenizer)
    path = Edit.read(parse_call(example.answer, tool_format="cwm").body).path
    budget = Budget(turns=2, tokens=CONTEXT - len(first.token_ids), seconds=SECONDS - 1, seconds_in_all=SECONDS)
    said = Message(role="tool", name="edit", content=observation(f"{path} changed at line 3; it has 3 lines now.", budget))
    before = (*example.prompt, Message(role="assistant", content=example.answer))
    heard = Renderer(tokenizer).render_continuation((said,), after=before).tolist()
    submit = [*tokenizer.encode(render_call(SUBMIT, tool_format="cwm")), first.token_ids[-1]]
    mask = (*first.mask, *(0 for _ in heard), *(1 for _ in submit))
    return TokenExample(token_ids=(*first.token_ids, *heard, *submit), mask=mask)


def copies(rng: random.Random) -> Iterator[SftExample]:
    """Endlessly: the first line of a task, and with what its edit begins. To copy the file's name is the hardest part to find out."""
    while True:
        name = rng.choice(NAMES)
        yield SftExample(prompt=(Message(role="user", content=f"Fix {name}.py\n"),), answer=f"<tool: edit>\n{name}.py\n")


def value_of_line(line: str, values: list[int]) -> int:
    """What `return FORMULA` returns. The line is one that this file wrote."""
    return int(eval(line.strip().removeprefix("return "), {}, dict(zip("xy", values, strict=False))))


def save_blank(folder: Path) -> None:
    """The quickstart's base with the tokens above, which mean nothing yet."""
    tokenizer, model = AutoTokenizer.from_pretrained(BLANK), load_model(BLANK, dtype="float32")
    tokenizer.add_tokens(list(WORDS))
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    save_model(model, tokenizer, folder)


def unused_functions(folder: Path, rng: random.Random) -> list[Function]:
    """Functions that none of the repositories in the folder has. Raises ValueError where there is no repository."""
    used = {path.read_text() for path in folder.glob("r*/?.py")}
    if not used:
        raise ValueError(f"{folder} has no repositories: write them with python examples/short_functions.py {folder}")
    return list(islice((steps for steps in different_functions(rng) if module_text(steps) not in used), N_FUNCTIONS))


def stage(
    model: Path, examples: Sequence[SftExample | TokenExample], *, out: Path, steps: int, batch_size: int, learning_rate: float
) -> None:
    """One supervised stage."""
    warm_start(
        model_path=model,
        examples=examples,
        out=out,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(20, steps),
        seed=0,
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what short_functions.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="model to write")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"steps of the stage of edits (default: {STEPS})")
    args = parser.parse_args()
    rng = random.Random(0)
    functions = unused_functions(args.folder, rng)
    edits = list(islice(demonstrations(functions, rng), args.steps * BATCH_SIZE))
    sloppy = islice(demonstrations(functions, rng, slip_rate=SLIP_RATE), EPISODE_STEPS * BATCH_SIZE)
    torch.set_num_threads(1)  # the model is too small to gain from more, and one thread gives the same bits everywhere
    with tempfile.TemporaryDirectory(prefix="short-base-") as scratch:
        blank, copier, editor = (Path(scratch) / name for name in ("blank", "copier", "editor"))
        save_blank(blank)
        names = list(islice(copies(rng), COPY_STEPS * COPY_BATCH))
        stage(blank, names, out=copier, steps=COPY_STEPS, batch_size=COPY_BATCH, learning_rate=LEARNING_RATE)
        stage(copier, edits, out=editor, steps=args.steps, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
        tokenizer = load_tokenizer(blank)
        episodes = [episode(example, tokenizer) for example in sloppy]
        stage(editor, episodes, out=args.out, steps=EPISODE_STEPS, batch_size=BATCH_SIZE, learning_rate=EPISODE_LEARNING_RATE)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

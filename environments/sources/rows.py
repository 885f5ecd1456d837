"""From a row of data to a `Problem`: the prompt template, and which fields stay hidden from the policy."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass

from configs.schema import TaskConfig
from environments.lookup import unknown
from environments.records import Json, Message, Problem, Task
from environments.sources.code_rows import CODE_ENVS, OPTIONS_OF, CodeOptions, code_payload, code_reference
from environments.sources.options import read_options
from environments.traces.debugger.task import PAYLOAD_FIELDS, DebuggerTask
from environments.traces.tasks import DEBUGGER, TRACE_ENVS, trace_reference

HIDDEN_FIELDS = ("answer", "tests", "check", "solution", "expected", "reference")
"""Fields that go to the grader and may not appear in a prompt."""
ANSWER_ENVS = ("math", "math_python", "code_output", "trace_output", "trace_next_frame", "trace_full", "trace_return")
"""Environments whose graders compare with `reference['answer']`."""


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A parsed template: literal text and `{field}` placeholders, nothing else of Python's format language."""

    parts: tuple[tuple[str, str | None], ...]
    """Pairs of literal text and the field that follows it (None at the end)."""
    what: str
    """`prompt` or `solution`, for messages."""

    @classmethod
    def parse(cls, text: str, *, where: str, what: str, hidden: tuple[str, ...]) -> "PromptTemplate":
        """Parse `text`; `where` names the config field. Raises ValueError for anything but plain, visible fields."""
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{where} {text!r} is not a template: {error}; write {{{{ and }}}} for literal braces") from None
        parts = []
        for literal, name, spec, conversion in pieces:
            # a name such as `a.b` or `a[0]` would reach into the value: only whole fields are allowed
            if name is not None and (not name or spec or conversion or set(name) & set(".[]{}")):
                raise ValueError(f"{where} {text!r}: {{{name}}} is not a plain field name; use {{field}}, and {{{{ }}}} for literal braces")
            if name in hidden:
                raise ValueError(f"{where} {text!r} shows the hidden field {name!r} to the policy; leave it out or rename it in the data")
            parts.append((literal, name))
        return cls(parts=tuple(parts), what=what)

    def render(self, row: Mapping[str, Json], *, where: str) -> str:
        """Fill in the row's values as they are. Raises ValueError for a missing or null field and for an empty result."""
        pieces = []
        for literal, name in self.parts:
            pieces.append(literal)
            if name is None:
                continue
            if name not in row:
                raise ValueError(f"{where}: {unknown('field', name, row)} (asked for by the {self.what} template)")
            value = row[name]
            if value is None:
                raise ValueError(f"{where}: field {name!r} is null, but the {self.what} template needs it")
            pieces.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        prompt = "".join(pieces)
        if not prompt.strip():
            raise ValueError(f"{where}: the {self.what} is empty")
        return prompt


@dataclass(frozen=True, kw_only=True)
class RowMapper:
    """Turns the rows of one source into problems."""

    source: str
    env: str
    template: PromptTemplate
    system: str | None
    answer_field: str
    id_field: str
    solution: PromptTemplate | None
    """Makes `reference['solution']`; None keeps the row's own."""
    code_options: CodeOptions
    """Of the code environments."""
    columns: tuple[str, ...] = ()
    """Fields that go to the grader as they are, as `reference['columns']`."""
    configurable: bool = True
    """Whether a configuration says how rows are mapped, so that errors may name its settings."""

    @classmethod
    def of(
        cls, name: str, *, config: TaskConfig, generated: bool = False, own_options: frozenset[str] = frozenset(), configurable: bool = True
    ) -> "RowMapper":
        """The mapper of source `name`. Generated rows name their fields themselves, so the configured names do not apply.

        `own_options`: options that belong to the source, not to its rows.
        """
        about_rows = {} if generated else {key: value for key, value in config.options.items() if key not in own_options}
        if about_rows and config.env not in CODE_ENVS:
            raise ValueError(
                f"tasks.{name}.options: unknown option {', '.join(map(repr, about_rows))}; rows for env={config.env} have no options: "
                "take it out"
            )
        for key in about_rows:
            if OPTIONS_OF.get(key, config.env) != config.env:
                raise ValueError(f"tasks.{name}.options.{key} is for env={OPTIONS_OF[key]}, and env is {config.env}: take it out")
        answer_field = "answer" if generated else config.answer_field
        hidden = (*HIDDEN_FIELDS, answer_field)
        return cls(
            source=name,
            env=config.env,
            template=PromptTemplate.parse(config.prompt, where=f"tasks.{name}.prompt", what="prompt", hidden=hidden),
            system=config.system,
            columns=config.columns,
            configurable=configurable,
            answer_field=answer_field,
            id_field="id" if generated else config.id_field,
            # The ideal reply is never shown to the policy: it may use every field.
            solution=None
            if config.solution is None
            else PromptTemplate.parse(config.solution, where=f"tasks.{name}.solution", what="solution", hidden=()),
            code_options=read_options(CodeOptions, about_rows, where=f"tasks.{name}.options"),
        )

    def problem(self, row: Mapping[str, Json], *, where: str, default_id: str) -> Problem:
        """Map one row; `where` begins every error, for example `data/train.jsonl:7`.

        Raises ValueError for a missing field or one that the environment's grader could not use.
        """
        prompt = [Message(role="system", content=self.system)] if self.system is not None else []
        prompt.append(Message(role="user", content=self.template.render(row, where=where)))
        payload = code_payload(row, env=self.env, options=self.code_options, where=where)
        if self.env == DEBUGGER:
            payload |= {name: row[name] for name in PAYLOAD_FIELDS if row.get(name) is not None}
        task = Task(id=self._id(row, where=where, default=default_id), env=self.env, prompt=tuple(prompt), payload=payload)
        if self.env == DEBUGGER:
            _check_debugger(task, where=where)
        reference = self._reference(row, where=where)
        if self.columns:
            reference["columns"] = self._columns(row, where=where)
        return Problem(task=task, reference=reference, source=self.source)

    def _columns(self, row: Mapping[str, Json], *, where: str) -> dict[str, Json]:
        for name in self.columns:
            if name not in row:
                raise ValueError(f"{where}: {unknown('field', name, row)} (asked for by tasks.{self.source}.columns)")
        return {name: row[name] for name in self.columns}

    def _id(self, row: Mapping[str, Json], *, where: str, default: str) -> str:
        value = row.get(self.id_field)
        if value is None:
            if self.id_field != "id":
                raise ValueError(f"{where}: {unknown('field', self.id_field, row)} (asked for by tasks.{self.source}.id_field)")
            return default
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError(f"{where}: field {self.id_field!r} is {value!r}; an id is a non-empty string or an integer")
        return str(value)

    def _reference(self, row: Mapping[str, Json], *, where: str) -> dict[str, Json]:
        reference = {key: row[key] for key in (*HIDDEN_FIELDS, "entry_point") if row.get(key) is not None}
        if row.get(self.answer_field) is not None:
            reference["answer"] = row[self.answer_field]
        elif self.env in ANSWER_ENVS or self.answer_field != "answer":
            raise ValueError(
                f"{where}: no {self.answer_field!r} field (or it is null), and environment {self.env!r} needs an answer; "
                f"fields: {', '.join(row)}" + (f"; set tasks.{self.source}.answer_field" if self.configurable else "")
            )
        if self.env in ANSWER_ENVS:
            reference["answer"] = _answer_text(reference["answer"], where=f"{where}: field {self.answer_field!r}")
        if self.solution is not None:
            reference["solution"] = self.solution.render(row, where=where)
        if self.env == DEBUGGER:
            return {**reference, **({"replies": row["replies"]} if row.get("replies") is not None else {})}
        if self.env in TRACE_ENVS:
            return trace_reference(row, reference, env=self.env, where=where)
        if self.env in CODE_ENVS:
            return code_reference(row, reference, env=self.env, options=self.code_options, where=where)
        return reference


def _answer_text(value: Json, *, where: str) -> str:
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{where} is {value!r}; an answer is a text or a number")
    text = str(value)
    if not text.strip():
        raise ValueError(f"{where} is empty; there would be nothing to compare with")
    return text


def _check_debugger(task: Task, *, where: str) -> None:
    try:
        DebuggerTask.of(task)
    except ValueError as error:
        raise ValueError(f"{where}: {error} (environment {task.env!r})") from None

"""Each page of a run: what it needs from the log, handed to its template. The server and the export call the same functions."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rl.log.compare import TokenCount, compare_runs
from rl.log.metrics import Metrics, RunFlag
from rl.log.query import QueryError
from rl.log.views import VIEWS
from rl.view import groups, listing, one_rollout, service, sql_box, tasks, timeline, tokens
from rl.view.curves import curves, mark
from rl.view.health import WINDOW, RecentRollouts, findings, recent_rollouts
from rl.view.links import Links, ServerLinks
from rl.view.open_run import OpenRun, RunsFolder
from rl.view.render import CUT_CHARS, environment
from rl.view.run_lines import RECOUNT_SECONDS, FlagMemory, latest_drops, lines, lines_mark, newest

Query = Mapping[str, str]
LIVE_SECONDS = 3
"""Between two looks of an open page."""
_LISTED = 100
"""Rows of the lists of groups and tasks."""


class NotFound(Exception):
    """There is no such run, rollout, group or task; the message says so to a person."""


class Pages:
    """Renders pages of runs as HTML."""

    def __init__(self) -> None:
        self._env = environment()
        self._texts = tokens.TokenTexts()
        self._recent: dict[str, tuple[float, RecentRollouts | None]] = {}
        self._flags = FlagMemory()

    def render(self, template: str, *, links: Links, **values: Any) -> str:
        """Any template with the names that all of them use."""
        return self._env.get_template(template).render(links=links, **values)

    def runs(self, folder: RunsFolder, query: Query) -> str | None:
        """The list of runs; None when it is as it was at the mark `seen`."""
        mark = lines_mark(folder)
        if query.get("seen") == mark:
            return None
        rows = lines(folder, self._flags)
        return self.render(
            "runs.html", links=ServerLinks(), rows=rows, place=folder.place, title="Runs", mark=mark, live_seconds=LIVE_SECONDS
        )

    def overview(self, run: OpenRun, links: Links, query: Query) -> str:
        """Curves and health."""
        values = self._live_values(run, query.get("seen", ""))
        return self._page("overview.html", run, links, title="Overview", tab="overview", config=_settings(run), **values)

    def live(self, run: OpenRun, links: Links, query: Query) -> str | None:
        """The part of the overview that changes; None when nothing did since `seen`."""
        seen, state = query.get("seen", ""), run.state()
        if seen == mark(run.metrics()) and query.get("state") == state.word and state.idle_seconds < 60:
            return None
        return self.render("live.html", links=links, run=run, **self._live_values(run, seen))

    def flags(self, run: OpenRun, links: Links) -> str:
        """The most frequent flags of a run, for its line in the list of runs."""
        return self.render("flags.html", links=links, run=run, flags=self._flags.count(run))

    def _live_values(self, run: OpenRun, seen: str) -> dict[str, Any]:
        metrics, state = run.metrics(), run.state()
        return {
            "state": state,
            "metrics": metrics,
            "run_flags": _latest_flags(metrics),
            "last": metrics.steps[-1] if metrics.steps else None,
            "held_out": newest(metrics),
            "drops": latest_drops(metrics),
            "window": WINDOW,
            "findings": findings(metrics, state=state, recent=self._recent_rollouts(run, metrics)),
            "mark": mark(metrics),
            "curves": curves(metrics, seen=seen),
            "live_seconds": LIVE_SECONDS,
        }

    def _recent_rollouts(self, run: OpenRun, metrics: Metrics) -> RecentRollouts | None:
        """As of half a minute ago at most: counting reads the log, which every open page would ask for with every step."""
        known = self._recent.get(run.name)
        if known is None or time.monotonic() > known[0] + RECOUNT_SECONDS:
            try:
                counts = recent_rollouts(run, metrics)
            except QueryError:
                counts = None  # the page names damaged parts by itself
            known = self._recent[run.name] = (time.monotonic(), counts)
        return known[1]

    def rollouts(self, run: OpenRun, links: Links, query: Query) -> str:
        """The filtered list."""
        filters, mark = listing.read_filters(query), _live_mark(run, links)
        found = listing.listed(run, filters)
        return self._page(
            "rollouts.html",
            run,
            links,
            title="Rollouts",
            tab="rollouts",
            filters=filters,
            rows=found.rows,
            total=found.total,
            mark=mark,
            choices=listing.choices(run),
            sorts=listing.SORTS,
            first=(filters.page - 1) * listing.PAGE_ROWS,
            pages=max(1, math.ceil(found.total / listing.PAGE_ROWS)),
        )

    def newest_rollouts(
        self, run: OpenRun, links: Links, rows: Sequence[Mapping[str, Any]], *, drops: Sequence[str], drop: str = ""
    ) -> str:
        """A list of an exported bundle: the newest rollouts of all, or those that were dropped as `drop`, of the reasons `drops`."""
        title = f"Rollouts dropped as {drop}" if drop else "Newest rollouts"
        return self._page("rollouts_newest.html", run, links, title=title, tab="rollouts", rows=rows, first=0, drops=drops, drop=drop)

    def rollout(self, run: OpenRun, links: Links, query: Query) -> str:
        """One rollout."""
        record = one_rollout.find_rollout(run, query.get("id", ""))
        if record is None:
            raise NotFound(f"There is no rollout {query.get('id', '')!r} in this run.")
        data = None
        if record.tokens is not None:
            pieces = self._texts.of(run, record.tokens["token_ids"])
            data = tokens.payload(record.tokens, learner=record.trained, pieces=pieces)
        return self._page(
            "rollout.html",
            run,
            links,
            title=f"Rollout {record.row['rollout_id']}",
            tab="rollouts",
            record=record,
            row=record.row,
            data=data,
            drawing=timeline.rollout_timeline(run, str(record.row["rollout_id"]), int(record.row["dispatch_version"])),
            near=one_rollout.neighbours(run, record, query),
            list_query=query.get("list"),
            cut=CUT_CHARS,
        )

    def contrast(self, run: OpenRun, links: Links, query: Query) -> str:
        """Groups with winners and losers."""
        mark = _live_mark(run, links)
        return self.contrast_of(run, links, groups.contrast_groups(run, limit=_LISTED), mark=mark)

    def contrast_of(self, run: OpenRun, links: Links, rows: Sequence[Mapping[str, Any]], *, mark: str = "") -> str:
        """The same of groups that are known."""
        return self._page("contrast.html", run, links, title="Contrast", tab="contrast", rows=rows, most=_LISTED, mark=mark)

    def group(self, run: OpenRun, links: Links, query: Query) -> str:
        """One group, a winner beside a loser."""
        rows = groups.group_rows(run, query.get("id", ""))
        if not rows:
            raise NotFound(f"There is no group {query.get('id', '')!r} in this run.")
        pair = groups.chosen_pair(rows, query.get("a"), query.get("b"))
        compared = groups.compare(run, pair, self._texts) if pair else None
        head = rows[0]
        prompt = tasks.task_prompt(run, head["dispatch_version"], head["rollout_id"])
        title = f"Group {head['group_id']}"
        return self._page("group.html", run, links, title=title, tab="contrast", rows=rows, head=head, compared=compared, prompt=prompt)

    def tasks(self, run: OpenRun, links: Links, query: Query) -> str:
        """The list of tasks."""
        sort, text, mark = query.get("sort") or "newest", query.get("text", "").strip(), _live_mark(run, links)
        return self._page(
            "tasks.html",
            run,
            links,
            title="Tasks",
            tab="tasks",
            rows=tasks.task_list(run, text=text, sort=sort, limit=_LISTED),
            sort=sort,
            sorts=list(tasks.SORTS),
            text=text,
            most=_LISTED,
            mark=mark,
        )

    def task(self, run: OpenRun, links: Links, query: Query) -> str:
        """The biography of a task."""
        task_id, mark = query.get("id", ""), _live_mark(run, links)
        chapters = tasks.biography(run, task_id)
        if not chapters:
            raise NotFound(f"There is no task {task_id!r} in this run.")
        prompt = tasks.task_prompt(run, chapters[0].version, chapters[0].rollouts[0]["rollout_id"])
        return self._page(
            "task.html", run, links, title=f"Task {task_id}", tab="tasks", task_id=task_id, chapters=chapters, prompt=prompt, mark=mark
        )

    def service(self, run: OpenRun, links: Links, query: Query) -> str:
        """Sandboxes and graders."""
        last = query.get("last", str(service.WINDOWS[-1]))
        if last != "all" and not (last.isdecimal() and int(last)):
            raise ValueError(f"last={last}: give a number of policy versions, 1 or more, or all")
        window, mark = None if last == "all" else int(last), _live_mark(run, links)
        found = service.service(run, window=window)
        shown = {"found": found, "window": window, "windows": service.WINDOWS, "mark": mark}
        return self._page("service.html", run, links, title="Sandboxes and graders", tab="service", **shown)

    def timeline(self, run: OpenRun, links: Links, query: Query) -> str:
        """The spans of one training step, by default the last that has some: they are written a little later than its metrics."""
        metrics, pinned, mark = run.metrics(), query.get("step", ""), _live_mark(run, links)
        last = timeline.newest_step(run, metrics)
        text = pinned or str(last)
        if not text.isdecimal():
            raise ValueError(f"step={text}: give the number of a training step")
        step = int(text)
        drawing = timeline.step_timeline(run, step, metrics)
        shown = {"step": step, "pinned": pinned, "last": last, "drawing": drawing, "mark": mark if step >= last else ""}
        return self._page("timeline.html", run, links, title=f"Timeline of step {step}", tab="timeline", **shown)

    def compare(self, run: OpenRun, links: Links, query: Query, *, folder: RunsFolder) -> str:
        """This run and another at equal tokens; `with` names the other, `by` the tokens."""
        by = query.get("by") or TokenCount.SAMPLED.value
        kinds = [one.value for one in TokenCount]
        if by not in kinds:
            raise ValueError(f"by={by}: runs can be compared by {' or '.join(kinds)} tokens")
        other, found = query.get("with", ""), None
        if other:
            second = folder.get(other)
            if second is None:
                raise NotFound(f"There is no run {other!r} in {folder.place}.")
            found = compare_runs(run.log(), second.log(), names=(run.name, second.name), by=TokenCount(by))
        others = [one.name for one in folder.runs() if one.name != run.name]
        return self._page(
            "compare.html",
            run,
            links,
            title="Compare",
            tab="compare",
            other=other,
            by=by,
            kinds=kinds,
            others=others,
            found=found,
        )

    def sql(self, run: OpenRun, links: Links, query: Query) -> str:
        """The SQL box."""
        text = query.get("q", "")
        return self._page(
            "sql.html",
            run,
            links,
            title="SQL",
            tab="sql",
            text=text,
            answer=sql_box.answer(run, text),
            views=sql_box.views(run),
            named=VIEWS,
            split_ids=sql_box.split_ids,
            target=sql_box.target,
            cell_chars=sql_box.CELL_CHARS,
        )

    def _page(self, template: str, run: OpenRun, links: Links, **values: Any) -> str:
        """With what the frame of every page of a run shows; damaged parts are known only after the page's queries."""
        try:
            problems = list(run.problems)
        except QueryError as error:
            problems = [str(error)]
        return self.render(template, links=links, run=run, problems=problems, **{"live_seconds": LIVE_SECONDS, **values})


def _live_mark(run: OpenRun, links: Links) -> str:
    """What a page that refreshes itself must know before it reads the log; empty where nothing more will come."""
    return run.mark() if links.is_live and run.state().is_live else ""


def _latest_flags(metrics: Metrics) -> list[tuple[RunFlag, int]]:
    """The last flag of each name on the run as a whole, with how often it was raised."""
    counts = Counter(flag.name for flag in metrics.flags)
    return [(flag, counts[name]) for name, flag in {flag.name: flag for flag in metrics.flags}.items()]


def _settings(run: OpenRun) -> list[tuple[str, str]]:
    """The configuration, one `section.key` a row."""
    rows: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            rows.append((prefix, "" if value is None else str(value)))

    walk("", run.config())
    return [row for row in rows if row[0]]

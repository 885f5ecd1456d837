"""Runs a repository's tests one at a time, as the host says, and answers over a channel that the tests do not have.

The main process of a container: the host sends lines of JSON to its stdin and reads lines of JSON from its stdout. Both are moved away
before any code of the repository is imported. The garbage collector is off until then, and is not shown what is loaded. Each order carries
a nonce that its answer must repeat. Standard library and pytest only, Python 3.8.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from environments.swe.inside.runner_modules import LOADED, import_runner
from environments.swe.inside.suite_worker_channel import Channel
from environments.swe.inside.suite_worker_guard import Guard, hidden
from environments.swe.inside.suite_worker_paths import is_test_path
from environments.swe.inside.suite_worker_quick import scan_fixtures_once
from environments.swe.inside.suite_worker_shadows import Shadows
from environments.swe.inside.suite_worker_signals import withhold
from environments.swe.inside.suite_worker_watch import AuditWatch, Snapshot

_OMITTED_PLUGINS = ("randomly", "random_order", "xdist", "cov", "rerunfailures", "flaky", "repeat", "forked", "sugar", "instafail")
"""Entry points with these in their names reorder, repeat or hide tests, or show them otherwise."""
_DETAIL_CHARS, _ERROR_CHARS = 2000, 4000
_exit = os._exit


def _import_runner() -> tuple[str, ...]:
    """Import pytest with all of its own plugins, and tell which others are installed."""
    import_runner()
    import importlib.metadata

    found = importlib.metadata.entry_points()
    if LOADED is not None:
        LOADED.end()
    group = found.select(group="pytest11") if hasattr(found, "select") else found.get("pytest11", ())
    names = {entry.name for entry in group}
    return tuple(sorted(name for name in names if not any(part in name for part in _OMITTED_PLUGINS)))


def _install_guard(guard: Guard, *, root: str) -> None:
    """Have pytest rewrite all files of tests, always from their sources, and by the guard too."""
    import importlib

    rewrite: Any = importlib.import_module("_pytest.assertion.rewrite")
    old_rewrite_asserts, old_rewrite_test = rewrite.rewrite_asserts, rewrite._rewrite_test
    hook: Any = rewrite.AssertionRewritingHook
    old_should, old_bailout = hook._should_rewrite, hook._early_rewrite_bailout

    old_read = rewrite._read_pyc

    def is_test(path: Any) -> bool:
        return str(path).startswith(root + "/") and is_test_path(str(path)[len(root) + 1 :])

    def rewrite_asserts(tree: Any, source: Any, path: Any = None, config: Any = None) -> None:
        if str(path).startswith(root + "/"):
            guard.transform(tree)
        old_rewrite_asserts(tree, source, path, config)

    def rewrite_test(path: Any, *arguments: Any) -> Any:
        guard.note_change()
        status, code = old_rewrite_test(path, *arguments)
        if str(path).startswith(root + "/"):
            code = guard.bind(code)
        if is_test(path):
            guard.trust_file(str(path), code)
        return status, code

    def read_pyc(path: Any, *arguments: Any, **named: Any) -> Any:
        return None if str(path).startswith(root + "/") else old_read(path, *arguments, **named)

    def should_rewrite(self: Any, name: str, path: str, state: Any) -> Any:
        return is_test(path) or old_should(self, name, path, state)

    def early_rewrite_bailout(self: Any, name: str, state: Any) -> Any:
        return "test" not in name.lower() and old_bailout(self, name, state)

    rewrite.rewrite_asserts, rewrite._rewrite_test = hidden(rewrite_asserts), hidden(rewrite_test)
    rewrite._read_pyc = hidden(read_pyc)
    hook._should_rewrite, hook._early_rewrite_bailout = hidden(should_rewrite), hidden(early_rewrite_bailout)


class Runner:
    """Takes the place of pytest's loop. pytest knows it by `plugin` alone, from which nothing leads here."""

    def __init__(
        self,
        channel: Channel,
        request: dict[str, Any],
        *,
        guard: Guard,
        snapshot: Snapshot,
        watch: AuditWatch,
        shadows: Shadows,
        recorder: Any | None,
    ) -> None:
        self._channel, self._request, self._guard = channel, request, guard
        self._snapshot, self._watch, self._shadows, self._recorder = snapshot, watch, shadows, recorder
        self._items: list[Any] = []
        self._reports: list[Any] = []
        self._errors: list[str] = []
        self._after = ""
        self._hooks: tuple[int, ...] | None = None
        self.collected = False

    def plugin(self) -> Any:
        """What is registered: thin functions over callables that do not give away what they call."""
        import types

        import pytest

        loop, collected, reported, before = map(hidden, (self._loop, self._note_collected, self._reported, self._before_call))

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(session: Any) -> bool:
            return bool(loop(session))

        def pytest_collectreport(report: Any) -> None:
            collected(report)

        def pytest_runtest_logreport(report: Any) -> None:
            reported(report)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_pyfunc_call(pyfuncitem: Any) -> Any:
            function = before(pyfuncitem)
            try:
                yield
            finally:
                if function is not None:
                    pyfuncitem.obj = function

        found: Any = types.ModuleType("suite")
        for one in (pytest_runtestloop, pytest_collectreport, pytest_runtest_logreport, pytest_pyfunc_call):
            setattr(found, one.__name__, one)
        return found

    def _note_collected(self, report: Any) -> None:
        if report.failed:
            self._errors.append(f"{report.nodeid}: {report.longrepr}"[-_DETAIL_CHARS:])

    def _reported(self, report: Any) -> None:
        self._reports.append(report)

    def _loop(self, session: Any) -> bool:
        """Tell what was collected, then do what the host says until it says no more; ends the process."""
        self.collected = True
        _part_from_import_hook(session.config)
        wanted = frozenset(self._request["tests"])
        self._items = [item for item in session.items if not wanted or item.nodeid in wanted]
        self._hooks = _hook_ids(session.config)
        changed = self._guard.change or self._snapshot.changed(codes=True) or self._guard.replaced()
        self._snapshot.watch_tests(is_test=self._guard.is_test, trusted=self._guard.trusted)
        self._channel.send(
            {
                "nonce": self._request["nonce"],
                "collected": [item.nodeid for item in self._items],
                "errors": "\n".join(self._errors)[-_ERROR_CHARS:],
                "changed": changed,
                "shadows": self._shadows.loaded(),
            }
        )
        while True:
            order = self._channel.receive()
            if order["do"] == "finish":
                self._channel.send(
                    {"nonce": order["nonce"], "changed": self._changed(session, codes=True), "output": self._channel.last_output()}
                )
                _exit(0)
            if order["do"] == "control":
                self._items.append(_control(self._items[order["like"]], order["skip"]))
                self._channel.send({"nonce": order["nonce"], "index": len(self._items) - 1})
            else:
                following = order["next"]
                answer = self._run(self._items[order["run"]], None if following is None else self._items[following], order["text"])
                answer["changed"] = self._changed(session)
                answer["nonce"] = order["nonce"]
                self._channel.send(answer)

    def _before_call(self, pyfuncitem: Any) -> Any:
        """With a text: the test's function must have run, and fails with that text then. The function to put back, if any."""
        import pytest

        function, text, self._after = pyfuncitem.obj, self._after, ""
        if not text or getattr(function, "is_control", False):
            return None

        def and_fail(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            if hasattr(result, "__await__"):
                return result
            pytest.fail(text, pytrace=False)

        pyfuncitem.obj = and_fail
        return function

    def _run(self, item: Any, following: Any, text: str) -> dict[str, Any]:
        import pytest

        self._reports, self._after = [], text
        if text and not getattr(item, "is_control", False):
            if type(item) is not pytest.Function:
                return {"outcome": "skipped", "seconds": 0.0, "detail": "no plain function"}
            item._initrequest()  # its fixtures anew: it has run before
        if getattr(item, "is_control", False):
            item.control_text[0] = text
        self._guard.begin()
        if self._recorder is not None:
            self._recorder.start()
        raised = ""
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        except BaseException as error:
            raised = f"{type(error).__name__}: {error}"
        covered = self._recorder.stop() if self._recorder is not None else None
        outcome, detail = _outcome(self._reports)
        if raised and outcome in ("passed", "missing"):
            outcome, detail = "error", raised
        if outcome == "passed" and self._guard.hits:
            outcome, detail = "failed", self._guard.hits[0]
        name = getattr(item, "originalname", None) or item.name
        is_function = isinstance(item, pytest.Function) and not getattr(item, "is_control", False) and name.startswith("test")
        if outcome == "passed" and is_function and self._guard.completions[-1:] != [True]:
            outcome, detail = "failed", "the function of the test did not run to its end"
        seconds = sum(report.duration for report in self._reports)
        answer = {"outcome": outcome, "seconds": round(float(seconds), 6), "detail": detail[-_DETAIL_CHARS:]}
        if covered is not None:
            answer["covered"] = covered
        return answer

    def _changed(self, session: Any, *, codes: bool = False) -> str:
        changed = self._guard.change or self._snapshot.changed(codes=codes or self._watch.code_set)
        if not changed and _hook_ids(session.config) != self._hooks:
            changed = "pytest's hooks"
        return changed


def _outcome(reports: list[Any]) -> tuple[str, str]:
    """What pytest's reports of one test come to."""
    detail = "\n".join(str(report.longrepr) for report in reports if report.longrepr)
    for report in reports:
        if report.failed:
            return ("failed" if report.when == "call" else "error"), detail
    for report in reports:
        if report.skipped:
            return ("xfailed" if hasattr(report, "wasxfail") else "skipped"), detail
    if any(hasattr(report, "wasxfail") for report in reports):
        return "xpassed", detail
    return ("passed" if any(report.when == "call" and report.passed for report in reports) else "missing"), detail


def _hook_ids(config: Any) -> tuple[int, ...]:
    """Who is called around a test."""
    found = []
    for name in ("protocol", "setup", "call", "teardown", "makereport", "logreport"):
        found += [id(one.function) for one in getattr(config.hook, f"pytest_runtest_{name}").get_hookimpls()]
    return (*found, *(id(one.function) for one in config.hook.pytest_pyfunc_call.get_hookimpls()))


def _control(like: Any, skip: bool) -> Any:
    """A test beside another one that must fail, or be skipped, with the text that it is given when it runs."""
    import pytest

    text = [""]

    def control() -> None:
        if skip:
            pytest.skip(text[0])
        pytest.fail(text[0], pytrace=False)

    parent = like.getparent(pytest.Module) or like.parent
    item: Any = pytest.Function.from_parent(parent, name=like.name.split("[", 1)[0], callobj=control)
    item.is_control, item.control_text = True, text
    return item


def _part_from_import_hook(config: Any) -> None:
    """pytest's import hook, which anybody finds in `sys.meta_path`, keeps of its settings what it needs and no way to the rest."""
    import types

    import _pytest.assertion.rewrite as rewrite
    import _pytest.debugging

    debugger: Any = _pytest.debugging.pytestPDB
    debugger._pluginmanager = debugger._config = None
    key: Any = getattr(rewrite, "assertstate_key", None)
    for hook in sys.meta_path:
        if type(hook) is rewrite.AssertionRewritingHook and hasattr(config, "stash") and key in config.stash:
            stash = type(config.stash)()
            stash[key] = config.stash[key]
            hook.session = None
            hook.config = types.SimpleNamespace(stash=stash, getini=hidden(config.getini))  # type: ignore[assignment]


def main() -> None:
    channel = Channel()
    root = os.path.realpath(os.getcwd())
    sys.dont_write_bytecode = True
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        plugins = _import_runner()
    except Exception as error:
        channel.send({"nonce": channel.receive()["nonce"], "broken": f"the image cannot run pytest: {type(error).__name__}: {error}"})
        _exit(0)
    import pytest

    guard = Guard(root)
    _install_guard(guard, root=root)
    scan_fixtures_once()
    snapshot = Snapshot()
    for code in snapshot.codes():
        guard.trust(code)
    guard.changed, guard.checks_changed = (lambda: snapshot.changed(codes=True)), snapshot.checks_changed
    request = channel.receive()
    nonce = request["nonce"]
    sys.path.insert(0, root)
    shadows = Shadows(request["new_names"], root)
    shadowing = shadows.ahead(request["tests"])
    if shadowing:
        channel.send({"nonce": nonce, "shadows": shadowing})
        _exit(0)
    for name in [name for name in sys.modules if name.split(".", 1)[0] == "environments"]:
        del sys.modules[name]
    recorder = RECORDER(root) if request["coverage"] and RECORDER is not None else None
    watch = AuditWatch(root, is_test=is_test_path, tell=lambda event, path: channel.tell({"nonce": nonce, "flag": [event, path]}))
    guard.tell = watch.note
    watch.start()
    withhold()
    gc.freeze()
    gc.enable()
    runner = Runner(channel, request, guard=guard, snapshot=snapshot, watch=watch, shadows=shadows, recorder=recorder)
    files = sorted({test.split("::", 1)[0] for test in request["tests"]})
    arguments = ["-q", "--rootdir=" + root, "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    arguments += [part for name in plugins for part in ("-p", name)]
    present = [name for name in files if os.path.exists(name)]
    status = 0
    try:
        if present or not files:
            for more in ([], ["-o", "addopts="]):  # again without its options: they may be those of plugins that are left out
                status = int(pytest.main([*arguments, *more, *present], plugins=[runner.plugin()]))
                if runner.collected or status != 4:
                    break
    except BaseException:
        channel.send({"nonce": nonce, "broken": traceback.format_exc()[-_ERROR_CHARS:]})
        _exit(0)
    reason = f"pytest ended with code {status} before it had collected tests" if files == [] or present else "no file of the tests is there"
    channel.send({"nonce": nonce, "broken": reason, "output": channel.last_output()})
    _exit(0)


RECORDER: Callable[[str], Any] | None = None
"""Records which functions a test enters; set by the program that the host puts together."""

"""Runs in the test box: the data's test source, with stand-ins for what the response defines.

A call of a stand-in becomes a request on the channel; the grader carries it to the candidate's box and brings the reply. What
comes back is decoded strictly: plain values of exact built-in types, or a `Remote` that stands for an object over there.
Standard library only.

Channel, a JSON object a line: `start` comes in, then any number of {"request"} out and {"reply"} or {"ended"} in, then
{"verdict"} with the nonce of `start` out.
"""

import ast
import builtins
import importlib
import json
import math
import os
import sys
import types
from typing import Any

sys.path.insert(0, "/work")  # where the grader put the modules below, until `close_imports`

from environments.code_tests.expressions import evaluate
from environments.code_tests.shared_files import SharedFiles
from environments.code_tests.values import NotAValue, decode, encode, seed_random

_MAX_FAILURES = 20
_PARTS = "_Remote__remote_parts"
_FILE_FOLDERS = ("/work/", "/tmp/")
_NOT_RAISED = (StopIteration, StopAsyncIteration)
"""Would end a loop of the test early, and quietly."""


class CandidateError(Exception):
    """What the candidate raised, when it is no built-in exception, or what it returned, when that is no value."""


class CandidateEnded(KeyboardInterrupt):
    """The candidate's box is gone. Of this base because unittest lets it pass."""


class _Stop(KeyboardInterrupt):
    """The first failure, when one is enough."""


class Relay:
    """The way to the candidate, and the objects of either side that the other one knows by number."""

    def __init__(self, start: dict[str, Any], *, channel: int, lines: Any) -> None:
        self._channel, self._lines = channel, lines
        self.objects = start["objects"]
        self._answer_type = start["answer_type"]
        self._want_args = start["mutated_arguments"]
        self._files = SharedFiles() if start["share_files"] else None
        self._remotes: dict[int, Remote] = {}
        self._own: list[Any] = []
        self._own_numbers: dict[int, int] = {}
        self._attributes: dict[tuple[int, str], tuple[Any, str]] = {}
        self._found_in_others: set[int] = set()
        self.requests = 0
        self.ended = ""

    def call(self, target: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of calling an object of the candidate."""
        if self.objects == "opaque" and target in self._found_in_others:
            raise TypeError("the tests cannot call what they found in an object of the candidate")
        self._write_back()
        request = {
            "op": "call",
            "target": target,
            "args": [self._encode(item) for item in args],
            "kwargs": {name: self._encode(item) for name, item in kwargs.items()},
            "want_args": self._want_args,
        }
        if self._files is not None:
            request["files"] = self._files.changes()
        reply = self._ask(request)
        if self._want_args:
            for mine, theirs in zip(args, reply["args"], strict=True):
                _take_over(mine, self._decode(theirs))
        value = self._decode(reply["value"])
        if self.objects == "refused" and not finite(value):
            raise CandidateError("the answer holds a number that is not finite")
        if self._answer_type and not conforms(value, self._answer_type):
            raise CandidateError(f"the answer is {_short(repr(value))}, which is no {self._answer_type}")
        return value

    def read(self, target: int, name: str) -> Any:
        """An attribute of an object of the candidate. A container that is changed later is assigned back before the next request."""
        self._write_back()
        value = self._decode(self._ask({"op": "read", "target": target, "name": name})["value"])
        if self.objects == "opaque":
            if type(value) is not Remote:
                raise AttributeError("the tests cannot look into an object of the candidate")
            self._found_in_others.add(_parts(value)[1])
        if type(value) in (list, dict, set):
            self._attributes[target, name] = value, json.dumps(self._encode(value))
        return value

    def write(self, target: int, name: str, value: Any) -> None:
        self._attributes.pop((target, name), None)
        self._ask({"op": "write", "target": target, "name": name, "value": self._encode(value)})

    def items(self, target: int) -> Any:
        self._write_back()
        return self._decode(self._ask({"op": "items", "target": target})["value"])

    def stand_in(self, data: Any) -> Any:
        """What the tests get for a name of the candidate."""
        return decode(data, opaque=self._remote)

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message, allow_nan=False).encode() + b"\n"
        while data:
            data = data[os.write(self._channel, data) :]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests += 1
        if self.ended:
            raise CandidateEnded(self.ended)
        self.send({"request": request})
        answer = json.loads(self._lines.readline())
        if "ended" in answer:
            self.ended = answer["ended"]
            raise CandidateEnded(self.ended)
        reply = answer["reply"]
        if self._files is not None and "files" in reply:
            try:
                self._files.apply(reply["files"])
            except (ValueError, TypeError, OSError) as error:
                raise CandidateError(f"its files cannot be read: {error}") from None
        if "error" in reply:
            raise _exception(reply["error"])
        if "value" not in reply or (request.get("want_args") and type(reply.get("args")) is not list):
            raise CandidateError("a reply without a value")
        return reply

    def _write_back(self) -> None:
        for (target, name), (value, before) in list(self._attributes.items()):
            if json.dumps(self._encode(value)) != before:
                self.write(target, name, value)

    def _decode(self, data: Any) -> Any:
        try:
            return decode(data, opaque=self._known)
        except NotAValue as error:
            raise CandidateError(f"a malformed value: {error}") from None

    def _encode(self, value: Any) -> Any:
        return encode(value, opaque=self._number)

    def _known(self, data: dict[str, Any]) -> Any:
        ((tag, content),) = data.items()
        if tag == "foreign" and type(content) is int and 0 <= content < len(self._own):
            return self._own[content]
        if self.objects == "refused":
            raise CandidateError(f"the candidate returned {_described(content)}, which is no plain value")
        return self._remote(data)

    def _remote(self, data: dict[str, Any]) -> Any:
        ((tag, content),) = data.items()
        if tag != "handle" or type(content) is not list or len(content) != 2 or type(content[0]) is not int:
            raise NotAValue(f"an unknown tag {tag[:20]!r}")
        number = content[0]
        if number not in self._remotes:
            self._remotes[number] = Remote(self, number, _described(content))
        return self._remotes[number]

    def _number(self, value: Any) -> Any:
        if type(value) is Remote:
            return {"handle": [_parts(value)[1], ""]}
        number = self._own_numbers.get(id(value))
        if number is None:
            number = self._own_numbers[id(value)] = len(self._own)
            self._own.append(value)
        return {"foreign": number}


class Remote:
    """An object of the candidate. Equal to itself only; what else it can do depends on `Relay.objects`."""

    __slots__ = ("__remote_parts",)

    def __init__(self, relay: Relay, number: int, kind: str) -> None:
        object.__setattr__(self, _PARTS, (relay, number, kind))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _parts(self)[0].call(_parts(self)[1], args, kwargs)

    def __getattr__(self, name: str) -> Any:
        relay, number, kind = _parts(self)
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"the tests cannot look into {kind}")
        return relay.read(number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        relay, number, _ = _parts(self)
        relay.write(number, name, value)

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of {_parts(self)[2]} is not known here")

    def __iter__(self) -> Any:
        return iter(self._live().items(_parts(self)[1]))

    def __len__(self) -> int:
        return self._special("__len__", int)

    def __getitem__(self, key: Any) -> Any:
        return self._special("__getitem__", None, key)

    def __str__(self) -> str:
        return self._special("__str__", str) if _parts(self)[0].objects == "live" else repr(self)

    def __repr__(self) -> str:
        return f"<{_parts(self)[2]}>"

    def _live(self) -> Relay:
        relay, _, kind = _parts(self)
        if relay.objects != "live":
            raise TypeError(f"the tests cannot look into {kind}")
        return relay

    def _special(self, name: str, kind: type | None, *args: Any) -> Any:
        result = self._live().read(_parts(self)[1], name)(*args)
        if kind is not None and type(result) is not kind:
            raise CandidateError(f"{name} returned no {kind.__name__}")
        return result


def conforms(value: Any, kind: str) -> bool:
    """Whether `value` is of a type such as `int` or `List[List[str]]`; an integer is a float too, a bool is no integer."""
    if kind.startswith("List[") and kind.endswith("]"):
        return type(value) is list and all(conforms(item, kind[5:-1]) for item in value)
    return type(value).__name__ == kind or (kind == "float" and type(value) is int)


def finite(value: Any) -> bool:
    """Whether no number in `value` is NaN, which would pass every `not a > b`, or infinite."""
    if type(value) is dict:
        return all(finite(key) and finite(item) for key, item in value.items())
    if type(value) in (list, tuple, set, frozenset):
        return all(finite(item) for item in value)
    if type(value) is complex:
        return math.isfinite(value.real) and math.isfinite(value.imag)
    return type(value) is not float or math.isfinite(value)


class _AssertCounter(ast.NodeTransformer):
    """Gives each assert statement a number and reports whether it held."""

    def __init__(self) -> None:
        self.lines: list[int] = []

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        number = len(self.lines)
        self.lines.append(node.lineno)
        report = [ast.parse(f"__{outcome}__({number})").body[0] for outcome in ("held", "failed")]
        caught = ast.ExceptHandler(type=ast.Name(id="__Exception__", ctx=ast.Load()), name=None, body=[report[1]])
        return ast.copy_location(ast.Try(body=[node], handlers=[caught], orelse=[report[0]], finalbody=[]), node)


class Outcomes:
    """Which tests passed, and the first lines about those that did not."""

    def __init__(self, *, keep_going: bool) -> None:
        self.keep_going = keep_going
        self.n_expected = 1
        """How many tests must have passed at least."""
        self.held: set[Any] = set()
        self.failed: set[Any] = set()
        self.failures: list[str] = []

    def fail(self, key: Any, text: str) -> None:
        self.failed.add(key)
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append(_short(text))
        if not self.keep_going:
            raise _Stop


def run_asserts(start: dict[str, Any], namespace: dict[str, Any], outcomes: Outcomes) -> None:
    """Run the test source, and `check` where the source leaves that to us."""
    counter = _AssertCounter()
    tree = ast.fix_missing_locations(counter.visit(ast.parse(start["source"])))
    source_lines = start["source"].split("\n")

    def failed(number: int) -> None:
        line = counter.lines[number]
        error = sys.exc_info()[1]
        outcomes.fail(number, f"line {line}: {source_lines[line - 1].strip()}: {_shown(error)}")

    namespace |= {"__held__": outcomes.held.add, "__failed__": failed, "__Exception__": Exception}
    exec(compile(tree, "tests", "exec"), namespace)
    if start["check"]:
        namespace["check"](namespace[start["check"]])


def judge(start: dict[str, Any], relay: Relay) -> dict[str, Any]:
    """The verdict on the candidate, without the nonce."""
    outcomes = Outcomes(keep_going=start["keep_going"])
    finished = False
    seed_random(start["support"] + start["source"])
    module = types.ModuleType("tests")  # data classes and pickled objects look for the module of their class
    sys.modules["tests"] = module
    module.__dict__["eval"] = evaluate
    try:
        exec(compile(start["support"], "support", "exec"), module.__dict__)
    except Exception as error:
        return {"broken": _shown(error)}
    module.__dict__.update({name: relay.stand_in(data) for name, data in start["names"].items()})
    try:
        if start["unittest"]:
            from environments.code_tests.unittest_run import run_unittests  # `close_imports` has imported it

            run_unittests(start["source"], module, outcomes)
        else:
            run_asserts(start, module.__dict__, outcomes)
        finished = not relay.ended
    except (_Stop, CandidateEnded):
        pass
    except BaseException as error:
        if not relay.requests:
            return {"broken": _shown(error)}
        outcomes.failures.append(_short(_shown(error)))
    if relay.ended:
        outcomes.failures.append(relay.ended)
    passed = outcomes.held - outcomes.failed
    complete = finished and not outcomes.failed and len(passed) >= outcomes.n_expected
    if finished and not relay.requests:
        return {"broken": "the tests ended without calling the candidate"}
    if finished and not outcomes.held and not outcomes.failed:  # what the candidate returned led the tests past their asserts
        outcomes.failures.append("the tests ended without an assert")
    return {"complete": complete, "passed": len(passed), "failures": outcomes.failures}


def _exception(data: Any) -> Exception:
    """The candidate's exception as one of ours. Never one that is no Exception, and none that ends a loop."""
    if type(data) is not list or len(data) != 3 or type(data[0]) is not str or type(data[1]) is not list:
        return CandidateError("a malformed error")
    kind = vars(builtins).get(data[0])
    if not isinstance(kind, type) or not issubclass(kind, Exception) or kind is Exception or issubclass(kind, _NOT_RAISED):
        return CandidateError(_short(str(data[2])))
    try:
        return kind(*(decode(item, opaque=_refuse) for item in data[1]))
    except Exception:
        return CandidateError(_short(str(data[2])))


def _refuse(data: Any) -> Any:
    raise NotAValue("an object")


def _take_over(mine: Any, theirs: Any) -> None:
    """Make a container equal to what the candidate made of its copy, in place; inner containers too where they can be matched."""
    if type(mine) is not type(theirs) or mine == theirs:
        return
    if type(mine) is list:
        _keep_inner(mine, theirs, range(min(len(mine), len(theirs))))
        mine[:] = theirs
    elif type(mine) in (dict, set):
        if type(mine) is dict:
            _keep_inner(mine, theirs, mine.keys() & theirs.keys())
        mine.clear()
        mine.update(theirs)


def _keep_inner(mine: Any, theirs: Any, places: Any) -> None:
    for place in places:
        if type(mine[place]) in (list, dict, set) and type(mine[place]) is type(theirs[place]):
            _take_over(mine[place], theirs[place])
            theirs[place] = mine[place]


def _parts(remote: Remote) -> tuple[Relay, int, str]:
    parts: tuple[Relay, int, str] = object.__getattribute__(remote, _PARTS)
    return parts


def _described(content: Any) -> str:
    return (
        f"the candidate's {content[1][:60]} object" if type(content) is list and type(content[-1]) is str else "an object of the candidate"
    )


def _shown(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."


def close_imports(start: dict[str, Any]) -> None:
    """From here on nothing is imported from a folder that files of the candidate may come to."""
    if start["unittest"]:
        importlib.import_module("environments.code_tests.unittest_run")  # only then: it costs many times the other imports
    sys.path[:] = [path for path in sys.path if os.path.isabs(path) and not f"{path}/".startswith(_FILE_FOLDERS)]


def main() -> None:
    lines = os.fdopen(os.dup(0), "rb")
    channel = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    start = json.loads(lines.readline())
    nonce = start.pop("nonce")
    close_imports(start)
    relay = Relay(start, channel=channel, lines=lines)
    verdict = judge(start, relay)
    relay.send({"verdict": verdict, "nonce": nonce})
    lines.readline()  # until the grader ends this box
    os._exit(0)


if __name__ == "__main__":
    main()

"""The environment `swe`: an agent repairs a repository in a container, with the tools bash, edit, create and submit.

Each message must hold exactly one tool call; everything else is answered by an error and uses the turn. The container starts at the first
call that needs it and is kept between the turns. What the agent does to it is its own affair and comes back as text; what the engine
does not do leaves `step` as a ContainerError. The episode ends with an accepted submit, whose outcome is a patch.
"""

import asyncio
import os

from environments.containers.base import Containers, ContainerSpec
from environments.per_loop import PerLoop
from environments.records import Budget, Message, SandboxInfo, StepResult, StopReason, Task
from environments.reply import ToolCall, ToolCallError
from environments.swe.agent_box import AgentBox, BoxEnded, CallRefused, driver_command
from environments.swe.agent_options import AgentOptions
from environments.swe.base_tree import BaseTree
from environments.swe.folder import read_task
from environments.swe.observation import cut_middle, observation
from environments.swe.records import Patch, PatchError, RepoTask
from environments.swe.tool_bodies import Create, Edit
from environments.swe.tool_docs import tool_docs
from environments.swe.tool_format import TOOLS, parse_call

_LARGEST_PATCH = 16 << 20
_ENVIRONMENT = {
    "TERM": "dumb",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    **{f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in (("NAME", "agent"), ("EMAIL", "agent@localhost"))},
}
"""No pager waits for a key, and git can stash and commit."""


class RepoAgent:
    """One episode of one repository task. Payload: AgentOptions."""

    def __init__(self, task: Task) -> None:
        """Raises ValueError for a payload that names no folder or has an option out of range."""
        self.task = task
        self._options = AgentOptions.read(task.payload)
        self._repo: RepoTask | None = None
        self._shared: SharedAgents | None = None
        self._base: BaseTree | None = None
        self._box: AgentBox | None = None
        self._budget: Budget | None = None
        self._exit_code: int | None = None
        self._info = SandboxInfo()

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt; its system message, or a new one, ends with the tools. Raises ValueError for a folder that is no task."""
        docs = tool_docs(self._options, work_dir=self._task().work_dir)
        first, *rest = self.task.prompt
        if not docs:
            return self.task.prompt
        if first.role == "system":
            return (Message(role="system", content=f"{first.content}\n\n{docs}"), *rest)
        return (Message(role="system", content=docs), first, *rest)

    def note_budget(self, budget: Budget) -> None:
        """What is left after the next `step`."""
        self._budget = budget

    def sandbox_info(self) -> SandboxInfo:
        """The image, and every container of the episode."""
        return self._info

    async def step(self, action: Message) -> StepResult:
        """Make the call. Raises ContainerError and its relatives when the engine is at fault."""
        self._exit_code = None
        try:
            call = parse_call(action.content, tool_format=self._options.tool_format)
            if call.name not in TOOLS:
                raise ToolCallError(f"there is no tool {call.name[:40]!r}; tools: {', '.join(TOOLS)}")
        except ToolCallError as error:
            return self._answer(f"[nothing was done: {error}]", name="")
        self._shared = self._shared or SharedAgents.take()
        try:
            async with self._shared.turns:
                result = await self._call(call, self._shared.containers)
        except (ToolCallError, CallRefused) as error:
            result = f"[{error}]"
        except BoxEnded as error:
            self._box = None
            result = f"[the container ended: {error}. What was changed and what ran in it is lost; the next call starts a fresh one.]"
        if isinstance(result, str):
            return self._answer(result, name=call.name)
        return StepResult(done=True, stop_reason=StopReason.DONE, outcome=result.to_json())

    async def close(self) -> None:
        """Remove the container."""
        shared, self._shared = self._shared, None
        try:
            await self._drop_box()
        finally:
            if shared is not None:
                await shared.release()

    async def _call(self, call: ToolCall, containers: Containers) -> str | Patch:
        options = self._options
        if call.name == "submit":
            return await self._submit(call.body.strip(), containers)
        if call.name == "bash":
            return await self._bash(call.body, containers)
        if call.name == "edit":
            change = Edit.read(call.body)
            box = await self._opened(containers)
            said = await box.edit(change.path, search=change.search, replace=change.replace, around=options.edit_context)
        else:
            file = Create.read(call.body)
            box = await self._opened(containers)
            said = await box.create(file.path, file.content)
        return cut_middle(said, chars=options.observation_chars)

    async def _bash(self, command: str, containers: Containers) -> str:
        options = self._options
        box = await self._opened(containers)
        shown = await box.bash(command, seconds=options.command_seconds, keep=8 * options.observation_chars)
        text = cut_middle(shown.head, shown.tail, dropped=shown.dropped, chars=options.observation_chars)
        self._exit_code = shown.code
        fresh = f"its variables and all that ran in the background are gone; the next call starts a fresh shell in {self._task().work_dir}"
        notes = {
            "done": f"[exit code {shown.code}]" if shown.code else "",
            "timeout": f"[the command took longer than {options.command_seconds:g} s and was ended with its shell: {fresh}]",
            "shell": f"[the shell ended with exit code {shown.code}: {fresh}]",
        }
        return "\n".join(part for part in (text.rstrip("\n"), notes[shown.ended]) if part)

    async def _submit(self, path: str, containers: Containers) -> str | Patch:
        """The patch; or why the submission is rejected."""
        if path not in ("", "."):
            box = await self._opened(containers)
            patch = Patch(data=await box.read(path, most=_LARGEST_PATCH))
            if patch.empty:
                return f"[nothing was submitted: {path} is empty]"
            if not patch.data.startswith(b"diff"):
                return f"[nothing was submitted: {path} must be a patch that starts with `diff`, as git diff writes it]"
        else:
            made = await self._tree_patch()
            if isinstance(made, str):
                return f"[nothing was submitted: {made}]"
            patch = made
        await self._drop_box()
        return patch

    async def _tree_patch(self) -> str | Patch:
        """How the work folder differs from what the agent was given; or why there is nothing to submit."""
        if self._box is None or self._base is None:
            return "no file was changed"
        restarted = "all that ran was ended, the next call starts a fresh shell"
        try:
            changes = await self._box.changes(await self._base.listing(), most=self._options.submit_mb << 20)
            patch = await self._base.diff(changes)
        except CallRefused as error:
            return f"{error}; remove what does not belong there ({restarted})"
        except PatchError as error:
            return f"{error} ({restarted})"
        return f"no file was changed ({restarted})" if patch.empty else patch

    async def _opened(self, containers: Containers) -> AgentBox:
        """The container, started when there is none."""
        if self._box is None:
            task = self._task()
            self._base = self._base or await BaseTree.of(task, containers)
            self._box = await AgentBox.start(containers, _spec(task, self._base.image_id), await self._base.agent_files())
            self._info = SandboxInfo(image_digest=self._base.image_id, refs=(*self._info.refs, self._box.container.id))
        return self._box

    async def _drop_box(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            await box.close()

    def _task(self) -> RepoTask:
        self._repo = self._repo or read_task(self._options.folder)
        return self._repo

    def _answer(self, text: str, *, name: str) -> StepResult:
        """`name`: of the tool; empty for a message that calls none, which in CWM's form is answered by the user."""
        budget, self._budget = self._budget, None
        content = observation(text, budget)
        tool = Message(role="tool", name=name, content=content, exit_code=self._exit_code)
        message = tool if name else Message(role="user", content=content)
        return StepResult(messages=(message,), done=False)


class SharedAgents(PerLoop):
    """What the episodes of one event loop share: the engine, and turns at running something.

    Containers are held between turns and do not wait for one another: in lockstep an episode's next turn waits for those of all others,
    so one that waited for another's end would wait for ever. Instead at most four calls a processor run at a time; a turn always ends.
    """

    def __init__(self) -> None:
        from environments.containers.make import SharedContainers  # it loads the engine's client, which only this environment needs

        self.turns = asyncio.Semaphore(4 * (os.cpu_count() or 1))
        self._shared = SharedContainers.take()

    @property
    def containers(self) -> Containers:
        """The engine."""
        return self._shared.containers

    async def _end(self) -> None:
        await self._shared.release()


def _spec(task: RepoTask, image_id: str) -> ContainerSpec:
    from environments.containers.make import container_limits

    command = driver_command(task.work_dir)
    return ContainerSpec(
        image=image_id,
        command=command,
        work_dir=task.work_dir,
        environment=_ENVIRONMENT,
        limits=container_limits(),
        fills=True,
        held=True,
    )

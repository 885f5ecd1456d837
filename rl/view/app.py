"""The routes of the viewer. Reads only; every page is a GET whose URL holds all of its state."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rl.log.query import QueryError
from rl.view.guard import App, Guard
from rl.view.links import Links, ServerLinks
from rl.view.one_rollout import blob_text, message_text
from rl.view.open_run import OpenRun, RunsFolder
from rl.view.pages import NotFound, Pages, Query
from rl.view.render import HERE

_PageOf = Callable[[OpenRun, Links, Query], str]


def make_app(folder: RunsFolder) -> App:
    """The ASGI application over the runs of `folder`, guard included."""
    pages = Pages()
    by_name: dict[str, _PageOf] = {
        "": pages.overview,
        "rollouts": pages.rollouts,
        "rollout": pages.rollout,
        "contrast": pages.contrast,
        "group": pages.group,
        "tasks": pages.tasks,
        "task": pages.task,
        "service": pages.service,
        "sql": pages.sql,
        "timeline": pages.timeline,
        "compare": partial(pages.compare, folder=folder),
    }

    def runs(request: Request) -> Response:
        return _timed(lambda: pages.runs(folder, request.query_params))

    def page(request: Request) -> Response:
        run, query = _run(folder, request), request.query_params
        name = request.path_params.get("page", "")
        show = by_name.get(name)
        if show is None:
            raise NotFound("There is no such page.")
        return _timed(lambda: None if query.get("seen") and query["seen"] == run.mark() else show(run, ServerLinks(run=run.name), query))

    def live(request: Request) -> Response:
        run = _run(folder, request)
        return _timed(lambda: pages.live(run, ServerLinks(run=run.name), request.query_params))

    def flags(request: Request) -> Response:
        run = _run(folder, request)
        return _timed(lambda: pages.flags(run, ServerLinks(run=run.name)))

    def text(request: Request) -> Response:
        index = request.query_params.get("message", "")
        rollout_id = request.query_params.get("id", "")
        found = message_text(_run(folder, request), rollout_id, int(index)) if index.isdecimal() else None
        if found is None:
            raise NotFound("There is no such message.")
        return _download(found, f"message-{index}.txt")

    def blob(request: Request) -> Response:
        reference = request.query_params.get("ref", "")
        try:
            found = blob_text(_run(folder, request), reference)
        except ValueError as error:
            raise NotFound(str(error)) from error
        return _download(found, f"{reference[-12:]}.txt")

    def failed(request: Request, error: Exception) -> Response:
        status, title, message = _explained(error)
        body = pages.render("error.html", links=ServerLinks(), title=title, message=message, problems=[])
        return HTMLResponse(body, status_code=status)

    routes = [
        Route("/", runs),
        Mount("/static", StaticFiles(directory=HERE / "static", follow_symlink=False)),
        Route("/runs/{run}", page),
        Route("/runs/{run}/live", live),
        Route("/runs/{run}/flags", flags),
        Route("/runs/{run}/text", text),
        Route("/runs/{run}/blob", blob),
        Route("/runs/{run}/{page}", page),
    ]
    handled = (NotFound, HTTPException, QueryError, ValueError, OSError, OverflowError)
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(handled, failed))
    return Guard(app)


def _run(folder: RunsFolder, request: Request) -> OpenRun:
    run = folder.get(request.path_params["run"])
    if run is None:
        raise NotFound(f"There is no run {request.path_params['run']!r} in {folder.place}.")
    return run


def _timed(show: Callable[[], str | None]) -> Response:
    """A page, or no content when there is nothing new, with the processor time it took: open pages ask the more seldom the dearer it is.

    Requests beside it count, too, and so the time is never too small.
    """
    begun = time.process_time()
    html = show()
    spent = {"server-timing": f"cpu;dur={1000 * (time.process_time() - begun):.1f}"}
    return Response(status_code=204, headers=spent) if html is None else HTMLResponse(html, headers=spent)


def _download(text: str, name: str) -> Response:
    """As a file that no browser shows or runs."""
    return PlainTextResponse(text, headers={"content-disposition": f'attachment; filename="{name}"'})


def _explained(error: Exception) -> tuple[int, str, str]:
    """Status, title and sentence of an error page."""
    if isinstance(error, NotFound):
        return 404, "Not found", str(error)
    if isinstance(error, HTTPException):
        return error.status_code, "Not found" if error.status_code == 404 else "Refused", "There is no such page."
    if isinstance(error, QueryError):
        return 500, "The log cannot be read", str(error)
    if isinstance(error, OSError):
        return 500, "A file cannot be read", f"{Path(str(error.filename or '')).name}: {error.strerror or error}"
    return 400, "The address is not right", str(error)

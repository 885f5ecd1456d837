"""Addresses of pages: as the server has them, or as files of an exported bundle. Templates ask here and know neither."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlencode


class Links(Protocol):
    """None means that there is no such page here; templates then show plain text."""

    @property
    def is_live(self) -> bool:
        """Whether a server answers: forms, live refresh and SQL work."""

    def static(self, name: str) -> str:
        """A style sheet or script."""

    def runs(self) -> str | None:
        """The list of runs."""

    def page(self, name: str, **query: object) -> str | None:
        """A page of the run: `overview`, `rollouts`, `contrast`, `tasks`, `service`, `sql`, `group`, `task`, `timeline`, `compare`."""

    def rollout(self, rollout_id: str, **query: object) -> str | None:
        """One rollout."""

    def text(self, rollout_id: str, message_index: int) -> str | None:
        """The whole text of a message as a download."""

    def blob(self, reference: str) -> str | None:
        """A stored test log or output as a download."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLinks:
    """Addresses of the server; `run` is empty on the list of runs."""

    run: str = ""

    @property
    def is_live(self) -> bool:
        return True

    def static(self, name: str) -> str:
        return f"/static/{name}"

    def runs(self) -> str | None:
        return "/"

    def of_run(self, run: str) -> str:
        """The overview of any run."""
        return f"/runs/{quote(run, safe='')}"

    def page(self, name: str, **query: object) -> str | None:
        path = self.of_run(self.run) if name == "overview" else f"{self.of_run(self.run)}/{name}"
        return path + _query(query)

    def rollout(self, rollout_id: str, **query: object) -> str | None:
        return f"{self.of_run(self.run)}/rollout" + _query({"id": rollout_id, **query})

    def text(self, rollout_id: str, message_index: int) -> str | None:
        return f"{self.of_run(self.run)}/text" + _query({"id": rollout_id, "message": message_index})

    def blob(self, reference: str) -> str | None:
        return f"{self.of_run(self.run)}/blob" + _query({"ref": reference})


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleLinks:
    """File names of a bundle: what was not exported has no address."""

    rollouts: Mapping[str, str]
    """Rollout id: file."""
    groups: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    drops: Mapping[str, str] = field(default_factory=dict)
    """Drop reason: file with rollouts that were dropped so."""
    timelines: Mapping[str, str] = field(default_factory=dict)
    """Training step: file; the newest first."""

    @property
    def is_live(self) -> bool:
        return False

    def static(self, name: str) -> str:
        return f"static/{name}"

    def runs(self) -> str | None:
        return None

    def page(self, name: str, **query: object) -> str | None:
        if name == "group":
            return self.groups.get(str(query.get("id")))
        if name == "task":
            return self.tasks.get(str(query.get("id")))
        if name == "rollouts" and query:  # of all filters a bundle has the drop reasons only
            return self.drops.get(str(query.get("drop"))) if set(query) == {"drop"} else None
        if name == "timeline":
            return self.timelines.get(str(query["step"])) if "step" in query else next(iter(self.timelines.values()), None)
        pages = {"overview": "index.html", "rollouts": "rollouts.html", "contrast": "contrast.html", "service": "service.html"}
        return pages.get(name)

    def rollout(self, rollout_id: str, **query: object) -> str | None:
        return self.rollouts.get(rollout_id)

    def text(self, rollout_id: str, message_index: int) -> str | None:
        return None

    def blob(self, reference: str) -> str | None:
        return None


def _query(values: Mapping[str, object]) -> str:
    kept = {name: value for name, value in values.items() if value not in (None, "")}
    return f"?{urlencode(kept)}" if kept else ""

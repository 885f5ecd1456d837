"""A source package from the index that pip is configured for, by the simple repository API (PEP 503 and 691).

`pip download` of a source package runs its build code on the host to learn its metadata; this only fetches the file, checks its SHA-256,
and reads it as data.
"""

import base64
import hashlib
import html.parser
import json
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import InvalidVersion, Version

_MAX_BYTES = 256 << 20
_SECONDS = 60
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A file that an index offers."""

    name: str
    url: str
    sha256: str
    """Empty when the index gives none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSettings:
    """What pip's configuration says of indexes."""

    indexes: tuple[str, ...]
    folders: tuple[str, ...]
    """`find-links`: local folders."""
    certificates: str
    """Path of a bundle; empty for the system's."""
    proxy: str


def fetch_source_package(name: str, version: str) -> tuple[str, bytes]:
    """File name and content of the `.tar.gz` of a release. Raises ValueError when no index has it, or it is not what the index says."""
    wanted, release = canonicalize_name(name), _version(version)
    settings = index_settings()
    opener, seen = _opener(settings), False
    for folder in settings.folders:
        for path in sorted(Path(folder.removeprefix("file://")).glob("*.tar.gz")):
            if _is_release(path.name, wanted, release):
                return path.name, path.read_bytes()
    for index in settings.indexes:
        links = tuple(_links(opener, f"{index.rstrip('/')}/{wanted}/"))
        seen = seen or bool(links)
        for link in links:
            if _is_release(link.name, wanted, release):
                data = _get(opener, link.url)[0]
                if link.sha256 and hashlib.sha256(data).hexdigest() != link.sha256:
                    raise ValueError(f"{link.name} is not the file that {_host(index)} lists: its SHA-256 differs")
                return link.name, data
    where = ", ".join(map(_host, settings.indexes)) or "the folders of find-links"
    if seen:
        raise ValueError(f"{where} has no source package (.tar.gz) of {name} {version}; see `pip index versions {name}`")
    raise ValueError(f"{where} has no package {name!r}")


def index_settings() -> IndexSettings:
    """From `pip config list`: files and PIP_ variables, of which a variable wins."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise ValueError(f"pip does not tell its configuration: {done.stderr.strip()[-300:]}")
    found = dict(re.findall(r"^([\w:-]+\.[\w-]+)='(.*?)'$", done.stdout, re.M | re.S))

    def get(key: str) -> str:
        return next((found[f"{section}.{key}"] for section in (":env:", "download", "global") if f"{section}.{key}" in found), "")

    listed = (get("index-url") or _default_index(), *re.split(r"\s+|\\n", get("extra-index-url")))
    no_index = get("no-index").lower() in ("1", "true", "yes", "on")
    return IndexSettings(
        indexes=() if no_index else tuple(filter(None, listed)),
        folders=tuple(one for one in re.split(r"\s+|\\n", get("find-links")) if one.startswith(("/", "file://"))),
        certificates=get("cert"),
        proxy=get("proxy"),
    )


def _default_index() -> str:
    """The index that pip asks when nothing is configured."""
    program = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=_SECONDS, check=True).stdout.strip()


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise ValueError(f"{text!r} is no version; write pypi:NAME==VERSION") from error


def _is_release(file: str, name: str, version: Version) -> bool:
    if not file.endswith(".tar.gz"):
        return False
    try:
        return parse_sdist_filename(file) == (name, version)
    except (InvalidSdistFilename, InvalidVersion):
        return False


class _Anchors(html.parser.HTMLParser):
    """The links of an index page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _links(opener: urllib.request.OpenerDirector, page: str) -> Iterator[Link]:
    """What an index has of a project; nothing when it does not know it."""
    if page.startswith("file:"):
        folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(page).path))
        if not (folder / "index.html").is_file():
            return
        page += "index.html"
    try:
        data, kind, page = _get(opener, page)
    except FileNotFoundError:
        return
    if "json" in kind:
        for file in json.loads(data)["files"]:
            url = urllib.parse.urljoin(page, file["url"])
            yield Link(name=file["filename"], url=url, sha256=file.get("hashes", {}).get("sha256", ""))
        return
    anchors = _Anchors()
    anchors.feed(data.decode(errors="replace"))
    for target in anchors.found:
        url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(page, target))
        name = urllib.parse.unquote(url.rpartition("/")[2])
        yield Link(name=name, url=url, sha256=fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else "")


def _opener(settings: IndexSettings) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=settings.certificates or None)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if settings.proxy:
        handlers.append(urllib.request.ProxyHandler({"http": settings.proxy, "https": settings.proxy}))
    return urllib.request.build_opener(*handlers)


def _get(opener: urllib.request.OpenerDirector, url: str) -> tuple[bytes, str, str]:
    """Content, its type, and the address that gave it in the end. Raises FileNotFoundError for 404, ValueError."""
    parts = urllib.parse.urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(bare, headers={"Accept": _ACCEPT, "User-Agent": "codeworld-rl"})
    if parts.username:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            data = answer.read(_MAX_BYTES + 1)
            kind, final = str(answer.headers.get("Content-Type", "")), str(answer.geturl())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(bare) from error
        raise ValueError(f"{_host(url)} answers {error.code} {error.reason}") from error
    except OSError as error:
        raise ValueError(f"{_host(url)} cannot be reached: {error}") from error
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{_host(url)} sends more than {_MAX_BYTES >> 20} MiB")
    return data, kind, final


def _host(url: str) -> str:
    """For messages: without credentials."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or f"{parts.scheme}:{parts.path}"

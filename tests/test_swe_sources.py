"""Sources of repository images: hostile packages, git repositories, indexes, requirements. Nothing of a package runs on this host."""

import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from environments.swe.changes import to_tar
from environments.swe.images import tree as tree_module
from environments.swe.images.package_index import fetch_source_package
from environments.swe.images.requirements import Metadata, build_requirements, find_needs, has_build
from environments.swe.images.source import read_source, task_name
from environments.swe.images.tree import digest_of, read_git_head, read_source_package, text_of
from environments.swe.records import TreeChange

PYTHON = {
    "python_version": "3.11",
    "python_full_version": "3.11.7",
    "sys_platform": "linux",
    "os_name": "posix",
    "platform_system": "Linux",
}


def package(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """A source package of files (name and content) and other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            if not isinstance(member, tarfile.TarInfo):
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def names(tree: tuple[TreeChange, ...]) -> list[bytes]:
    return [change.path for change in tree]


# --- source packages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("/etc/passwd", b"x"), "leaves its folder"),
        (("p-1/../../x", b"x"), "leaves its folder"),
        (special("../p-1", tarfile.DIRTYPE), "leaves its folder"),
        (special("p-1/l", tarfile.SYMTYPE, "/etc/passwd"), "link out of"),
        (special("p-1/l", tarfile.SYMTYPE, "../../x"), "link out of"),
        (special("p-1/a/l", tarfile.SYMTYPE, "../../x"), "link out of"),
        (special("p-1/h", tarfile.LNKTYPE, "/etc/passwd"), "leaves its folder"),
        (special("p-1/h", tarfile.LNKTYPE, "p-1/none"), "no file of it"),
        (special("p-1/d", tarfile.CHRTYPE), "no plain file"),
        (special("p-1/b", tarfile.BLKTYPE), "no plain file"),
        (special("p-1/f", tarfile.FIFOTYPE), "no plain file"),
        (("q-1/x", b"x"), "one top folder"),
        (("p-1/ok/below", b"x"), "no folder"),
    ],
)
def test_hostile_packages_are_refused(member: tuple[str, bytes] | tarfile.TarInfo, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_source_package(package(("p-1/ok", b"x"), member))


def test_a_file_below_a_link_is_refused() -> None:
    with pytest.raises(ValueError, match="no folder"):
        read_source_package(package(("p-1/a/x", b"x"), special("p-1/l", tarfile.SYMTYPE, "a"), ("p-1/l/x", b"evil")))


def test_an_archive_that_swells_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="more than 1 MiB"):
        read_source_package(package(("p-1/zeros", bytes(2 << 20))))
    monkeypatch.setattr(tree_module, "MAX_FILES", 3)
    with pytest.raises(ValueError, match="or 3 files"):
        read_source_package(package(*((f"p-1/{n}", b"") for n in range(5))))


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", gzip.compress(b"no tar" * 100), package(("p-1/x", b"y" * 5000))[:-40], package()],
    ids=["nothing", "no gzip", "no tar", "cut off", "empty"],
)
def test_damaged_packages_are_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="source package"):
        read_source_package(data)


def test_a_package_is_read_without_what_builds_left_behind() -> None:
    tree = read_source_package(
        package(
            *(("p-1/a.py", b"1"), ("p-1/a.pyc", b"1"), ("p-1/__pycache__/a.cpython-311.pyc", b"1"), ("p-1/p.egg-info/SOURCES.txt", b"1")),
            *(("p-1/build/lib/a.py", b"1"), ("p-1/build/__init__.py", b"1"), ("p-1/.git/config", b"1"), ("p-1/dist/p-1.tar.gz", b"1")),
            *(special("p-1/link", tarfile.SYMTYPE, "a.py"), special("p-1/hard", tarfile.LNKTYPE, "p-1/a.py")),
        )
    )
    assert names(tree) == [b"a.py", b"build/__init__.py", b"hard", b"link"]
    assert {change.path: change.data for change in tree}[b"hard"] == b"1"
    with tarfile.open(fileobj=io.BytesIO(to_tar(tree, folder="top", uid=1000, mtime=5))) as tar:
        assert [(one.name, one.uid, one.mtime) for one in tar if not one.isdir()] == [
            (f"top/{change.path.decode()}", 1000, 5) for change in tree
        ]


# --- git ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "My repo"
    folder.mkdir()
    git(folder, "init", "-q")
    return folder


def test_head_is_read_as_it_was_committed(repository: Path, tmp_path: Path) -> None:
    """Attributes leave nothing out, filters do not run, what is not committed is not there."""
    marker = tmp_path / "ran"
    (repository / "tests").mkdir()
    (repository / "tests/test_a.py").write_text("def test(): pass\n")
    (repository / "run.sh").write_text("#!/bin/sh\n")
    (repository / "run.sh").chmod(0o755)
    Path(os.fsdecode(bytes(repository) + b"/odd \n\xff name.txt")).write_text("odd")
    (repository / "link").symlink_to("run.sh")
    (repository / ".gitattributes").write_text("tests export-ignore\n*.txt filter=evil\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "one")
    git(repository, "config", "filter.evil.smudge", f"touch {marker}")
    (repository / "later.py").write_text("x")
    commit, tree = read_git_head(repository)
    assert commit == git(repository, "rev-parse", "HEAD")
    assert names(tree) == [b".gitattributes", b"link", b"odd \n\xff name.txt", b"run.sh", b"tests/test_a.py"]
    assert [change.mode for change in tree] == [0o100644, 0o120000, 0o100644, 0o100755, 0o100644]
    assert not marker.exists()
    source = read_source(str(repository))
    assert (source.name, source.origin, source.is_git) == ("My-repo", "git:My repo", True)
    assert digest_of(source.tree) == digest_of(tree)


def test_folders_that_are_no_repository_are_told(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no git repository with a commit"):
        read_source(str(repository))
    with pytest.raises(ValueError, match="no git repository with a commit"):
        read_source(str(tmp_path))
    (repository / "below").mkdir()
    (repository / "below/x").write_text("x")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "one")
    with pytest.raises(ValueError, match="inside a git repository"):
        read_source(str(repository / "below"))


def test_a_link_out_of_a_repository_is_refused(repository: Path) -> None:
    (repository / "link").symlink_to("/etc/passwd")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "one")
    with pytest.raises(ValueError, match="link out of"):
        read_source(str(repository))


# --- indexes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile_sdist(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a source package, and the file that its setup.py would write."""
    marker, folder = tmp_path / "ran", tmp_path / "files"
    folder.mkdir()
    setup = f"open({str(marker)!r}, 'w')\nimport setuptools\nsetuptools.setup(name='cw-demo')\n"
    (folder / "cw_demo-1.0.tar.gz").write_bytes(package(("cw_demo-1.0/setup.py", setup.encode()), ("cw_demo-1.0/PKG-INFO", b"Name: x\n")))
    return folder, marker


@pytest.fixture
def pip_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets pip's configuration to these values and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)

    def set_to(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"PIP_{name.upper()}", value)

    yield set_to


def test_a_package_is_fetched_without_running_it(hostile_sdist: tuple[Path, Path], pip_settings: Callable[..., None]) -> None:
    folder, marker = hostile_sdist
    pip_settings(no_index="1", find_links=str(folder))
    source = read_source("pypi:cw.demo==1")
    assert names(source.tree) == [b"PKG-INFO", b"setup.py"]
    assert source.base_commit == f"sha256:{hashlib.sha256((folder / 'cw_demo-1.0.tar.gz').read_bytes()).hexdigest()}"
    assert not marker.exists()
    with pytest.raises(ValueError, match="no package 'cw-demo'"):
        read_source("pypi:cw-demo==2")


def test_an_index_of_files_is_read(hostile_sdist: tuple[Path, Path], pip_settings: Callable[..., None], tmp_path: Path) -> None:
    folder, _ = hostile_sdist
    page = tmp_path / "simple/cw-demo/index.html"
    page.parent.mkdir(parents=True)
    digest = hashlib.sha256((folder / "cw_demo-1.0.tar.gz").read_bytes()).hexdigest()
    pip_settings(index_url=(tmp_path / "simple").as_uri())
    page.write_text(f'<a href="../../files/cw_demo-1.0.tar.gz#sha256={digest}">x</a>')
    assert fetch_source_package("cw-demo", "1.0")[0] == "cw_demo-1.0.tar.gz"
    page.write_text(f'<a href="../../files/cw_demo-1.0.tar.gz#sha256={"0" * 64}">x</a>')
    with pytest.raises(ValueError, match="SHA-256 differs"):
        fetch_source_package("cw-demo", "1.0")
    with pytest.raises(ValueError, match=r"no source package \(.tar.gz\) of cw-demo 1.1"):
        fetch_source_package("cw-demo", "1.1")


def test_an_index_with_a_password_is_read_and_the_password_not_told(
    hostile_sdist: tuple[Path, Path], pip_settings: Callable[..., None]
) -> None:
    data = (hostile_sdist[0] / "cw_demo-1.0.tar.gz").read_bytes()
    seen: list[tuple[str, str | None]] = []

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            files = [{"filename": "cw_demo-1.0.tar.gz", "url": "/files/1", "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}]
            kind, body = {
                "/simple/cw-demo/": ("application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode()),
                "/files/1": ("application/gzip", data),
            }.get(self.path, ("", b""))
            self.send_response(200 if kind else 500)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        pip_settings(index_url=f"http://me:s3cret@127.0.0.1:{server.server_address[1]}/simple")
        assert fetch_source_package("cw-demo", "1.0") == ("cw_demo-1.0.tar.gz", data)
        assert seen[0] == ("/simple/cw-demo/", "Basic bWU6czNjcmV0")
        with pytest.raises(ValueError, match=r"127\.0\.0\.1 answers 500") as told:
            fetch_source_package("other", "1.0")
        assert "s3cret" not in str(told.value)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("source", ["pypi:toolz", "pypi:toolz>=1", "pypi:../x==1", "nowhere"])
def test_words_that_are_no_source_are_told(source: str) -> None:
    with pytest.raises(ValueError, match="source is"):
        read_source(source)


def test_names_are_fit_for_task_ids() -> None:
    assert (task_name("a.b c"), task_name("x_1")) == ("a-b-c", "x_1")
    with pytest.raises(ValueError, match="letters or digits"):
        task_name("...")


# --- requirements ---------------------------------------------------------------------------------------------------


def files(**texts: str) -> tuple[TreeChange, ...]:
    return tuple(TreeChange(path=name.replace("__", ".").encode(), mode=0o100644, data=text.encode()) for name, text in texts.items())


def test_what_tests_need_is_found_where_it_is_usually_written() -> None:
    tree = files(
        pyproject__toml='[build-system]\nrequires=["hatchling>=1", "tomli; python_version<\'3.11\'"]\nbuild-backend="hatchling.build"\n'
        '[dependency-groups]\ntest=["hypothesis>=6", {include-group="more"}]\nmore=["responses"]\n'
        '[tool.pytest.ini_options]\nasyncio_mode="auto"\naddopts="--cov=x -n 4"\n',
        tox__ini="[testenv]\ndeps =\n  py311: mock\n  -r other.txt\n  black\n",
    )
    metadata = Metadata(
        name="demo",
        requires=(
            "attrs>=22",
            "colorama; sys_platform=='win32'",
            "pyyaml; extra=='test'",
            "sphinx; extra=='docs'",
            "demo[x]; extra=='test'",
        ),
    )
    needs = find_needs(tree, metadata, python=PYTHON)
    assert build_requirements(tree, python=PYTHON) == ("hatchling>=1", "editables")
    assert needs.runtime == ("attrs>=22",)
    assert needs.tests == ("pyyaml", "hypothesis>=6", "responses", "mock", "pytest-asyncio")
    assert has_build(tree) and has_build(files(setup__py="")) and not has_build(files(setup__cfg="", pyproject__toml="[tool.x]\ny=1\n"))


def test_development_groups_stand_in_for_test_groups() -> None:
    tree = files(pyproject__toml='[tool.poetry.group.dev.dependencies]\npython="^3.9"\nfreezegun="^1"\nmypy="*"\n')
    assert find_needs(tree, None, python=PYTHON).tests == ("freezegun",)
    files_tree = (
        *tree,
        *files(**{"requirements-test__txt": "# tests\nmock==5.1 # pinned\n-e .\nhttps://example.org/x.whl\nx @ https://e.org/x.whl\n"}),
    )
    assert find_needs(files_tree, None, python=PYTHON).tests == ("mock==5.1",)


def test_a_damaged_pyproject_is_told() -> None:
    with pytest.raises(ValueError, match=r"pyproject.toml cannot be read"):
        build_requirements(files(pyproject__toml="[x"), python=PYTHON)
    assert text_of((), "pyproject.toml") == ""

"""The engine's API as this project uses it: blocking calls, the engine's failures as `ContainerError`. Owner of the docker library.

Nothing here waits for a program: what takes as long as a program likes goes over the sockets that `attach` and `exec_start` give.
"""

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from environments.containers.address import HOW_TO_START, engine_address
from environments.containers.base import ArchiveTooLarge, ContainerError, EngineUnavailable, ImageMissing

_SECONDS = 120.0
"""For one call: an engine that is that slow counts as failed."""
_CHUNK = 1 << 18


class Engine:
    """A connection. Safe for use by several threads."""

    def __init__(self, *, host: str = "", connections: int = 16) -> None:
        """`host` as in `containers.host`; `connections`: kept open between calls. Raises EngineUnavailable, ValueError."""
        self.address = engine_address(host)
        try:
            self._api = docker.APIClient(base_url=self.address, version="auto", timeout=_SECONDS, max_pool_size=connections)
        except (DockerException, OSError) as error:
            raise EngineUnavailable(f"no Docker engine answers at {self.address} ({_cause(error)}): {HOW_TO_START}") from error
        self._api.trust_env = not self.address.startswith("unix:")  # no proxy stands before a socket; to look for one takes long

    def close(self) -> None:
        """Close all connections."""
        self._api.close()

    def version(self) -> dict[str, Any]:
        """What the engine says of itself."""
        with _engine_errors("say its version"):
            return dict(self._api.version())

    def info(self) -> dict[str, Any]:
        """Storage, runtimes, control groups, security options."""
        with _engine_errors("describe itself"):
            return dict(self._api.info())

    # Containers

    def create(self, config: Mapping[str, Any]) -> str:
        """A container from the body of a create call; its id. Raises ImageMissing."""
        image = config["Image"]
        with _engine_errors(f"create a container of {image}"):
            try:
                return str(self._api.create_container_from_config(dict(config))["Id"])
            except ImageNotFound as error:
                raise self._missing(image) from error

    def attach(self, container: str) -> socket.socket:
        """Both ways to the main process of a container that has not started: frames from it, plain bytes to it."""
        with _engine_errors("attach to a container"):
            params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            return _take_socket(self._api.attach_socket(container, params=params))[0]

    def start(self, container: str) -> None:
        with _engine_errors("start a container"):
            self._api.start(container)

    def kill(self, container: str) -> None:
        """Kill all processes of a container; nothing when it has ended."""
        with _engine_errors("kill a container"), contextlib.suppress(NotFound):
            try:
                self._api.kill(container)
            except APIError as error:
                if error.status_code != 409:  # it is not running
                    raise

    def remove(self, container: str) -> None:
        """End a container and remove it with its volumes; nothing when it is gone or another removal is under way."""
        with _engine_errors("remove a container"), contextlib.suppress(NotFound):
            try:
                self._api.remove_container(container, v=True, force=True)
            except APIError as error:
                if error.status_code != 409:
                    raise

    def state(self, container: str) -> dict[str, Any]:
        """`State` of a container."""
        with _engine_errors("inspect a container"):
            return dict(self._api.inspect_container(container)["State"])

    # Commands beside the main process

    def exec_start(self, container: str, argv: Sequence[str], *, user: str) -> tuple[str, socket.socket, bytes]:
        """Id of the command, both ways to it, and what it has sent already."""
        with _engine_errors("run a command in a container"):
            created = self._api.exec_create(container, list(argv), stdin=True, user=user)["Id"]
            return (created, *_take_socket(self._api.exec_start(created, socket=True)))

    def exec_exit(self, command: str) -> int | None:
        """Exit code; None while it runs."""
        with _engine_errors("inspect a command"):
            code = self._api.exec_inspect(command)["ExitCode"]
            return None if code is None else int(code)

    # Files

    def archive(self, container: str, path: str, *, max_bytes: int) -> bytes:
        """See Container.archive."""
        data = bytearray()
        with _engine_errors(f"archive {path}"):
            try:
                chunks, _ = self._api.get_archive(container, path, chunk_size=_CHUNK)
            except NotFound as error:
                if "No such container" in str(error.explanation):
                    raise
                raise FileNotFoundError(f"the container has no {path}") from error
            with contextlib.closing(chunks):
                for chunk in chunks:
                    data += chunk
                    if len(data) > max_bytes:
                        raise ArchiveTooLarge(f"{path} is larger than {max_bytes >> 20} MiB as a tar")
        return bytes(data)

    def put(self, container: str, folder: str, tar: bytes) -> None:
        """See Container.put."""
        with _engine_errors(f"put files into {folder}"):
            self._api.put_archive(container, folder, tar)

    # Images

    def image(self, image: str) -> dict[str, Any]:
        """What the engine knows of an image. Raises ImageMissing."""
        with _engine_errors(f"inspect image {image}"):
            try:
                return dict(self._api.inspect_image(image))
            except ImageNotFound as error:
                raise self._missing(image) from error

    def import_layer(self, tar_path: str) -> str:
        """Id of a nameless image of one layer."""
        with _engine_errors(f"import {tar_path}"):
            answer = self._api.import_image_from_file(tar_path)
        last = answer.strip().splitlines()[-1] if answer.strip() else ""
        if '"status":"sha256:' not in last:
            raise ContainerError(f"the engine could not import {tar_path}: {last}")
        return last.partition('"status":"')[2].partition('"')[0]

    def commit(self, container: str, *, image: str, config: Mapping[str, Any]) -> str:
        """Name the state of a container's root; `config` wins over the container's own. Its id."""
        repository, tag = split_reference(image)
        with _engine_errors(f"make image {image}"):
            return str(self._api.commit(container, repository=repository, tag=tag, conf=dict(config))["Id"])

    def _missing(self, image: str) -> ImageMissing:
        return ImageMissing(
            f"the engine at {self.address} has no image {image!r}: make it (`rl swe image` makes those of repositories), "
            f"or get it with `docker pull {image}`"
        )


def split_reference(image: str) -> tuple[str, str]:
    """Repository and tag of a reference; `latest` when it names no tag."""
    repository, colon, tag = image.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (image, "latest")


@contextlib.contextmanager
def _engine_errors(act: str) -> Iterator[None]:
    """The library's exceptions as ContainerError; requests' are OSErrors. Our own pass through."""
    try:
        yield
    except (FileNotFoundError, ArchiveTooLarge, ContainerError, ImageMissing):
        raise
    except APIError as error:
        raise ContainerError(f"the engine could not {act}: {_cause(error)}") from error
    except (DockerException, OSError) as error:
        raise ContainerError(f"the engine could not {act}, the engine does not answer: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """What the engine says, or else the kernel: the libraries wrap its word several times."""
    text = str(error.explanation) if isinstance(error, APIError) and error.explanation else str(error)
    below: BaseException | None = error
    while below is not None and not isinstance(error, APIError):
        if isinstance(below, OSError) and below.strerror:
            text = below.strerror
        below = below.__cause__ or below.__context__
    return " ".join(text.split())[:500]


def _take_socket(raw: Any) -> tuple[socket.socket, bytes]:
    """A socket of our own out of the library's response, and what the library's buffer has read of it already."""
    raw._sock.setblocking(False)  # for the look into the buffer, which reads when it is empty
    buffered = raw._response.raw._fp.fp.peek()
    own: socket.socket = raw._sock.dup()
    raw._response.close()
    return own, bytes(buffered)

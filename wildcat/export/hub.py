"""Publish a model folder on the Hugging Face Hub, in one commit with its model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from wildcat.errors import ConfigError, RunError
from wildcat.models.hub import LOGIN, MODEL_FILES, TIMEOUT, hub_errors
from wildcat.models.manifest import MANIFEST
from wildcat.models.run import CONFIG
from wildcat.settings import config_text, read_config

CARD, EXAMPLE = "README.md", "example.jpg"
GENERATED = "<!-- Written by wildcat push. Without this line, it leaves your own text as it is. -->"


def push_model(
    folder: Path, repo: str, card: str, example: bytes | None = None, private: bool = False
) -> tuple[str, bool]:
    """Publish a model folder, in a new repository or as the next commit of one that holds a wildcat model.

    Uploaded are the files for prediction, without the state of the training and without local paths.

    Args:
        repo: "user/name".
        card: the text of README.md; it does not replace one that is not `GENERATED`.
        example: example.jpg, which the card shows.
        private: of a new repository.

    Returns:
        The address of the commit, and whether the card was written.

    Raises:
        ConfigError: not a name, or the hub does not accept the card.
        RunError: no token, or the hub refuses it or cannot be reached; or the repository is public where `private`, or
            holds something else.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"{repo} is no name of a model on the hub.", "Write user/name.")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, get_token  # noqa: PLC0415

    if get_token() is None:
        raise RunError("publishing needs a token of the hub, and there is none.", f"To use one, {LOGIN}.")
    content: dict[str, bytes | Path] = published_files(folder)
    if example is not None:
        content[EXAMPLE] = example
    api = HfApi()
    with hub_errors(repo):
        try:
            info = api.model_info(repo, timeout=TIMEOUT)
        except errors.RepositoryNotFoundError:
            api.create_repo(repo, private=private or None, exist_ok=True)
            info = api.model_info(repo, timeout=TIMEOUT)
        if private and not info.private:
            raise RunError(f"{repo} exists and is public.", "Leave out --private, or give another name.")
        names = {file.rfilename for file in info.siblings or ()}
        if MANIFEST not in names and (others := sorted(names - {CARD, ".gitattributes"})):
            raise RunError(f"{repo} holds no wildcat model, but {', '.join(others[:5])}.", "Give another name.")
        kept = CARD in names and GENERATED not in Path(api.hf_hub_download(repo, CARD)).read_text(encoding="utf-8")
        if not kept:
            content[CARD] = card.encode()
        stale = {name for name in names - set(content) if any(fnmatch(name, pattern) for pattern in MODEL_FILES)}
        added = [CommitOperationAdd(name, value) for name, value in content.items()]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*added]
        operations += [CommitOperationDelete(name) for name in stale]
        try:
            commit = api.create_commit(repo, operations, commit_message=f"Upload {folder.name} with wildcat push")
        except ValueError as error:
            if "README.md" not in str(error):
                raise
            reason = str(error).strip().split("\n")[-1].lstrip("- ")[:200]
            raise ConfigError(f"the hub does not accept the model card: {reason}", "Check --license.") from error
    return commit.commit_url, not kept


def published_files(folder: Path) -> dict[str, bytes | Path]:
    """The files of a model folder for prediction, by their names in the repository; without local paths."""
    found: dict[str, bytes | Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch(name, pattern) for pattern in MODEL_FILES):
            found[name] = path
            if path.name == MANIFEST:
                manifest = _without_paths(json.loads(path.read_text(encoding="utf-8-sig")))
                found[name] = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
            elif path.name == CONFIG:
                config = read_config(path)
                found[name] = config_text(replace(config, weights=Path(config.weights).name)).encode()
    return found


def _without_paths(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest whose paths of data and of other models are reduced to names."""
    clean = dict(manifest)
    if isinstance(data := clean.get("data"), Mapping):
        options = [option for option in data.get("options", ()) if not re.search(r"[/\\]", option)]
        clean["data"] = {**data, "source": "", "options": options}
    if "members" in clean:
        clean["members"] = [Path(member).name for member in clean["members"]]
    if "base" in clean:
        clean["base"] = Path(clean["base"]).name
    if "launch" in clean:
        clean["launch"] = ""
    return clean

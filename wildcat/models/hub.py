"""Models on the Hugging Face Hub: hf://user/name, or hf://user/name@revision for a branch, tag or commit.

The files of a model folder are downloaded into the hub's own cache: safetensors, JSON and YAML, nothing that is
unpickled. Private models need a token, from `hf auth login` or the environment variable HF_TOKEN; HF_ENDPOINT names
another server. A model that was loaded before is found without a connection.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from wildcat.errors import ConfigError, RunError, WildcatError
from wildcat.models.calibration import CALIBRATION
from wildcat.models.folder import BASE, BOUNDARIES, COMBINATION, SEGMENTER, VERIFIER
from wildcat.models.manifest import MANIFEST
from wildcat.models.run import CONFIG, METRICS, WEIGHTS

SCHEME = "hf://"
_FILES = (MANIFEST, CONFIG, WEIGHTS, METRICS, CALIBRATION, COMBINATION, SEGMENTER, BOUNDARIES, VERIFIER)
MODEL_FILES = tuple(f"{folder}{name}" for folder in ("", f"{BASE}/", "members/*/") for name in _FILES)  # as patterns
_NAME = re.compile(rf"{SCHEME}([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/({BASE}|members/\d+(?:/{BASE})?))?/?")
TIMEOUT = 30.0  # seconds for the first answer of the hub
CLIENTS = {"httpx", "httpx2", "requests", "hf_xet"}  # packages that talk to the hub, depending on the version
LOGIN = "log in with hf auth login, or set HF_TOKEN"


def is_hub(source: str | Path) -> bool:
    """Whether a model is named by an address of the hub.

    >>> is_hub("hf://user/name"), is_hub("runs/mine")
    (True, False)
    """
    return str(source).startswith(SCHEME)


def model_folder(source: str | Path) -> Path:
    """The folder of a model: `source` itself, or where a model of the hub has been downloaded to.

    Args:
        source: a folder, or hf://user/name[@revision]; of an ensemble, a refined model or a cascade also one of its
            runs, as hf://user/name/members/1 or hf://user/name/base.

    Raises:
        ConfigError: not an address of the hub's form.
        RunError: no such model or revision, not a wildcat model, no access, or the hub cannot be reached.
    """
    if not is_hub(source):
        return Path(source).expanduser()
    found = _NAME.fullmatch(str(source))
    if found is None:
        raise ConfigError(f"{source} is no model of the hub.", "Write hf://user/name, or hf://user/name@revision.")
    repo, revision, inner = found[1], found[2] and unquote(found[2]), found[3]
    with hub_errors(repo, revision):
        folder = _download(repo, revision)
    return folder / inner if inner else folder


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, errors, snapshot_download  # noqa: PLC0415  # slow

    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(MODEL_FILES)}
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
    except Exception as error:
        answer = error.response if isinstance(error, errors.HfHubHTTPError) else None
        if isinstance(error, errors.HFValidationError) or (answer is not None and answer.status_code < 500):
            raise
        try:  # loaded before
            return Path(snapshot_download(repo, local_files_only=True, **options))
        except errors.LocalEntryNotFoundError:
            raise error from None
    if MANIFEST not in {file.rfilename for file in info.siblings or ()}:  # before the weights of another library
        raise RunError(
            f"{repo} is not a wildcat model: it has no {MANIFEST}.", "wildcat push publishes a model folder."
        )
    return Path(snapshot_download(repo, **options))


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client of the hub raises into one sentence, without addresses: those of uploads are signed."""
    from huggingface_hub import constants, errors  # noqa: PLC0415  # slow

    parts = urlsplit(constants.ENDPOINT)
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings about retries name addresses
    try:
        yield
    except WildcatError:
        raise
    except errors.GatedRepoError as error:
        raise RunError(f"{repo} is gated.", f"Accept its terms on {host}, then {LOGIN}.") from error
    except errors.RepositoryNotFoundError as error:
        raise RunError(
            f"there is no model {repo} on {host}, or it is private.", f"Check the name; for a private model {LOGIN}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RunError(f"{repo} has no revision {revision!r}.", "Give a branch, a tag or a commit.") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{repo} cannot be the name of a model.", str(error).split("\n")[0][:200]) from error
    except Exception as error:
        causes = [error, *_causes(error)]
        answered = [one for one in causes if isinstance(one, errors.HfHubHTTPError) and one.response is not None]
        if answered:
            raise _refused(answered[0], repo, host or "") from error
        modules = {type(one).__module__.partition(".")[0] for one in causes}
        lost = any(isinstance(one, (ConnectionError, errors.EntryNotFoundError)) for one in causes)  # or not cached
        if lost or not modules.isdisjoint(CLIENTS):
            raise RunError(
                f"{host} cannot be reached.",
                "Check the connection, and HF_HUB_OFFLINE and HF_ENDPOINT if they are set.",
            ) from error
        if isinstance(error, OSError):
            raise RunError(
                f"the files of {repo} cannot be stored: {error.strerror or error}.",
                "Free space, or set HF_HOME to another folder.",
            ) from error
        if isinstance(error, RuntimeError):  # of hf_xet, the native code of large transfers
            raise RunError(
                f"a transfer of {repo} failed.", "Try again, with HF_HUB_DISABLE_XET=1 if it fails again."
            ) from error
        raise
    finally:
        logger.setLevel(level)


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or error.__context__) is not None:
        yield (error := cause)


def _refused(error: BaseException, repo: str, host: str) -> RunError:
    status = error.response.status_code  # type: ignore[attr-defined]
    said = str(getattr(error, "server_message", None) or "").strip().split("\n")[0][:200].rstrip(".")
    answer = f"{host} answered {status}{f' ({said})' if said else ''}"
    if status == 401:
        return RunError(f"{answer}: it refused the token for {repo}.", f"To use another token, {LOGIN}.")
    if status == 403:
        return RunError(f"{answer}: the token does not give access to {repo}.", f"To use another token, {LOGIN}.")
    return RunError(f"{answer} for {repo}.", "Try again later.")

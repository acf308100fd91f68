"""The Hugging Face Hub: weights from it, checked against their digests, and folders to it."""

import errno
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from timm.models._hub import HF_WEIGHTS_NAME, _get_safe_alternatives  # no public names

from ..errors import UserError, first_line
from .shipped import digest

__all__ = ["HubError", "MissingFileError", "address", "check_name", "fetch", "problem", "quiet", "upload"]

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
COPY = "load a copy with local-dir:/path"

_verified: set[tuple[str, int, int, int]] = set()  # in this process


class HubError(UserError, RuntimeError):
    """What went wrong with the Hub and what to do, in one line."""


class MissingFileError(HubError):
    """The repository is there, and has no such file."""


def fetch(
    repo_id: str,
    filename: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Weights of a repository in huggingface_hub's cache, downloaded if need be, with the right digest.

    Args:
        repo_id: organisation/name.
        filename: by default model.safetensors, or pytorch_model.bin where that is missing. A .bin
            that is named gives way to its .safetensors twin too: the choices are timm's, which
            reads the same file from the cache afterwards.
        revision: branch, tag or commit; by default the main branch.
        cache_dir: of huggingface_hub; by default its own.

    Returns:
        The file in the cache.

    Raises:
        HubError: the file cannot be had, or its digest is not the one that the Hub has recorded. Such
            a file is taken out of the cache, and the next call downloads it anew.
    """
    name = filename or HF_WEIGHTS_NAME
    candidates = [*_get_safe_alternatives(name), name]
    options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "library_name": "lambdaresnet-zoo"}
    unreachable: Exception | None = None
    for candidate in candidates:
        try:
            # If the Hub cannot be reached for one file, the other may still be in the cache.
            path = hf_hub_download(repo_id, candidate, local_files_only=unreachable is not None, **options)
        except LocalEntryNotFoundError as error:
            unreachable = unreachable or error
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise HubError(problem(error, repo_id, revision)) from error
        else:
            _verify(Path(path), repo_id, candidate)
            return Path(path)
    if unreachable is not None:
        raise HubError(problem(unreachable, repo_id, revision)) from unreachable
    raise MissingFileError(f"repository '{repo_id}'{_at(revision)} has no {' and no '.join(candidates)}")


def check_name(repo_id: str) -> None:
    """Check the full name of a repository, organisation/name.

    Raises:
        HubError: it is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(problem(error, repo_id)) from error
    if "/" not in repo_id:
        raise HubError(problem(HFValidationError(), repo_id))


def address(repo_id: str) -> str:
    """The page of a repository."""
    return f"{constants.ENDPOINT}/{repo_id}"


def upload(
    folder: str | Path, repo_id: str, private: bool = False, token: str | None = None, message: str | None = None
) -> str:
    """Upload the files of a folder as one commit to a repository, which is created if need be.

    Args:
        folder: what it holds is uploaded; what the repository has besides stays.
        repo_id: organisation/name.
        private: create it private; one that exists must be private already.
        token: by default the one that huggingface_hub has stored, or HF_TOKEN.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        HubError: it cannot be done; or ``private``, and the repository is public.
    """
    api = HfApi(token=token, library_name="lambdaresnet-zoo")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        public = private and not api.model_info(repo_id).private
        if not public:
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message).commit_url)
    except Exception as error:
        raise HubError(problem(error, repo_id)) from error
    raise HubError(
        f"repository '{repo_id}' exists and is public: nothing was uploaded; make it private, or name another"
    )


def problem(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """What an error of huggingface_hub means for a repository, and what to do, in one line.

    Other errors give the first line of their message.
    """
    repo = f"repository '{repo_id}'"
    if isinstance(error, HubError):
        return str(error)
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the Hub could not be asked
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo} is not in the cache, and HF_HUB_OFFLINE is set: connect once without it, or {COPY}"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{repo} is not in the cache: connect once, or {COPY}"
    if isinstance(error, HFValidationError):
        return f"'{repo_id}' is no name of a repository: it must be organisation/name"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: ask for access at {address(repo_id)}, then {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo} does not exist or is private: check its name; for a private one {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision{_at(revision) or ' of that name'}: name a branch, a tag or a commit of it"
    if isinstance(error, EntryNotFoundError):
        return f"{repo}{_at(revision)} has no {_file(error) or 'such file'}"
    if isinstance(error, HfHubHTTPError):
        return f"{repo}: {_refusal(error)}"
    if isinstance(error, LocalTokenNotFoundError):
        return f"{repo}: no token is stored: {LOG_IN}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{repo}: no space is left in {constants.HF_HUB_CACHE}: make room, or set HF_HOME to another disk"
    # The http client is httpx or httpx2, by the version of huggingface_hub, and no dependency of ours.
    from_client = type(error).__module__.partition(".")[0] in ("httpx", "httpx2")
    if from_client or isinstance(error, (ConnectionError, TimeoutError)):
        return f"{repo}: the connection to {constants.ENDPOINT} failed or broke off: try again, or {COPY}"
    if "Consistency check failed" in str(error):
        return f"{repo}: a file did not arrive whole: try again"
    if isinstance(error, OSError) and error.strerror:
        return f"{repo}: {error.filename}: {error.strerror}" if error.filename else f"{repo}: {error.strerror}"
    return first_line(error)


def _at(revision: str | None) -> str:
    return f" '{revision}'" if revision else ""


def _file(error: Exception) -> str:
    """The file that a request was for."""
    address = getattr(getattr(error, "response", None), "url", "")
    found = re.search(r"/resolve/[^/]+/([^?]+)", str(address))
    return found[1] if found else ""


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status >= 500:
        return f"the Hub has an error of its own (status {status}): try again later"
    if status == 401:
        return f"the Hub does not accept the token, or needs one: {LOG_IN}"
    if status == 403:
        return f"the token does not permit this (status 403): {LOG_IN} with one that does"
    if status == 429:
        return "too many requests (status 429): try again later"
    reason = error.server_message or first_line(error)
    return f"the Hub refuses (status {status}): {first_line(Exception(reason))}"


def _verify(path: Path, repo_id: str, name: str) -> None:
    """Check a file of the cache against the digest that its blob is named by.

    Raises:
        HubError: it is another; the file has been taken out of the cache.
    """
    if not path.is_symlink():
        return  # a cache on a disk without symbolic links: no digest is recorded
    link = path.parent / os.readlink(path)
    known = link.name
    status = path.stat()
    key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if key in _verified:
        return
    if re.fullmatch("[0-9a-f]{64}", known):
        kind, found = "sha256", digest(path)
    elif re.fullmatch("[0-9a-f]{40}", known):  # of a file that is in git itself
        kind, found = "git blob id", digest(path, hashlib.sha1(b"blob %d\0" % status.st_size, usedforsecurity=False))
    else:
        return
    if found != known:
        blob = path.resolve()  # the link can lead to another, into a store that caches share
        with suppress(OSError):  # a cache that cannot be written
            for part in (path, link, blob):
                part.unlink(missing_ok=True)
        advice = f"remove {blob} and try again" if blob.exists() else "it was removed from the cache: try again"
        raise HubError(f"repository '{repo_id}': {name} is damaged: its {kind} is {found}, not {known}; {advice}")
    _verified.add(key)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep huggingface_hub's notices off stderr, and its progress bars if that is no terminal.

    What the user has asked for by HF_HUB_VERBOSITY, HF_DEBUG or HF_HUB_DISABLE_PROGRESS_BARS stays.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    if not os.environ.get("HF_HUB_VERBOSITY") and not constants.HF_DEBUG:
        logger.setLevel(logging.ERROR)
    hidden = (
        constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled() and not sys.stderr.isatty()
    )
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hidden:
            enable_progress_bars()

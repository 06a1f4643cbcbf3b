"""Fetch the images of Label Studio's tasks, from its server only and with its access token."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import threading
import time
from typing import Any
from urllib.parse import SplitResult, urljoin

import requests

from wildcat.config import Limits
from wildcat.data.images import shown
from wildcat.errors import ConfigError
from wildcat.serve.middleware import DEFAULT_PORTS, split_url
from wildcat.serve.uploads import RequestError

log = logging.getLogger(__name__)

TOKEN = "LABEL_STUDIO_API_KEY"  # noqa: S105  # the environment variable, as in Label Studio's SDK
TOKEN_HINT = f"Create a personal access token in Label Studio under Account & Settings, and set {TOKEN} to it."
CLOUD = ("s3", "gs", "azure-blob")  # schemes of source storages, whose files Label Studio passes on
CONNECT_SECONDS = 5.0
MOST_REQUESTS = 4  # for one image: redirects, and one to renew an access token


class TokenRefused(RequestError):
    """Label Studio refuses the token."""


class LabelStudio:
    """A Label Studio server, from which the images of tasks are fetched.

    Args:
        url: address of the server.
        token: a personal access token (a JWT, which is exchanged for short-lived access tokens), or a legacy token.
        limits: `timeout` and `max_mb` apply to an image.

    Raises:
        ConfigError: no address of a server, or no token.
    """

    def __init__(self, url: str, token: str, limits: Limits) -> None:
        parts = split_url(url)
        known = parts.scheme in DEFAULT_PORTS and parts.hostname and origin_of(parts)[2] is not None
        if not known or parts.username is not None or parts.query:
            raise ConfigError(
                f"--label-studio {shown(parts._replace(netloc=parts.netloc.rpartition('@')[2], query='').geturl())} is "
                "no address of a server.",
                f"Give one such as http://localhost:8080, and the token in the environment variable {TOKEN}.",
            )
        if not re.fullmatch(r"[!-~]+", token):
            problem = "holds characters that no token has" if token else "is not set"
            raise ConfigError(f"the environment variable {TOKEN} {problem}.", TOKEN_HINT)
        self.url, self.root, self.origin = url.rstrip("/"), f"{parts.scheme}://{parts.netloc}", origin_of(parts)
        self.token, self.limits = token, limits
        self.personal = token.count(".") == 2
        self.access = ""  # the access token that the server gave for a personal token
        self.lock = threading.Lock()

    def check(self) -> None:
        """Check that the server accepts the token.

        Raises:
            TokenRefused: it does not.
            RequestError: it does not answer (504), or not as Label Studio does (502).
        """
        self._read(f"{self.url}/api/current-user/whoami")

    def fetch(self, address: str, task: int) -> bytes:
        """The image file at an address in the data of a task.

        Raises:
            RequestError: an address on another server, or a redirect to one (422), more than `Limits.max_mb` (413), no
                answer within `Limits.timeout` (504), or any other answer than the file (502).
        """
        parts = split_url(address)
        if parts.scheme in CLOUD:
            location = base64.urlsafe_b64encode(address.encode(errors="replace")).decode()
            return self._read(f"{self.url}/tasks/{task}/presign/?fileuri={location}")
        if (parts.scheme or parts.netloc) and not self._is_own(parts):
            raise self._elsewhere(
                "the image is at",
                parts,
                "Import it into Label Studio, or give --label-studio the address that the tasks have.",
            )
        return self._read(self._own(parts))

    def _elsewhere(self, words: str, parts: SplitResult, hint: str) -> RequestError:
        where = shown(f"{parts.scheme}://{parts.hostname or ''}"[:100])  # the rest may hold a credential
        return RequestError(422, f"{words} {where}, but images are fetched from {self.root} only.", hint)

    def _is_own(self, parts: SplitResult) -> bool:
        return parts.username is None and origin_of(parts) == self.origin

    def _own(self, parts: SplitResult) -> str:
        """The path and the query of a URL on this server, whatever its host is."""
        return f"{self.root}/{parts.path.removeprefix('/')}{f'?{parts.query}' if parts.query else ''}"

    def _read(self, url: str) -> bytes:
        """The content at a URL of this server; redirects within it are followed."""
        start, renew = time.monotonic(), False
        try:
            for _ in range(MOST_REQUESTS):
                with self._request("get", url, self._authorisation(start, renew), start) as response:
                    if response.is_redirect:
                        parts = split_url(urljoin(url, response.headers["location"]))
                        if not self._is_own(parts):
                            raise self._elsewhere(
                                "Label Studio redirects to the image at",
                                parts,
                                "Switch off the pre-signed URLs of the storage in Label Studio.",
                            )
                        url = self._own(parts)
                    elif response.status_code == 401 and self.personal and not renew:
                        renew = True  # the access token may have expired
                    else:
                        self._check_status(response, url)
                        return self._content(response, start)
        except (requests.RequestException, OSError, ValueError) as error:  # ValueError: a redirect to no valid URL
            if isinstance(error, (requests.Timeout, TimeoutError)) or self._left(start) <= 0:
                raise self.timed_out() from error
            raise RequestError(
                502,
                f"Label Studio at {self.url} cannot be reached ({type(error).__name__}).",
                "Check that it runs, and the address after --label-studio.",
            ) from error
        raise RequestError(
            502, f"Label Studio redirects {_path(url)} again and again.", "Check the address after --label-studio."
        )

    def timed_out(self) -> RequestError:
        return RequestError(
            504,
            f"Label Studio at {self.url} did not answer within {self.limits.timeout:g} seconds.",
            "Check that it runs, or raise --timeout.",
        )

    def _left(self, start: float) -> float:
        return start + self.limits.timeout - time.monotonic()

    def _request(self, method: str, url: str, authorisation: str, start: float, body: Any = None) -> requests.Response:
        def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if authorisation:
                request.headers["Authorization"] = authorisation
            return request

        left = max(0.01, self._left(start))
        # `auth`, not `headers`: requests would replace that header by the entry of the host in a .netrc file.
        return requests.request(
            method,
            url,
            auth=authorise,
            json=body,
            timeout=(min(CONNECT_SECONDS, left), left),
            stream=True,
            allow_redirects=False,
        )

    def _authorisation(self, start: float, renew: bool) -> str:
        """The header Authorization; a personal token is first exchanged for an access token, or again to `renew` it."""
        if not self.personal:
            return f"Token {self.token}"
        with self.lock:
            if renew or not self.access:
                url = f"{self.url}/api/token/refresh/"
                with self._request("post", url, "", start, {"refresh": self.token}) as response:
                    self._check_status(response, url)
                    try:
                        self.access = json.loads(self._content(response, start))["access"]
                    except (ValueError, KeyError, TypeError) as error:
                        raise RequestError(
                            502, f"{self.url} is no Label Studio server.", "Check the address after --label-studio."
                        ) from error
            return f"Bearer {self.access}"

    def _check_status(self, response: requests.Response, url: str) -> None:
        status = response.status_code
        if status == 401:
            message = f"Label Studio at {self.url} refuses the token in {TOKEN} (status 401 for {_path(url)})."
            raise TokenRefused(502, message, TOKEN_HINT)
        if status != 200:
            raise RequestError(
                502,
                f"Label Studio at {self.url} returned status {status} for {_path(url)}.",
                "Check that the task's image opens in Label Studio, for the user of the token.",
            )

    def _content(self, response: requests.Response, start: float) -> bytes:
        most, content = int(self.limits.max_mb * 1e6), bytearray()
        for part in response.iter_content(1024):  # blocks until it is full: a slow server is noticed late
            content += part
            if len(content) > most:
                raise RequestError(
                    413, f"the image is larger than {self.limits.max_mb:g} MB.", "Shrink it, or raise --max-mb."
                )
            if self._left(start) <= 0:
                raise TimeoutError
        return bytes(content)


def origin_of(parts: SplitResult) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL; port None if it has no valid one."""
    try:
        return parts.scheme, parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return parts.scheme, parts.hostname or "", None


def _path(url: str) -> str:
    """The path of a URL for a message, in Unicode: its query may hold a credential."""
    return shown(split_url(url).path).encode(errors="backslashreplace").decode()


def connect(url: str, limits: Limits) -> LabelStudio:
    """The server at `url`, with the token in the environment; one that does not answer yet is logged.

    Raises:
        ConfigError: no address of a server, or no token.
        TokenRefused: the server refuses the token.
    """
    server = LabelStudio(url, os.environ.get(TOKEN, "").strip(), limits)
    try:
        server.check()
    except TokenRefused:
        raise
    except RequestError as error:
        log.warning("%s", error.one_line)
    return server

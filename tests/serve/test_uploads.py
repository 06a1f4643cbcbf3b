"""Hundreds of malformed uploads: each gets status 4xx and one sentence, and the next valid one is predicted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from tests.serve.conftest import Connect, encoded, image
from tests.serve.malformed import bad_types, form, malformed_bodies, png_bomb
from wildcat.serve import Limits

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Pillow warns before the service refuses
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

LIMITS = Limits(max_mb=0.2, max_pixels=100_000)


def check(name: str, response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500, (name, response.status_code, response.text)
    assert set(response.json()) == {"detail", "hint"}, name
    assert 10 < len(response.json()["detail"]) < 1000, name


async def post(
    client: httpx.AsyncClient, body: bytes, kind: str = "multipart/form-data; boundary=xyz"
) -> httpx.Response:
    return await client.post("/predict", content=body, headers={"content-type": kind.encode("latin-1")})


def test_hundreds_of_malformed_requests_are_refused_and_the_service_survives(connect: Connect) -> None:
    bodies = list(malformed_bodies())
    assert len(bodies) + len(list(bad_types())) >= 200

    async def all_of_them() -> None:
        async with connect(LIMITS) as client:
            before = await post(client, form(encoded(image())))
            assert before.status_code == 200
            for name, body in bodies:
                check(name, await post(client, body))
            for name, kind in bad_types():
                check(name, await post(client, form(encoded(image())), kind))
            after = await post(client, form(encoded(image())))
            assert after.json() == before.json()
            assert (await client.get("/health")).json()["requests"] == 0

    asyncio.run(all_of_them())


def test_flipped_bits_never_break_the_service(connect: Connect) -> None:
    """An image that is still readable is predicted; others are refused."""
    rng = np.random.default_rng(7)

    async def flip() -> set[int]:
        statuses = set()
        async with connect(LIMITS) as client:
            for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
                whole = form(encoded(image(2, (24, 16)), kind))
                for _ in range(25):
                    body = bytearray(whole)
                    for place in rng.integers(0, min(len(body), 400), 3):
                        body[place] ^= 1 << int(rng.integers(8))
                    response = await post(client, bytes(body))
                    if response.status_code != 200:
                        check(kind, response)
                    statuses.add(response.status_code)
        return statuses

    assert {200, 415, 422} <= asyncio.run(flip())


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (form(png_bomb(10_000, 10_000)), 413, "100,000,000 pixels"),
        (form(png_bomb(65_535, 65_535)), 413, "pixels"),
        (form(bytes(250_000)), 413, "0.2 MB"),
        (form(b"hello"), 415, "no image"),
        (form(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 415, "no image"),
        (form(encoded(image(), "JPEG")[:-900]), 422, "truncated"),
        (form(b""), 422, "empty"),
        (form(b"/etc/passwd", name=None), 422, "not one file"),
        (form(encoded(image()), field="picture"), 422, "'picture'"),
    ],
)
def test_the_message_names_the_fault(connect: Connect, body: bytes, status: int, words: str) -> None:
    async def once() -> httpx.Response:
        async with connect(LIMITS) as client:
            return await post(client, body)

    response = asyncio.run(once())
    assert response.status_code == status
    assert words in response.json()["detail"]


def test_a_body_without_a_length_is_limited_while_it_arrives(connect: Connect) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield form(b"").partition(b"\r\n--xyz--")[0]
        while True:
            sent += 10_000
            yield bytes(10_000)

    async def once() -> httpx.Response:
        async with connect(LIMITS) as client:
            headers = {"content-type": "multipart/form-data; boundary=xyz"}
            return await client.post("/predict", content=endless(), headers=headers)

    response = asyncio.run(once())
    assert response.status_code == 413
    assert sent < 10 * LIMITS.max_mb * 1e6, "draining after the error is limited as well"


def test_a_body_that_announces_too_many_bytes_is_refused(connect: Connect) -> None:
    async def once() -> httpx.Response:
        async with connect(LIMITS) as client:
            return await client.post("/predict", content=b"", headers={"content-length": "9" * 40})

    assert asyncio.run(once()).status_code == 413

"""The example feature: delete this file with it."""

import pytest
from httpx import AsyncClient


async def test_create_then_read(client: AsyncClient) -> None:
    created = await client.post("/items", json={"name": "lamp", "quantity": 3})

    assert created.status_code == 201
    read = await client.get(f"/items/{created.json()['id']}")
    assert read.json() == created.json()
    assert (read.json()["name"], read.json()["quantity"]) == ("lamp", 3)


async def test_pagination(client: AsyncClient) -> None:
    for name in ("lamp", "chair", "table"):
        await client.post("/items", json={"name": name})

    first = (await client.get("/items", params={"limit": 2})).json()
    second = (await client.get("/items", params={"limit": 2, "after": first["next"]})).json()

    names = [[item["name"] for item in page["items"]] for page in (first, second)]
    assert names == [["lamp", "chair"], ["table"]]
    assert second["next"] is None


async def test_patch_changes_only_the_given_field(client: AsyncClient) -> None:
    item = (await client.post("/items", json={"name": "lamp", "quantity": 3})).json()

    changed = (await client.patch(f"/items/{item['id']}", json={"quantity": 2})).json()

    assert (changed["name"], changed["quantity"]) == ("lamp", 2)


async def test_delete(client: AsyncClient) -> None:
    item = (await client.post("/items", json={"name": "lamp"})).json()

    assert (await client.delete(f"/items/{item['id']}")).status_code == 204
    assert (await client.get(f"/items/{item['id']}")).status_code == 404


async def test_duplicate_name_is_409(client: AsyncClient) -> None:
    await client.post("/items", json={"name": "lamp"})

    response = await client.post("/items", json={"name": "lamp"})

    assert response.status_code == 409
    assert response.json()["detail"] == "a row with the same value exists"


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "nul \x00"},
        {"name": None},
        {"name": "lamp", "quantity": 2**63},
        {"name": "lamp", "quantity": "3"},
        {"name": "lamp", "quantity": True},
        {"name": "lamp", "colour": "red"},
    ],
)
async def test_invalid_item_is_422(client: AsyncClient, body: dict[str, object]) -> None:
    assert (await client.post("/items", json=body)).status_code == 422
    assert (await client.get("/items")).json()["items"] == []


async def test_patch_with_null_is_422(client: AsyncClient) -> None:
    item = (await client.post("/items", json={"name": "lamp"})).json()

    assert (await client.patch(f"/items/{item['id']}", json={"name": None})).status_code == 422


async def test_body_that_is_not_utf_8_is_422(client: AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}

    assert (await client.post("/items", content=b"\xff", headers=headers)).status_code == 422

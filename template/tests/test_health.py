"""The service tells its platform how it is."""

from httpx import AsyncClient


async def test_livez(client: AsyncClient) -> None:
    assert (await client.get("/livez")).status_code == 200


async def test_readyz_when_every_database_is_up(client: AsyncClient) -> None:
    response = await client.get("/readyz")

    assert response.status_code == 200
    assert {each["status"] for each in response.json()["databases"].values()} == {"up"}

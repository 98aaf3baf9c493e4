"""The adviser's arithmetic, and a pool that behaves as it predicts."""

import asyncio
import random
from heapq import heappop, heappush
from math import factorial, inf, sqrt

import pytest
from dbkit.telemetry.sizing import Load, advise, mean_wait, probability_of_wait, variation_of, wait
from hypothesis import given
from hypothesis import strategies as st
from pool_fakes import FakeServer, give, in_virtual_time, take

LOAD = Load(rate=200, hold=0.02)


def test_erlang_c_is_what_the_tables_say() -> None:
    # For 4 Erlang.
    assert [round(probability_of_wait(4, size), 4) for size in (5, 6, 8)] == [
        0.5541,
        0.2848,
        0.0590,
    ]


@given(busy=st.floats(0.01, 60), size=st.integers(1, 80))
def test_the_recursion_is_the_sum_of_the_textbook(busy: float, size: int) -> None:
    if busy >= size * 0.999:
        return
    queued = busy**size / factorial(size) * size / (size - busy)
    textbook = queued / (sum(busy**n / factorial(n) for n in range(size)) + queued)

    assert probability_of_wait(busy, size) == pytest.approx(textbook, rel=1e-9)


@given(busy=st.floats(0, 900), size=st.integers(1, 1000))
def test_a_larger_pool_never_waits_for_longer(busy: float, size: int) -> None:
    load = Load(rate=busy / 0.02, hold=0.02)

    assert 0 <= probability_of_wait(busy, size + 1) <= probability_of_wait(busy, size) <= 1
    assert wait(load, size + 1, 0.99) <= wait(load, size, 0.99)


def test_a_queue_that_grows_for_ever_has_no_wait_that_is_kept() -> None:
    assert mean_wait(LOAD, 4) == wait(LOAD, 4, 0.99) == inf
    assert mean_wait(LOAD, 5) < inf


def test_advice_is_the_least_size_that_keeps_the_target() -> None:
    advice = advise(LOAD, target=0.05)

    assert (advice.floor, advice.size, advice.rule) == (5, 6, 5)
    assert wait(LOAD, 5, 0.99) > 0.05 >= wait(LOAD, 6, 0.99)


def test_more_than_a_pool_can_carry_has_no_size() -> None:
    assert advise(Load(rate=2000, hold=1)).size is None


def test_routes_of_different_speed_vary_more_than_one() -> None:
    assert variation_of([(10, 0.02)]) == pytest.approx(1)
    assert variation_of([(99, 0.01), (1, 1.0)]) == pytest.approx(50, rel=0.01)
    assert variation_of([]) == 1


@pytest.mark.parametrize("variation", [0, 1, 4])
@pytest.mark.parametrize("size", [4, 6])
def test_a_queue_waits_for_as_long_as_is_predicted(size: int, variation: float) -> None:
    load = Load(rate=size * 40, hold=0.02, variation=variation)

    waits = simulate(draw(load, 100_000), size)

    late = sorted(waits)[int(0.99 * len(waits))]
    assert sum(waits) / len(waits) == pytest.approx(mean_wait(load, size), rel=0.25)
    assert late == pytest.approx(wait(load, size, 0.99), rel=0.25)


@in_virtual_time
async def test_the_pool_is_that_queue() -> None:
    pool = FakeServer().pool(pool_size=4, queue_target=0, pool_timeout=300, pool_recycle=inf)
    await pool.warm(4, 1)
    arrivals = draw(Load(rate=160, hold=0.02), 1_000)
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def caller(arrival: float, hold: float) -> float:
        await asyncio.sleep(arrival)
        connection = await take(pool)
        waited = loop.time() - start - arrival
        await asyncio.sleep(hold)
        await give(connection)
        return waited

    waits = await asyncio.gather(*(caller(*each) for each in arrivals))

    assert waits == pytest.approx(simulate(arrivals, 4), abs=1e-6)


def draw(load: Load, count: int) -> list[tuple[float, float]]:
    """Draw when callers come, and for how long they hold: the same at each run."""
    chance = random.Random(1)  # noqa: S311 -- no secret
    now, drawn = 0.0, list[tuple[float, float]]()
    for _ in range(count):
        now += chance.expovariate(load.rate)
        drawn.append((now, hold_time(load, chance)))
    return drawn


def simulate(arrivals: list[tuple[float, float]], size: int) -> list[float]:
    """Return the waits of callers that are served in the order in which they come."""
    free, waits = [0.0] * size, list[float]()
    for arrival, hold in arrivals:
        begins = max(heappop(free), arrival)
        waits.append(begins - arrival)
        heappush(free, begins + hold)
    return waits


def hold_time(load: Load, chance: random.Random) -> float:
    """Draw from a distribution with the mean and the variation of a load."""
    if load.variation == 0:
        return load.hold
    if load.variation == 1:
        return chance.expovariate(1 / load.hold)
    # Two exponential ones, each with half of the work.
    share = (1 - sqrt((load.variation - 1) / (load.variation + 1))) / 2
    share = share if chance.random() < share else 1 - share
    return chance.expovariate(2 * share / load.hold)

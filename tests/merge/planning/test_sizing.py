import pytest

from merge.planning.sizing import MEASURED_BYTES, PIECE_ELEMENTS, Demand, seconds, sizes

MIB = 1 << 20


@pytest.mark.parametrize("models", [1, 4, 33])
@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("budget", [256 * MIB, 1024 * MIB, 65536 * MIB])
@pytest.mark.parametrize("whole", [1, 5_000_000])
def test_what_is_held_stays_under_the_budget(models: int, threads: int, budget: int, whole: int) -> None:
    demand = Demand(models, 4, whole)
    fitted = sizes(demand, threads, budget)
    if fitted is None:
        assert demand.least_budget > budget
        return
    held = fitted.threads * fitted.block * demand.entry_bytes
    assert held <= fitted.peak_bytes <= budget
    assert 1 <= fitted.threads <= threads
    assert fitted.block >= whole


def test_elementwise_blocks_are_whole_pieces() -> None:
    fitted = sizes(Demand(4, 4), 2, 100 * MIB)
    assert fitted is not None
    assert fitted.block % PIECE_ELEMENTS == 0


def test_the_needed_budget_is_enough_and_nothing_less_is() -> None:
    demand = Demand(9, 8, 3_000_000)
    assert sizes(demand, 4, demand.least_budget) is not None
    assert sizes(demand, 4, demand.least_budget - 1) is None


@pytest.mark.parametrize("workspace", [0, 8, 400])
def test_a_declared_workspace_is_part_of_what_is_held(workspace: int) -> None:
    demand = Demand(4, 4, 3_000_000, workspace)
    fitted = sizes(demand, 4, demand.least_budget)
    assert fitted is not None
    assert fitted.peak_bytes >= 3_000_000 * (workspace + 4 * 4 * 2)
    assert sizes(demand, 4, demand.least_budget - 1) is None


def test_what_threads_hold_besides_leaves_room_for_fewer() -> None:
    demand = Demand(4, 4, 3_000_000)
    budget = demand.least_budget * 3
    alone, beside = (sizes(demand, 4, budget, held) for held in (0, 300 * MIB))
    assert alone is not None and beside is not None
    assert beside.threads < alone.threads
    assert beside.threads * 300 * MIB < beside.peak_bytes <= budget


def test_what_reading_holds_is_part_of_the_peak() -> None:
    plain, held = Demand(4, 4, 3_000_000), Demand(4, 4, 3_000_000, each=100 * MIB, kept=50 * MIB)
    ours, theirs = sizes(plain, 2, 8192 * MIB), sizes(held, 2, 8192 * MIB)
    assert ours is not None and theirs is not None
    assert theirs.peak_bytes == ours.peak_bytes + 250 * MIB
    assert held.least_budget == plain.least_budget + 150 * MIB


@pytest.mark.parametrize("lines", [1 << 10, 10 * MIB, 200 * MIB])
def test_what_is_measured_of_rows_is_held_for_every_tensor_at_hand_and_every_thread(lines: int) -> None:
    demand = Demand(4, 4, 3_000_000, lines=lines)
    fitted = sizes(demand, 2, 8192 * MIB)
    assert fitted is not None
    assert fitted.batch == 1 or fitted.batch * lines <= MEASURED_BYTES
    assert fitted.peak_bytes >= 2 * 3_000_000 * demand.entry_bytes + (fitted.batch + fitted.threads) * lines
    assert sizes(demand, 4, demand.least_budget) is not None
    assert sizes(demand, 4, demand.least_budget - 1) is None


def test_many_tensors_and_large_products_take_time_whatever_their_bytes() -> None:
    """20,000 small tensors, and eight matrices of 4,096 rows and columns with three sources."""
    assert seconds(0, 1, 0, 20_000) > 5 * seconds(0, 1, 0)
    assert seconds(0, 1, 0, 8, 8 * 4 * 4096**3) > 50

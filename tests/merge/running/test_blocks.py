"""The memory that threads hand to each other."""

from merge.running.blocks import Rooms


def test_memory_is_lent_again_where_it_suffices() -> None:
    rooms = Rooms()
    first = rooms.take(1000)
    assert first.numel() >= 1000
    rooms.give(first)
    assert rooms.take(900).data_ptr() == first.data_ptr()
    rooms.give(first)
    assert rooms.take(5000).numel() >= 5000

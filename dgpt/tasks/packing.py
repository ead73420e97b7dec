"""Several examples in one sequence, so that little of a batch is padding."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which examples share a sequence of `capacity` tokens: their numbers, a function of the lengths alone.

    The longest first, each into the fullest sequence that has room for it (best fit decreasing, at most 11/9 of the
    fewest sequences possible: Johnson et al., SIAM Journal on Computing 3, 1974).
    """
    packs: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)  # free tokens -> packs
    rooms: list[int] = []  # sorted, those of which there are packs
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        at = bisect_left(rooms, lengths[number])
        if at < len(rooms):
            room = rooms[at]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        else:
            room, chosen = capacity, len(packs)
            packs.append([])
        packs[chosen].append(number)
        room -= lengths[number]
        if not with_room[room]:
            insort(rooms, room)
        with_room[room].append(chosen)
    return packs

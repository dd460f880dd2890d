"""Computes XXH64 in plain Python, for score.py where xxhash is not installed. Imports nothing."""

_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5, _MASK = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5, 2**64 - 1


def _mixed(number: int, bits: int, prime: int) -> int:
    return ((number & _MASK) << bits | (number & _MASK) >> (64 - bits)) * prime


def xxh64(data: bytes, seed: int) -> int:
    """Return the XXH64 of bytes (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 8)]
    striped, rest, lanes = len(words) // 4 * 4, data[len(words) * 8 :], [seed + _P1 + _P2, seed + _P2, seed, seed - _P1]
    for index, word in enumerate(words[:striped]):
        lanes[index % 4] = _mixed(lanes[index % 4] + word * _P2, 31, _P1)
    number = sum(_mixed(lane, bits, 1) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    for lane in lanes:
        number = (number ^ _mixed(lane * _P2, 31, _P1)) * _P1 + _P4
    number = (number if striped else seed + _P5) + len(data)
    for word in words[striped:]:
        number = _mixed(number ^ _mixed(word * _P2, 31, _P1), 27, _P1) + _P4
    if len(rest) >= 4:
        number = _mixed(number ^ int.from_bytes(rest[:4], "little") * _P1, 23, _P2) + _P3
    for byte in rest[len(rest) & 4 :]:
        number = _mixed(number ^ byte * _P5, 11, _P1)
    for shift, prime in ((33, _P2), (29, _P3), (32, 1)):
        number = ((number & _MASK) ^ (number & _MASK) >> shift) * prime
    return number & _MASK

"""Dimensions as polynomials: arithmetic against plain numbers, what is certain and what is not."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewright.graph.dims import (
    Dim,
    Size,
    at_least,
    floor,
    is_cut_from,
    is_never,
    parse,
    quotient,
    remainder,
    resolve,
    smaller,
)

B, S = Dim.symbol("batch"), Dim.symbol("seq")
NAMES = ("batch", "seq", "a")


def _at(size: Size, values: dict[str, int]) -> int:
    found = size.at(values) if isinstance(size, Dim) else size
    assert found is not None
    return found


def _sizes() -> st.SearchStrategy[Size]:
    plain = st.one_of(st.integers(-9, 9), st.sampled_from([Dim.symbol(name) for name in NAMES]))

    def combined(inner: st.SearchStrategy[Size]) -> st.SearchStrategy[Size]:
        ways = st.sampled_from([operator.add, operator.sub, operator.mul])
        return st.builds(lambda way, a, b: way(a, b), ways, inner, inner)

    return st.recursive(plain, combined, max_leaves=6)


VALUES = st.fixed_dictionaries({name: st.integers(0, 12) for name in NAMES})


@given(_sizes(), _sizes(), VALUES)
def test_arithmetic_is_that_of_the_numbers(a: Size, b: Size, values: dict[str, int]) -> None:
    for way in (operator.add, operator.sub, operator.mul):
        assert _at(way(a, b), values) == way(_at(a, values), _at(b, values))
    assert _at(-a, values) == -_at(a, values)


@given(_sizes(), _sizes())
def test_a_product_divides_by_each_factor(a: Size, b: Size) -> None:
    if b != 0:
        assert quotient(a * b, b) == a


@given(_sizes(), _sizes(), VALUES)
def test_a_quotient_times_the_divisor_is_the_whole(
    a: Size, b: Size, values: dict[str, int]
) -> None:
    found = quotient(a, b)
    if found is not None:
        assert found * b == a


@given(_sizes(), st.integers(1, 12), VALUES)
def test_rest_and_floor_are_python_s(a: Size, b: int, values: dict[str, int]) -> None:
    number = _at(a, values)
    rest, whole = remainder(a, b), floor(a, b)
    assert rest is None or _at(rest, values) == number % b
    assert whole is None or _at(whole, values) == number // b


@given(_sizes(), _sizes(), VALUES)
def test_what_is_certain_holds(a: Size, b: Size, values: dict[str, int]) -> None:
    x, y = _at(a, values), _at(b, values)
    lower, least = at_least(a), smaller(a, b)
    assert lower is None or x >= lower
    assert not (is_never(a, b) and x == y)
    assert least is None or _at(least, values) == min(x, y)


@given(_sizes())
def test_text_comes_back(a: Size) -> None:
    assert parse(str(a)) == a


@given(_sizes(), _sizes())
def test_equal_polynomials_are_equal_and_hash_so(a: Size, b: Size) -> None:
    both = a * b + a, a * (b + 1)
    assert both[0] == both[1]
    assert hash(both[0]) == hash(both[1])


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (64 * B, "64*batch"),
        (B * S, "batch*seq"),
        (S + 1, "seq + 1"),
        (S - 1, "seq - 1"),
        (1 - S, "-seq + 1"),
        (B * B * 3 - S * 2, "3*batch**2 - 2*seq"),
        (smaller(512, S), "min(512, seq)"),
        (smaller(512, S * 2 + 1), "min(512, 2*seq + 1)"),
        (B - B, "0"),
        (B + 2 - B, "2"),
    ],
)
def test_how_it_is_written(size: Size, text: str) -> None:
    assert str(size) == text
    assert parse(text) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12*batch", 12 * B),
        ("batch * 12", 12 * B),
        ("(seq + 1)*batch", B * S + B),
        ("2*(batch//1)", 2 * B),
        ("4*batch//2", 2 * B),
        ("Min(seq, 8)", smaller(8, S)),
        ("-1", -1),
        ("batch//2", None),
        ("batch%2", None),
        ("batch/2", None),
        ("Max(1, batch)", None),
        ("batch size", None),
        ("", None),
        ("batch +", None),
        ("batch**seq", None),
        ("True", None),
        ("'a'", None),
        ("a\0b", None),
    ],
)
def test_what_is_read(text: str, size: Size | None) -> None:
    assert parse(text) == size


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (quotient(3136 * 96 * B, 49 * 96), 64 * B),
        (quotient(768 * B * S + 768 * B, 768 * B), S + 1),
        (quotient(B * S + B, S + 1), B),
        (quotient(B * B - S * S, B - S), B + S),
        (quotient(B, 2), None),
        (quotient(B, S), None),
        (quotient(B + 1, B), None),
        (quotient(B, 0), None),
        (quotient(0, B), 0),
        (quotient(7, 2), None),
        (remainder(7 * B, 7), 0),
        (remainder(7 * B + 3, 7), 3),
        (remainder(7 * B - 3, 7), 4),
        (remainder(B, 7), None),
        (remainder(B, S), None),
        (remainder(B * S, S), 0),
        (remainder(-3, 7), 4),
        (remainder(3, 0), None),
        (floor(2 * B + 1, 2), B),
        (floor(2 * B - 1, 2), B - 1),
        (floor(B, 2), None),
        (smaller(S, S + 1), S),
        (smaller(B, S), None),
        (smaller(0, S), 0),
        (smaller(3, 5), 3),
        (B // 2, None),
        ((4 * B) // 2, 2 * B),
        ((4 * B) % 2, 0),
    ],
    ids=str,
)
def test_division(found: Size | None, expected: Size | None) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("a", "b", "never"),
    [
        (64 * B, 1, True),  # no multiple of 64 is 1
        (64 * B, 128, False),
        (B, 1, False),
        (B, -1, True),
        (S + 2, 1, True),
        (S + 1, 1, False),
        (B, S, False),
        (S, S + 1, True),
        (2 * B, 2 * S + 1, True),
        (3, 4, True),
        (3, 3, False),
    ],
    ids=str,
)
def test_sizes_that_are_never_equal(a: Size, b: Size, never: bool) -> None:
    assert is_never(a, b) == never


def test_a_cut_is_told_from_what_it_cuts() -> None:
    cut = smaller(512, S)
    assert cut is not None
    assert is_cut_from(cut, S)
    assert not is_cut_from(cut, B)
    assert not is_cut_from(S, S)
    assert not is_cut_from(cut * 2, S)
    assert _at(cut, {"seq": 7}) == 7
    assert _at(cut, {"seq": 700}) == 512


@pytest.mark.parametrize("of", [lambda: B, lambda: B * S + 1, lambda: smaller(4, B + S)])
def test_symbols_and_missing_values(of: Callable[[], Size]) -> None:
    size = of()
    assert isinstance(size, Dim)
    assert size.symbols() <= {"batch", "seq"}
    assert size.at({}) is None


def test_resolve() -> None:
    shape = ["64*batch", 49, "seq", None, "unk__3", 2 * B]
    assert resolve(shape, {"batch": 2}) == (128, 49, None, None, None, 4)
    assert resolve([], {}) == ()

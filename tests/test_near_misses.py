"""Which known names an error offers for an unknown one."""

from __future__ import annotations

from piggyback.errors import near_misses


class Counted(str):
    """A name that counts how often some name's letters were looked at one by one."""

    looked = 0

    def __iter__(self):
        Counted.looked += 1
        return super().__iter__()


def test_the_likeliest_of_thousands_are_found_and_the_rest_not_compared():
    known = [Counted(f"{letter}{number:07d}") for letter in "abct" for number in range(2000)]
    known[5000:5000] = [Counted("traffic-signs"), Counted("traffic_lights")]
    assert "'traffic-signs'" in near_misses("traffic-sings", known)
    assert 0 < Counted.looked <= 300


def test_a_first_letter_may_be_wrong_where_names_are_few():
    assert near_misses("igns", ["signs", "letters"]) == "; did you mean 'signs'?"

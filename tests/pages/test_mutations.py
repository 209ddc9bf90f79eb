"""The mutations of tests/mutations.py match the current code and tests; that script runs them."""

from mutations import MUTATIONS, Mutation


def test_every_text_occurs_once_and_every_test_exists():
    assert [fault for mutation in MUTATIONS if (fault := mutation.fault())] == []


def test_outdated_mutations_are_reported():
    gone = Mutation("rounding.py", "return 7 *", "return 0 *", "")
    assert gone.fault().endswith("the text occurs 0 times; it must occur once")
    ambiguous = Mutation("rounding.py", "scale", "", "")
    assert "times; it must occur once" in ambiguous.fault()
    untested = Mutation("rounding.py", "return 8 *", "return 0 *", "test_mutations.py::test_of_nothing")
    assert untested.fault().endswith("there is no test 'test_mutations.py::test_of_nothing'")


def test_no_mutation_is_listed_twice():
    assert len({(each.file, each.before, each.after) for each in MUTATIONS}) == len(MUTATIONS)

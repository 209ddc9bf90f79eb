"""The mutations of tests/mutations.py fit the code and the tests as they are. The script itself runs them."""

from mutations import MUTATIONS, Mutation


def test_every_text_is_found_once_and_every_test_exists():
    assert [fault for mutation in MUTATIONS if (fault := mutation.fault())] == []


def test_what_is_out_of_date_is_told():
    gone = Mutation("rounding.py", "return 7 *", "return 0 *", ())
    assert gone.fault().endswith("the text occurs 0 times; it must occur once")
    often = Mutation("rounding.py", "scale", "", ())
    assert "times; it must occur once" in often.fault()
    untested = Mutation("rounding.py", "return 8 *", "return 0 *", ("test_mutations.py::test_of_nothing",))
    assert untested.fault().endswith("there is no test 'test_mutations.py::test_of_nothing'")


def test_every_mutation_is_another():
    assert len({(each.file, each.before, each.after) for each in MUTATIONS}) == len(MUTATIONS)

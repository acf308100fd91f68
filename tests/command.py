"""What the command's tests share."""


def one_line(outcome, *parts):
    """Exit status 2, nothing on stdout, one line on stderr that holds the parts."""
    status, out, err = outcome
    assert status == 2 and out == [] and len(err) == 1, outcome
    assert err[0].startswith("error: ")
    for part in parts:
        assert str(part) in err[0], err[0]

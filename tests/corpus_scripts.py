"""What the tests of the scripts in recipes/corpora share."""


def refused(done, *words, status=1):
    """Check that a call failed with one sentence that holds these words, without a traceback; returns the sentence."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last
    return last

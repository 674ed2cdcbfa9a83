"""Helpers: the same answers in the same order, whoever gives them and whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from maskloom.segcore.errors import RunError
from maskloom.segcore.processes.helpers import Helpers, spread


def test_questions_of_a_killed_helper_are_asked_again():
    with Helpers(2, partial(partial, divmod, 100)) as helpers:
        children = [psutil.Process(each.child.pid) for each in helpers._helpers]
        found = []
        for number, answer in enumerate(helpers.answers(range(1, 9))):
            found.append(answer)
            if number == 2:
                # And those that are asked when it is dead.
                helpers._helpers[0].child.kill()
                helpers._helpers[0].child.wait()
        assert found == [divmod(100, n) for n in range(1, 9)]
        children += [psutil.Process(each.child.pid) for each in helpers._helpers]
        helpers.ask(0)
        # What is raised there is raised here, and the helper goes on.
        with pytest.raises(ZeroDivisionError):
            helpers.answer()
        assert list(helpers.answers([7])) == [(14, 2)]
    assert not any(child.is_running() for child in children)


def test_short_work_is_done_by_this_process():
    def prepare():
        pytest.fail("a helper was started")

    assert list(spread(lambda n: n + 1, prepare, range(50), 8)) == list(range(1, 51))


@pytest.mark.nightly
def test_long_work_is_shared_in_order():
    def slowly(number):
        time.sleep(0.3)
        return divmod(100, number)

    found = spread(slowly, partial(partial, divmod, 100), range(1, 60), 2)
    assert list(found) == [divmod(100, n) for n in range(1, 60)]


@pytest.mark.nightly
def test_helpers_that_keep_dying_are_given_up():
    with Helpers(1, partial(partial, os._exit)) as helpers:
        helpers.ask(3)
        with pytest.raises(RunError, match="ended with exit code 3, and so did 3 in its place"):
            helpers.answer()


@pytest.mark.nightly
def test_helpers_die_with_their_parent():
    program = (
        "import time; from functools import partial\n"
        "from maskloom.segcore.processes.helpers import Helpers\n"
        "with Helpers(2, partial(partial, time.sleep)) as helpers:\n"
        "    for _ in range(2): helpers.ask(0)\n"
        "    for _ in range(2): helpers.answer()\n"
        "    for _ in range(2): helpers.ask(600)\n"
        "    print(*[each.child.pid for each in helpers._helpers], flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive

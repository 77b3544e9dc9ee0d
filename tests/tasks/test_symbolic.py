import importlib.util
import os
import pickle
import signal
import sys
import threading
import time

import pytest

from stepcredit.errors import InputError, MissingExtraError, StepCreditError
from stepcredit.tasks import symbolic
from stepcredit.tasks.symbolic import SymbolicComparer

if importlib.util.find_spec("math_verify") is None:
    pytest.skip("math-verify is not installed", allow_module_level=True)

TOWER = "9^{9^{9^{9}}}"  # Python's integer power: C code that no signal handler interrupts


@pytest.fixture(scope="module")
def comparer():
    made = SymbolicComparer(timeout_s=20.0)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("\\frac{14}{3}", "14/3", "equal"),
        ("x+1", "1+x", "equal"),
        ("2\\sqrt{3}", "\\sqrt{12}", "equal"),
        ("1,-2", "-2, 1", "equal"),
        ("(2,\\infty)", "[2,\\infty)", "different"),
        ("x+1", "x-1", "different"),
        ("5", "5 or 6", "different"),
        ("5", "", "unparsed"),
        ("", "5", "gold unparsed"),
    ],
)
def test_verdicts(comparer, gold, answer, verdict):
    assert comparer.compare(gold, answer) == verdict


def test_unmarked_text_is_searched_for_its_last_expression(comparer):
    assert comparer.compare("18", "so she has 12 and then 18 eggs.", marked=False) == "equal"
    assert comparer.compare("18", "no number here", marked=False) == "unparsed"


def test_the_limit_holds_on_the_main_thread_and_off_it():
    comparer = SymbolicComparer(timeout_s=0.5)
    comparer.compare("1", "1+0")  # starts the child, which the limit does not cover
    results = []

    def work():
        start = time.perf_counter()
        results.append((comparer.compare("5", TOWER), time.perf_counter() - start))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    comparer.compare("1", "1+0")
    work()
    assert [verdict for verdict, _ in results] == ["stopped", "stopped"]
    assert all(0.4 < seconds < 20 for _, seconds in results)  # without a limit: hours
    comparer.timeout_s = 30.0  # what a busy machine may need for the next one, which is served as ever
    assert comparer.compare("x+1", "1+x") == "equal"
    comparer.close()


def test_many_threads_share_one_child(comparer):
    verdicts = [None] * 8

    def work(n):
        verdicts[n] = comparer.compare("x+1", "1+x" if n % 2 else "x")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verdicts == ["different", "equal"] * 4


def test_a_child_that_died_idle_is_replaced(comparer):
    assert comparer.compare("x+1", "1+x") == "equal"
    child = comparer._child
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert comparer.compare("x+1", "1+x") == "equal"
    assert comparer._child is not child


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
def test_an_interrupt_does_not_leave_a_stale_reply_behind(comparer):
    def interrupt(*_):
        raise KeyboardInterrupt

    assert comparer.compare("x+1", "x-1") == "different"
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            comparer.compare("5", TOWER)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert comparer.compare("x+1", "1+x") == "equal"


def test_an_idle_child_outlives_the_limit_of_its_last_job():
    comparer = SymbolicComparer(timeout_s=0.5)
    while (verdict := comparer.compare("x+1", "1+x")) == "stopped":  # a busy machine may need a second try
        pass
    child = comparer._child
    time.sleep(2.0)
    assert (verdict, child.poll()) == ("equal", None)
    comparer.close()
    assert child.poll() is not None


def test_the_child_ends_with_its_owner():
    comparer = SymbolicComparer()
    comparer.compare("x+1", "1+x")
    child = comparer._child
    del comparer
    assert child.poll() is not None


def test_a_pickled_copy_has_its_own_child(comparer):
    comparer.compare("x+1", "1+x")
    copy = pickle.loads(pickle.dumps(comparer))
    assert copy.timeout_s == comparer.timeout_s
    assert copy.compare("x+1", "1+x") == "equal"
    assert copy._child.pid != comparer._child.pid
    copy.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_starts_its_own_child(comparer):
    comparer.compare("x+1", "1+x")
    parents = comparer._child.pid
    pid = os.fork()
    if pid == 0:
        good = comparer.compare("x+1", "1+x") == "equal" and comparer._child.pid != parents
        comparer.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert comparer._child.poll() is None
    assert comparer.compare("x+1", "1+x") == "equal"


def test_settings_and_missing_package(monkeypatch):
    for seconds in (0, -1, float("nan")):
        with pytest.raises(InputError, match="`timeout_s` must be above 0"):
            SymbolicComparer(timeout_s=seconds)
    monkeypatch.setattr(symbolic.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"`math-verify` is needed to grade .*stepcredit\[data\]"):
        SymbolicComparer()


def test_a_child_that_cannot_start_is_an_error_of_the_machine(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit(3)")
    monkeypatch.setattr(symbolic, "_WORKER", worker)
    with pytest.raises(StepCreditError, match="grading process must start; got None"):
        SymbolicComparer().compare("1", "x")
    worker.write_text("print('\"failed: no module\"')")
    with pytest.raises(StepCreditError, match="got 'failed: no module'"):
        SymbolicComparer().compare("1", "x")


def test_math_verify_never_enters_this_process(comparer):
    comparer.compare("x+1", "1+x")
    assert "latex2sympy2_extended" not in sys.modules

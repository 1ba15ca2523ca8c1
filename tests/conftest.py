# SPDX-License-Identifier: Apache-2.0
"""What tests of all packages share: real databases and brokers, a browser, and a summary that hides nothing.

A test that takes `database_url` runs once on SQLite and once on PostgreSQL; one that is marked `any_database` runs on
SQLite alone, and so do all cases but the first of one that is marked `one_case_on_postgresql`. `--db` chooses for all.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests import servers
from tests.find_chromium import find_chromium
from tests.shared_database import SharedDatabase

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.worker.providers.fake_aws import FakeAws

DATABASES = ("sqlite", "postgresql")
CHROMIUM_FEATURES_OFF = [
    "WebUIOmniboxPopup", "WebUIOmniboxAimPopup",  # the address bar's popups: unseen, and a process for each page
    # Chromium obeys the last list that it gets. These are Playwright's: what would look something up on the network.
    "AimEnabled", "HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "MediaRouter", "NetworkTimeServiceQuerying",
    "OptimizationHints", "PreconnectToSearch",
]  # fmt: skip
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--disable-features={','.join(CHROMIUM_FEATURES_OFF)}",
]

# Tests run beside each other, and tiny networks gain nothing from a second thread, which waits by spinning: beside busy
# processes that triples the CPU seconds. Ranks get their own number from their launcher.
os.environ["OMP_NUM_THREADS"] = "1"

# Many tests start processes, each of which would compile our packages again, and each process of tests all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A busy machine is no finding: neither an example nor the drawing of one has a time limit.
# The suite tries the same examples each time, so that what passed passes again; `--hypothesis-profile soak` tries many
# more, new ones each time.
settings.register_profile(
    "suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True, derandomize=True
)
settings.register_profile("soak", settings.get_profile("suite"), max_examples=2_000, derandomize=False)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--db", choices=[*DATABASES, "both"], default="both", help="the database of `database_url`")
    parser.addoption("--seed", type=int, default=1, help="seed of the random tests (default: 1)")
    parser.addoption(
        "--every-look", action="store_true", help="axe sees pages in all widths and themes, not in two looks"
    )


# Databases, brokers, faults


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_kind" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--db")
        every = DATABASES[:1] if metafunc.definition.get_closest_marker("any_database") else DATABASES
        metafunc.parametrize("database_kind", every if chosen == "both" else [chosen], scope="session")


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """This test process's own PostgreSQL server."""
    server = servers.Postgres()
    yield server
    server.stop()


@pytest.fixture
def database_url(database_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database, as SHOESTRING_DATABASE_URL would name it; the test runs on each kind."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'shoestring.db'}"
        return
    postgres: servers.Postgres = request.getfixturevalue("postgres")
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(scope="session")
def shared_database(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], SharedDatabase]:
    """The migrated database of this process, by kind: made once, however often the kinds take turns."""

    @functools.cache
    def shared(kind: str) -> SharedDatabase:
        if kind == "sqlite":
            return SharedDatabase(f"sqlite:///{tmp_path_factory.mktemp('shared') / 'shoestring.db'}")
        postgres: servers.Postgres = request.getfixturevalue("postgres")
        return SharedDatabase(postgres.url(postgres.create()))

    return shared


@pytest.fixture
def migrated(database_kind: str, shared_database: Callable[[str], SharedDatabase]) -> Iterator[SharedDatabase]:
    """An empty database with today's schema. What a test starts on it must have ended before it is emptied again."""
    database = shared_database(database_kind)
    yield database
    database.empty()


@pytest.fixture
def migrated_url(migrated: SharedDatabase) -> str:
    """As `database_url`, but with today's schema."""
    return migrated.url


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[servers.Valkey]:
    server = servers.Valkey()
    yield server
    server.stop()


@pytest.fixture
def redis_url(shared_valkey: servers.Valkey) -> str:
    """An empty Redis-compatible server, shared by the tests of this process, one after another."""
    shared_valkey.wipe()
    return shared_valkey.url


@pytest.fixture
def valkey() -> Iterator[servers.Valkey]:
    """A server of the test's own, to kill and to start again."""
    server = servers.Valkey()
    yield server
    server.stop()


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[int], servers.FaultProxy]]:
    """Puts a proxy before a port: `fault_proxy(port).cut()`."""
    with contextlib.ExitStack() as stack:

        def before(port: int) -> servers.FaultProxy:
            proxy = servers.FaultProxy(port)
            stack.callback(proxy.stop)
            return proxy

        yield before


@pytest.fixture
def free_port() -> int:
    return servers.free_port()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test, the same in each run unless --seed names another."""
    return int(request.config.getoption("--seed"))


# Browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Chromium, for one module at a time: Playwright's loop must not be running where other tests start theirs."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    assert path, "No Chromium. Run `make setup`, or name one in SHOESTRING_CHROMIUM."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page in a context of its own. What its console calls an error fails the test."""
    context = chromium.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors, f"the page raised {errors}"


# What every process loads


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What tests import is never garbage: the collector stands still meanwhile and leaves it alone afterwards.

    Left to look through it again and again, it takes a fifth of the CPU of tests that start no processes.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def shared_fake_aws() -> Iterator[FakeAws]:
    """This test process's fake EC2 and S3."""
    from tests.worker.providers.fake_aws import FakeAws  # imports boto3, which few tests need

    fake = FakeAws.start()
    yield fake
    fake.stop()


@pytest.fixture
def aws(shared_fake_aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> FakeAws:
    """EC2 and S3 without instances, buckets and faults, and credentials that boto3 finds.

    They end with the test: what else reads buckets in this process would find them too.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"ACCESS_KEY_ID": "tests", "SECRET_ACCESS_KEY": "none", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    shared_fake_aws.control("reset")
    return shared_fake_aws


# Which process runs what, and in which order

PACKAGES = ("e2e", "trainer", "worker", "web", "tests", "api", "client", "core")
"""Folders below `tests`, those whose files take longest first: so no process works on when the others have ended."""


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """What takes long first; what runs alone last: there nobody has to wait for it."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        package = package_of(item.path.relative_to(item.config.rootpath))
        rank = PACKAGES.index(package) if package in PACKAGES else len(PACKAGES)
        return item.get_closest_marker("alone") is not None, rank

    return sorted(items, key=place)


def repeated_cases(items: list[pytest.Item]) -> list[pytest.Item]:
    """PostgreSQL's cases of each test that is marked `one_case_on_postgresql`, but for its first."""
    repeated, begun = [], set()
    for item in items:
        if item.get_closest_marker("one_case_on_postgresql") and item.callspec.params["database_kind"] == "postgresql":
            test = item.nodeid.partition("[")[0]
            if test in begun:
                repeated.append(item)
            begun.add(test)
    return repeated


def package_of(file: Path) -> str:
    """The folder directly below `tests` that holds a file of tests, or "tests" for one directly in it."""
    return file.parts[1] if len(file.parts) > 2 else file.parts[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """A file goes to one process, in the order of `in_order`: its tests share fixtures."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


# Tests that measure time run alone

_locks: list[IO[str]] = []
os.register_at_fork(after_in_child=lambda: [file.close() for file in _locks])  # a fork that is left would keep them


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked `alone` waits until no other process of this run is in a test, and they wait for its end.

    Everybody passes a turnstile before taking the lock, so that a stream of short tests can't keep it out forever.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return (yield)
    mode = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    place = Path(tempfile.gettempdir()) / f"shoestring-tests-{run}"
    with open(f"{place}.turnstile", "w") as turnstile, open(f"{place}.lock", "w") as lock:
        _locks[:] = turnstile, lock
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(lock, mode)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        return (yield)


# The summary


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--db") == "both":
        repeated = repeated_cases(items)
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if item not in set(repeated)]
    items[:] = in_order(items)
    gpu = _cuda_is_there() if any(item.get_closest_marker("gpu") for item in items) else False
    for item in items:
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        callspec = getattr(item, "callspec", None)
        if callspec and "database_kind" in callspec.params:
            item.user_properties.append(("database", callspec.params["database_kind"]))
        if "chromium" in getattr(item, "fixturenames", ()):
            item.user_properties.append(("browser", "chromium"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = Counter[str]()
    for report in terminalreporter.getreports("passed"):
        if report.when == "call":
            where = [name for _, name in report.user_properties if name in (*DATABASES, "chromium")]
            passed.update(where or ["neither"])
    terminalreporter.section("passed, by where they ran")
    for name in (*DATABASES, "chromium", "neither"):
        terminalreporter.line(f"{name:<12}{passed[name]:>6}")
    gpu, others = _skipped(terminalreporter)
    terminalreporter.line(f"{'skipped':<12}{len(others):>6}   and {len(gpu)} marked gpu, for want of a CUDA device")
    for nodeid in others:
        terminalreporter.line(f"  skipped though not marked gpu, which fails the run: {nodeid}", red=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """A skipped test is a promise nobody kept: the run fails."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.exitstatus == pytest.ExitCode.OK and _skipped(reporter)[1]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return (yield)


def _skipped(reporter: pytest.TerminalReporter) -> tuple[list[str], list[str]]:
    """Names of the skipped tests: those marked gpu, and the others."""
    reports = reporter.getreports("skipped")
    marked = [report.nodeid for report in reports if "gpu" in getattr(report, "keywords", {})]
    return marked, [report.nodeid for report in reports if report.nodeid not in marked]


def _cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()

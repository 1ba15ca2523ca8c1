# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect
from shoestring_core.states import JobState, StopReason
from shoestring_core.store.tables import JobRow, MachineRow
from shoestring_core.wording import waits
from sqlalchemy import update

from tests.api.deployment import Deployment
from tests.servers import FaultProxy, until
from tests.web.conftest import OpenPage, have_loaded, hold

pytestmark = pytest.mark.any_database

WIDTHS = {"phone": 360, "desk": 1440}


def metric(page: Page, name: str) -> Locator:
    return page.locator(f'figure[data-metric="{name}"]')


def status_badge(page: Page, status: str) -> Locator:
    return page.locator(f'.badge[data-status="{status}"]')


def colours_on(canvas: Locator) -> int:
    """How many different colours a canvas shows: an empty one has a single one."""
    script = """canvas => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    }"""
    count = canvas.evaluate(script)
    assert isinstance(count, int)
    return count


# Signing in


def test_an_api_key_signs_in_and_returns_to_the_requested_page(deployment: Deployment, page: Page) -> None:
    page.goto(f"{deployment.url}/budget")
    expect(page).to_have_url(f"{deployment.url}/login?next=%2Fbudget")
    page.get_by_label("API key").fill(deployment.keys[1])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Budget")
    expect(page).to_have_url(f"{deployment.url}/budget")


def test_a_one_time_link_signs_in_once(deployment: Deployment, page: Page) -> None:
    code = deployment.admin.post("/v1/login-codes").json()["code"]
    page.goto(f"{deployment.url}/login?code={code}&next=/new")
    expect(page.get_by_role("heading", level=1)).to_have_text("New job")
    page.context.clear_cookies()
    page.goto(f"{deployment.url}/login?code={code}")
    expect(page.get_by_role("alert")).to_contain_text("This sign-in link is no longer valid")
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_wrong_api_key_is_reported(deployment: Deployment, page: Page) -> None:
    page.goto(f"{deployment.url}/login")
    page.get_by_label("API key").fill("sst_pat_nonsense")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("This API key is not valid")


def test_a_sign_in_link_never_redirects_to_another_site(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("https://elsewhere.example/jobs")
    expect(page).to_have_url(f"{deployment.url}/")


def test_after_a_session_expires_signing_in_returns_to_the_page(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/budget")
    page.context.clear_cookies()
    page.reload()  # a request of the page may have met the end before
    expect(page).to_have_url(re.compile(r"/login\?next=%2Fbudget(&ended=1)?$"))
    page.get_by_label("API key").fill(deployment.keys[1])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Budget")


def test_a_late_refusal_of_an_ended_session_leaves_the_next_one_alone(
    deployment: Deployment, open_page: OpenPage
) -> None:
    page = open_page("/new")
    submission = hold(page, "POST", "/v1/jobs")
    page.get_by_role("button", name="Submit").click()
    late = submission()
    page.context.clear_cookies()
    page.get_by_role("link", name="Queue").click()
    page.get_by_label("API key").fill(deployment.keys[1])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="No job of your team is waiting")).to_be_visible()
    with page.expect_response("**/v1/jobs"):
        late.fulfill(status=401, json={"title": "Sign in", "detail": "The session has ended."})
    page.get_by_role("link", name="Budget", exact=True).click()
    expect(page.get_by_text("No request is open")).to_be_visible()
    expect(page).to_have_url(f"{deployment.url}/budget")


# Jobs


def test_the_jobs_list_updates_by_itself(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/")
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    page.evaluate("window.untouched = true")
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    job = deployment.submit(name="first")
    expect(page.get_by_role("link", name="first")).to_be_visible()
    expect(status_badge(page, "queued")).to_be_visible()
    (agent,) = deployment.launch(job)
    expect(status_badge(page, "launching")).to_be_visible()
    agent.register()
    agent.report(member={"generation": 1, "state": "ready", "port": 29500})
    expect(status_badge(page, "running")).to_be_visible()
    agent.points(range(1, 8))
    expect(page.locator(f'tr[data-job="{job}"]')).to_contain_text("step 7")
    assert page.evaluate("window.untouched")


def test_a_filter_is_part_of_the_url(deployment: Deployment, open_page: OpenPage) -> None:
    deployment.submit(name="apples")
    deployment.submit(name="pears")
    page = open_page("/")
    expect(page.locator("tr[data-job]")).to_have_count(2)
    page.keyboard.press("/")
    page.keyboard.type("name=pears")
    page.keyboard.press("Enter")
    expect(page.locator("tr[data-job]")).to_have_count(1)
    page.reload()
    expect(page.get_by_role("link", name="pears")).to_be_visible()
    page.get_by_label("Filter jobs").fill("colour=red")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("can't be filtered by 'colour'")


def test_more_jobs_than_one_page_can_be_loaded(deployment: Deployment, open_page: OpenPage) -> None:
    for number in range(51):
        deployment.submit(name=f"job {number}")
    page = open_page("/")
    expect(page.locator("tr[data-job]")).to_have_count(50)
    page.get_by_role("button", name="Load more").click()
    expect(page.locator("tr[data-job]")).to_have_count(51)
    expect(page.get_by_role("button", name="Load more")).to_have_count(0)


def test_another_teams_job_is_not_found(deployment: Deployment, open_page: OpenPage) -> None:
    answer = deployment.stranger.post("/v1/jobs", json={"spec": {"recipe": "digits/quickstart"}})
    page = open_page(f"/jobs/{answer.json()['id']}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Job not found")


# One job


def test_points_are_drawn_as_they_arrive(deployment: Deployment, open_page: OpenPage) -> None:
    job, (agent,) = deployment.running()
    page = open_page(f"/jobs/{job}")
    expect(page.get_by_text("Curves appear here after the first step")).to_be_visible()
    agent.points(range(1, 4))
    expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "3")
    agent.points(range(4, 40))
    expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "39")
    assert colours_on(metric(page, "train/loss").locator("canvas")) > 3
    expect(metric(page, "train/loss").locator(".readout")).to_have_text("39.10")
    metric(page, "train/loss").get_by_text("Values", exact=True).click()
    expect(metric(page, "train/loss").locator("tbody tr")).to_have_count(39)


def test_the_page_says_how_long_training_has_waited_for_its_input_and_for_what(
    deployment: Deployment, open_page: OpenPage
) -> None:
    job, (agent,) = deployment.running()
    page = open_page(f"/jobs/{job}")
    agent.points(range(1, 4))

    def wait(step: int, **seconds: float) -> None:
        series = [
            {"name": f"stall/{cause}_s", "steps": [step], "times": [1e9 + step], "values": [value]}
            for cause, value in seconds.items()
        ]
        agent.report(batch=agent.batch(points=series))

    wait(2, download=1.5, decode=100.0, upload=0.0)
    expect(page.get_by_text("Waited for input: 1.5 s downloading shards, 1m 40s decoding images.")).to_be_visible()
    wait(3, download=2.0, decode=0.0, upload=4.0)
    line = "Waited for input: 3.5 s downloading shards, 1m 40s decoding images, 4.0 s copying to the device."
    expect(page.get_by_text(line)).to_be_visible()
    expect(metric(page, "train/loss")).to_be_visible()
    expect(metric(page, "stall/decode_s")).to_have_count(0)


def test_points_from_before_the_page_was_opened_are_shown_once(deployment: Deployment, open_page: OpenPage) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 21))
    page = open_page(f"/jobs/{job}")
    expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "20")
    agent.points(range(21, 26))
    expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "25")
    metric(page, "train/loss").get_by_text("Values", exact=True).click()
    expect(metric(page, "train/loss").locator("tbody tr")).to_have_count(25)


def test_everything_about_a_job_is_read_once(deployment: Deployment, open_page: OpenPage, page: Page) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 4))
    assert agent.checkpoint(3, {"model.json": b"{}"}).status_code == 200
    read: Counter[str] = Counter()
    page.on("request", lambda request: read.update([unquote(urlsplit(request.url).path)]))
    open_page(f"/jobs/{job}")
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "3")
    expect(page.get_by_role("region", name="Job spec")).to_contain_text("recipe: digits/quickstart@1")
    expect(page.get_by_role("list", name="Events, newest first")).to_contain_text("Job running")
    parts = ("attempts", "cost", "events", "logs", "artifacts", "metrics")
    expected = [f"/v1/jobs/{job}", *(f"/v1/jobs/{job}/{part}" for part in parts), "/v1/recipes/digits/quickstart@1"]
    assert {
        path: count for path, count in read.items() if path.startswith(("/v1/jobs", "/v1/recipes"))
    } == dict.fromkeys(expected, 1)


def test_a_zoomed_curve_has_a_button_that_shows_all_of_it_again(deployment: Deployment, open_page: OpenPage) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 30))
    page = open_page(f"/jobs/{job}")
    loss = metric(page, "train/loss")
    expect(loss).to_have_attribute("data-last-step", "29")
    reset = loss.get_by_role("button", name="Reset zoom")
    expect(reset).to_have_count(0)
    plot = loss.locator(".u-over")
    plot.hover(position={"x": 40, "y": 40})  # waits until it stays where it is: it moves while the page fills
    page.mouse.down()
    plot.hover(position={"x": 120, "y": 60})
    page.mouse.up()
    expect(reset).to_be_visible()
    page.get_by_label("Smoothing").fill("0.5")
    agent.points(range(30, 35))
    expect(loss).to_have_attribute("data-last-step", "34")
    reset.click()  # neither another curve nor more of it has ended the zoom
    expect(reset).to_have_count(0)


def test_nan_values_are_shown_as_nan(deployment: Deployment, open_page: OpenPage) -> None:
    job, (agent,) = deployment.running()
    series = {"name": "train/loss", "steps": [1, 2], "times": [1e9, 1e9 + 1], "values": [0.5, "NaN"]}
    agent.report(batch=agent.batch(points=[series]))
    page = open_page(f"/jobs/{job}")
    expect(metric(page, "train/loss").locator(".readout")).to_have_text("NaN")


def test_smoothing_log_and_axis_change_the_curve(deployment: Deployment, open_page: OpenPage) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 30))
    page = open_page(f"/jobs/{job}")
    readout = metric(page, "train/loss").locator(".readout")
    expect(readout).to_have_text("29.10")
    page.get_by_label("Smoothing").fill("0.9")
    expect(readout).not_to_have_text("29.10")
    page.get_by_label("Smoothing").fill("0")
    expect(readout).to_have_text("29.10")
    page.get_by_label("Log scale").check()
    page.get_by_role("button", name="time", exact=True).click()
    expect(page.get_by_role("img", name="train/loss over time")).to_be_visible()


def test_log_lines_stream_in_colour_and_never_as_html(deployment: Deployment, open_page: OpenPage) -> None:
    job, (agent,) = deployment.running()
    page = open_page(f"/jobs/{job}")
    log = page.get_by_role("log")
    agent.log(b"10%\r50%\r100%\n\x1b[31mhot\x1b[0m <b id=planted>bold</b>\n")
    expect(log.get_by_text("100%", exact=True)).to_be_visible()
    expect(log.locator(".ansi-red")).to_have_text("hot")
    expect(log).to_contain_text("<b id=planted>bold</b>")
    expect(page.locator("#planted")).to_have_count(0)
    agent.log("".join(f"line {number}\n" for number in range(3000)).encode())
    expect(log).to_contain_text("line 2999")
    assert log.locator(".log-row").count() < 200  # only visible rows are rendered
    page.get_by_label("Search the log").fill("line 1234")
    expect(log.locator(".log-row")).to_have_count(1)


def test_stop_asks_for_confirmation_and_stops_the_job(deployment: Deployment, open_page: OpenPage) -> None:
    job, _ = deployment.running(name="runaway")
    page = open_page(f"/jobs/{job}")
    page.get_by_role("button", name="Stop", exact=True).click()
    dialog = page.get_by_role("dialog", name="Stop runaway?")
    expect(dialog).to_contain_text("saves a checkpoint")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert deployment.job(job).desired_state == "run"
    page.get_by_role("button", name="Stop", exact=True).click()
    dialog.get_by_role("button", name="Stop job").click()
    expect(status_badge(page, "stopping")).to_be_visible()
    until(lambda: deployment.job(job).desired_state == "stop")


def test_retry_does_not_come_to_where_stop_was(deployment: Deployment, open_page: OpenPage) -> None:
    """Whoever reaches for the one while the job ends starts no other job."""
    job, (agent,) = deployment.running()
    page = open_page(f"/jobs/{job}")
    stop = page.get_by_role("button", name="Stop", exact=True).bounding_box()
    assert agent.checkpoint(4, {"model.json": b"{}"}, reason="final", result={"val/acc": 0.98}).status_code == 200
    retry = page.get_by_role("button", name="Retry")
    expect(retry).to_be_visible()
    there = retry.bounding_box()
    assert stop
    assert there
    assert there["x"] + there["width"] <= stop["x"]


def test_a_stopped_job_can_be_retried(deployment: Deployment, open_page: OpenPage) -> None:
    job = deployment.submit(name="again")
    deployment.member.post(f"/v1/jobs/{job}:stop")
    page = open_page(f"/jobs/{job}")
    expect(status_badge(page, "stopped")).to_be_visible()
    page.get_by_role("button", name="Retry").click()
    expect(status_badge(page, "queued")).to_be_visible()
    expect(page.get_by_text("retried from")).to_be_visible()
    assert page.url != f"{deployment.url}/jobs/{job}"


def test_a_paused_job_is_resumed(deployment: Deployment, open_page: OpenPage) -> None:
    job = deployment.submit()
    deployment.member.post(f"/v1/jobs/{job}:stop", json={"mode": "pause"})
    page = open_page(f"/jobs/{job}")
    page.get_by_role("button", name="Resume").click()
    expect(status_badge(page, "queued")).to_be_visible()


def test_a_job_paused_for_want_of_budget_leads_to_the_budget_that_resumes_it(
    deployment: Deployment, open_page: OpenPage
) -> None:
    job = deployment.submit()
    set_limit(deployment, "team", "0.01")
    paused = {"state": JobState.PAUSED, "stop_reason": StopReason.BUDGET, "desired_state": "pause"}
    deployment.store.write(lambda db: db.execute(update(JobRow).where(JobRow.id == job).values(**paused)))
    page = open_page(f"/jobs/{job}")
    status = page.locator("[data-status-text]")
    expect(status).to_contain_text("short: starting 1 machine reserves")
    expect(status).to_contain_text("Once it is raised, the job resumes automatically.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)
    status.get_by_role("link", name="Raise it or ask for more").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Budget")
    set_limit(deployment, "team", "5.00")
    page = open_page(f"/jobs/{job}")
    expect(status_badge(page, "queued")).to_be_visible()


def test_machines_costs_and_events_are_shown(deployment: Deployment, open_page: OpenPage) -> None:
    job, agents = deployment.running(resources={"nodes": 2})
    agents[0].points(range(1, 5))
    booted = {"image": "ami-0123456789abcdef0", "driver": "580.95.05"}
    first = update(MachineRow).where(MachineRow.job == job, MachineRow.slot == 0).values(**booted)
    deployment.store.write(lambda db: db.execute(first))
    page = open_page(f"/jobs/{job}")
    expect(page.locator("tr[data-machine]")).to_have_count(2)
    expect(page.get_by_text("ami-0123456789abcdef0 · NVIDIA driver 580.95.05")).to_have_count(1)
    cost = page.get_by_role("region", name="Cost")
    expect(cost).to_contain_text("simulated prices")
    expect(cost).to_contain_text("On-demand equivalent")
    expect(page.get_by_role("list", name="Events, newest first")).to_contain_text("Job running")
    spec = page.get_by_role("region", name="Job spec")
    expect(spec).to_contain_text("recipe: digits/quickstart@1")
    spec.get_by_role("button", name="JSON").click()
    expect(spec).to_contain_text('"recipe": "digits/quickstart@1"')


def test_the_artifacts_of_a_finished_job_can_be_downloaded(deployment: Deployment, open_page: OpenPage) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 5))
    page = open_page(f"/jobs/{job}")
    answer = agent.checkpoint(4, {"model.json": b'{"classes": 10}'}, reason="final", result={"val/acc": 0.98})
    assert answer.status_code == 200, answer.text
    expect(status_badge(page, "succeeded")).to_have_text("succeeded")
    with page.expect_download() as download:
        page.get_by_role("link", name="model.json").click()
    assert json.loads(download.value.path().read_bytes()) == {"classes": 10}


def test_a_broken_stream_reconnects_and_misses_nothing(
    deployment: Deployment, open_page: OpenPage, fault_proxy: Callable[[int], FaultProxy]
) -> None:
    proxy = fault_proxy(deployment.port)
    job, (agent,) = deployment.running()
    page = open_page(f"/jobs/{job}", url=f"http://127.0.0.1:{proxy.port}")
    agent.points(range(1, 4))
    expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "3")
    proxy.refuse = True
    proxy.cut()
    expect(page.locator(".connection")).to_have_class(re.compile("reconnecting"))
    expect(page.locator(".connection-bar")).to_contain_text("No live updates since")
    agent.points(range(4, 9))
    deployment.submit(name="meanwhile")
    proxy.refuse = False
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "8")
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.get_by_role("link", name="meanwhile")).to_be_visible()
    expect(page.locator(".connection-bar")).to_have_count(0)


# A new job


def test_the_form_writes_the_spec_and_errors_are_shown_beside_their_fields(
    deployment: Deployment, open_page: OpenPage
) -> None:
    page = open_page("/new")
    spec = page.get_by_label("Job spec, YAML")
    page.get_by_label("lr", exact=True).fill("-1")
    page.get_by_label("Cost limit, dollars").fill("0.50")
    expect(spec).to_have_value(re.compile(r"lr: -1"))
    page.get_by_role("button", name="Validate").click()
    lr = page.get_by_label("lr", exact=True)
    expect(lr).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field", has=lr).locator(".field-error")).to_be_visible()
    lr.fill("0.05")
    expect(lr).to_have_attribute("aria-invalid", "false")
    page.get_by_role("button", name="Validate").click()
    expect(page.get_by_role("status").filter(has_text="Spec is valid")).to_be_visible()
    assert deployment.member.get("/v1/jobs").json()["jobs"] == []
    page.get_by_role("button", name="Submit").click()
    expect(status_badge(page, "queued")).to_be_visible()
    (job,) = deployment.member.get("/v1/jobs").json()["jobs"]
    assert job["spec"]["params"]["lr"] == 0.05
    assert job["spec"]["limits"]["cost"] == "0.50"
    assert job["spec"]["resources"]["nodes"] == 1


def test_a_submission_that_is_under_way_takes_nobody_back_from_another_page(
    deployment: Deployment, open_page: OpenPage
) -> None:
    page = open_page("/new")
    submission = hold(page, "POST", "/v1/jobs")
    page.get_by_label("lr", exact=True).fill("0.07")
    page.get_by_role("button", name="Submit").click()
    sent = submission()
    page.get_by_label("lr", exact=True).fill("0.08")
    page.get_by_role("link", name="Budget", exact=True).click()
    expect(page.get_by_text("No request is open")).to_be_visible()
    with page.expect_response("**/v1/jobs"):
        sent.continue_()
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.locator("tr[data-job]")).to_have_count(1)
    expect(page).to_have_url(f"{deployment.url}/")
    page.get_by_role("navigation").get_by_role("link", name="New job").click()
    expect(page.get_by_label("lr", exact=True)).to_have_value("0.08")  # typed after what was submitted


def test_another_recipe_begins_another_spec_and_asks_for_its_data(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/new")
    recipe = page.get_by_role("combobox", name="Recipe")
    expect(recipe).to_have_value("digits/quickstart")
    recipe.select_option("cifar10/airbench94")
    expect(page.get_by_label("CIFAR-10 folder")).to_have_value("")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_label("CIFAR-10 folder")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field.wide .field-error")).to_contain_text("needs images")
    page.get_by_label("CIFAR-10 folder").fill("/nowhere")
    expect(page.get_by_label("Job spec, YAML")).to_have_value(
        re.compile(r"recipe: cifar10/airbench94\n.*train: /nowhere", re.S)
    )
    page.get_by_role("button", name="Validate").click()
    expect(page.get_by_label("CIFAR-10 folder")).to_have_attribute("aria-invalid", "true")


def test_a_draft_outlives_a_reload_and_the_end_of_the_session_until_it_is_discarded(
    deployment: Deployment, open_page: OpenPage
) -> None:
    job = deployment.submit(name="the first")
    page = open_page(f"/new?from={job}")
    changes = page.locator("[data-changes]")
    expect(changes).to_contain_text("Copy of the first. Nothing is changed yet.")
    spec = page.get_by_label("Job spec, YAML")
    expect(spec).to_have_value(re.compile("^recipe: digits/quickstart@1\n"))
    expect(spec).not_to_have_value(re.compile("momentum"))  # a default, which the form shows where nothing is set
    page.get_by_label("lr", exact=True).fill("0.07")
    expect(changes).to_contain_text("params.lr")
    page.reload()
    expect(page.get_by_label("lr", exact=True)).to_have_value("0.07")
    expect(page.get_by_text("What you had typed here before is back.")).to_be_visible()
    page.context.clear_cookies()
    page.evaluate("document.querySelector('button[type=submit]')?.click()")  # unless a poll met the end before it
    expect(page.get_by_text("Your session has ended")).to_be_visible()
    page.get_by_label("API key").fill(deployment.keys[1])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("lr", exact=True)).to_have_value("0.07")
    page.get_by_role("button", name="Discard draft").click()
    expect(changes).to_contain_text("Nothing is changed yet.")
    page.reload()
    expect(changes).to_contain_text("Nothing is changed yet.")
    expect(page.get_by_role("button", name="Discard draft")).to_have_count(0)


def test_the_yaml_of_the_spec_can_be_edited(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/new")
    spec = page.get_by_label("Job spec, YAML")
    quote = page.get_by_role("status", name="Quote")
    spec.fill("recipe: digits/quickstart\nresources: {nodez: 3}\n")
    expect(quote).to_contain_text("Did you mean nodes?")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert").first).to_contain_text("nodes")
    spec.fill("recipe: digits/quickstart\nresources: {nodes: [}\n")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    expect(page.get_by_role("combobox", name="Recipe")).to_have_value("digits/quickstart")  # as before the slip
    spec.fill("recipe: digits/quickstart # mine\nresources: {nodes: 3}\nname: by hand\n")
    expect(page.get_by_label("Machines", exact=True)).to_have_value("3")
    expect(quote).to_contain_text("it runs on 3 machines for $0.474 per hour")
    expect(quote.get_by_role("definition").first).to_have_text("unknown")  # never measured: no time is guessed
    expect(quote).to_contain_text("is held to start")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("by hand")


def test_a_job_that_the_budget_can_never_cover_is_refused_in_words(deployment: Deployment, open_page: OpenPage) -> None:
    set_limit(deployment, "team", "0.01")
    page = open_page("/new")
    page.get_by_label("Cost limit, dollars").fill("5.00")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("budget")
    assert deployment.member.get("/v1/jobs").json()["jobs"] == []


# Money


def set_limit(deployment: Deployment, kind: str, limit: str) -> None:
    (budget,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == kind)
    answer = deployment.admin.put(
        f"/v1/budgets/{budget['id']}", json={"limit": limit}, headers={"If-Match": budget["etag"]}
    )
    assert answer.status_code == 200, answer.text


def test_an_admin_sets_a_limit_and_everybody_sees_it(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/budget", as_admin=True)
    team = page.locator('[data-budget="team"]')
    team.get_by_role("button", name="Set limit").click()
    expect(team.get_by_label("New limit, dollars")).to_be_focused()
    page.keyboard.press("Escape")
    expect(team.get_by_role("button", name="Set limit")).to_be_focused()
    page.keyboard.press("Enter")
    team.get_by_label("New limit, dollars").fill("ten")
    expect(team.get_by_role("button", name="Save limit")).to_be_disabled()
    team.get_by_label("New limit, dollars").fill("12.50")
    team.get_by_label("Reason").fill("a new term")
    team.get_by_role("button", name="Save limit").click()
    expect(team).to_contain_text("$12.50")
    expect(page.locator(".budget-left")).to_contain_text("$12.50")
    (limit,) = (one["limit"] for one in deployment.member.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    assert limit["amount"] == "12.50"


def test_a_limit_that_changes_elsewhere_changes_here(deployment: Deployment, open_page: OpenPage) -> None:
    set_limit(deployment, "team", "3.00")
    page = open_page("/budget")
    team = page.locator('[data-budget="team"]')
    expect(team).to_contain_text("$3.00")
    expect(team.get_by_role("button", name="Set limit")).to_have_count(0)  # members may not change limits
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    set_limit(deployment, "team", "4.00")
    expect(team).to_contain_text("$4.00")


def test_an_admin_sets_a_weight_and_sees_what_was_spent_lately(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/budget", as_admin=True)
    team = page.locator('[data-budget="team"]')
    expect(team).to_contain_text("Spent lately$0.00")
    team.get_by_role("button", name="Set weight").click()
    expect(team.get_by_label("New weight")).to_be_focused()
    page.keyboard.press("Escape")
    expect(team.get_by_role("button", name="Set weight")).to_be_focused()
    page.keyboard.press("Enter")
    team.get_by_label("New weight").fill("0")
    expect(team.get_by_role("button", name="Save weight")).to_be_disabled()
    team.get_by_label("New weight").fill("3")
    team.get_by_role("button", name="Save weight").click()
    expect(team).to_contain_text("Weight3")
    budgets = deployment.admin.get("/v1/budgets").json()["budgets"]
    assert [one["weight"] for one in budgets if one["kind"] == "team"] == [3]


def test_an_admin_guarantees_a_rate_and_caps_what_runs_at_once_on_a_phone(
    deployment: Deployment, open_page: OpenPage
) -> None:
    page = open_page("/budget", as_admin=True)
    page.set_viewport_size({"width": WIDTHS["phone"], "height": 800})
    team = page.locator('[data-budget="team"]')
    team.get_by_role("button", name="Guarantee a rate").click()
    team.get_by_label("Dollars an hour").fill("-1")
    expect(team.get_by_role("button", name="Save guaranteed rate")).to_be_disabled()
    team.get_by_label("Dollars an hour").fill("2.50")
    team.get_by_role("button", name="Save guaranteed rate").click()
    expect(team).to_contain_text("Guaranteed$2.50/h")
    team.get_by_role("button", name="Set concurrency").click()
    team.get_by_label("GPUs at most").fill("many")
    expect(team.get_by_role("button", name="Save concurrency")).to_be_disabled()
    team.get_by_label("GPUs at most").fill("8")
    team.get_by_label("Running jobs at most").fill("4")
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS["phone"]
    team.get_by_role("button", name="Save concurrency").click()
    expect(team).to_contain_text("At once0 of 4 jobs, 0 of 8 GPUs")
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    deployment.launch(deployment.submit())
    expect(team).to_contain_text("At once1 of 4 jobs, 0 of 8 GPUs")
    (budget,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    assert budget["guaranteed_rate"]["amount"] == "2.50"
    deployment.admin.put(f"/v1/budgets/{budget['id']}/concurrency", json={"max_jobs": None, "max_gpus": 2})
    expect(team).to_contain_text("At once0 of 2 GPUs")


def test_a_weight_that_changes_elsewhere_changes_here(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/budget")
    team = page.locator('[data-budget="team"]')
    expect(team.get_by_role("button", name="Set weight")).to_have_count(0)  # members may not change weights
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    (budget,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    deployment.admin.put(f"/v1/budgets/{budget['id']}/weight", json={"weight": 7})
    expect(team).to_contain_text("Weight7")


def test_a_soft_line_that_is_reached_shows_without_a_click(deployment: Deployment, open_page: OpenPage) -> None:
    set_limit(deployment, "team", "1.00")
    page = open_page("/budget", as_admin=True)
    team = page.locator('[data-budget="team"]')
    team.get_by_role("button", name="Set soft lines").click()
    team.get_by_label("Percent of the limit").fill("50, many")
    expect(team.get_by_role("button", name="Save soft lines")).to_be_disabled()
    team.get_by_label("Percent of the limit").fill("1, 90")
    team.get_by_role("button", name="Save soft lines").click()
    expect(team.locator(".budget-bar .line")).to_have_count(2)
    expect(team.locator("[data-soft-line]")).to_have_count(0)
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    deployment.launch(deployment.submit())
    expect(team.locator("[data-soft-line]")).to_contain_text(
        "1 % of this limit was reached. The next soft line is 90 %, at $0.90."
    )


def test_a_burn_down_shows_what_a_budget_will_have_spent(deployment: Deployment, open_page: OpenPage) -> None:
    set_limit(deployment, "team", "1.00")
    page = open_page("/budget")
    chart = page.locator('[data-budget="team"] [data-burn-down]')
    expect(chart).to_contain_text("Too little was spent so far for a forecast.")
    expect(chart.get_by_role("img")).to_have_attribute("aria-label", "Left of $1.00: $1.00 now")
    expect(chart.locator(".of-axis").first).to_have_text("Left of $1.00")
    expect(chart.locator("time")).to_have_count(2)


def test_a_job_behind_another_team_says_what_both_have_used(deployment: Deployment, open_page: OpenPage) -> None:
    job = deployment.submit()
    first = waits.LessUsed("team speech", "team vision", "0.40", "3.10", 1, 1)
    detail = waits.MachinesInUse(1, 0, 4, behind=True, first=first)
    values = {"wait_reason": detail.waits_for, "wait_detail": detail.as_json()}
    deployment.store.write(lambda db: db.execute(update(JobRow).where(JobRow.id == job).values(**values)))
    page = open_page(f"/jobs/{job}")
    expect(page.locator("[data-status-text]")).to_contain_text("team speech has used $0.40 lately, team vision $3.10")


def test_a_limit_that_is_cut_while_a_job_runs_shows_its_overdraft_without_a_refresh(
    deployment: Deployment, open_page: OpenPage
) -> None:
    set_limit(deployment, "team", "1.00")
    deployment.running()
    page = open_page("/budget")
    for width in WIDTHS.values():
        set_limit(deployment, "team", "1.00")
        page.set_viewport_size({"width": width, "height": 800})
        team = page.locator('[data-budget="team"]')
        expect(team).to_contain_text("Limit$1.00")
        expect(team).not_to_contain_text("Overdraft")
        expect(page.locator(".connection")).to_have_class(re.compile("live"))
        set_limit(deployment, "team", "0.000001")
        expect(team).to_contain_text("Overdraft")
        expect(team).to_contain_text("running jobs save a checkpoint and pause")
        expect(page.locator(".budget-left")).to_contain_text("overdraft")


# Looks


@pytest.mark.parametrize("width", list(WIDTHS))
def test_every_page_fits_light_and_dark(deployment: Deployment, open_page: OpenPage, width: str) -> None:
    beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    page = open_page("/")
    page.set_viewport_size({"width": WIDTHS[width], "height": 800})
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    assert page.evaluate(beyond) <= 0, f"the empty list is wider than {WIDTHS[width]} px"
    job, agents = deployment.running(name="a-name-that-goes-on-and-on-without-any-place-to-break-it-" + "x" * 40)
    agents[0].points(range(1, 30))
    agents[0].log(("long " * 200 + "\n").encode())
    listed = deployment.admin.post("/v1/members:import", json={"csv": f"name,limit\n{'x' * 100},9.00\n"})
    assert listed.is_success, listed.text
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for path in ("/", f"/jobs/{job}", "/new", "/queue", "/budget", "/people", "/login", "/nowhere"):
            page.goto(f"{deployment.url}{path}")
            have_loaded(page)
            if path.startswith("/jobs"):
                expect(metric(page, "train/loss")).to_have_attribute("data-last-step", "29")
            assert page.evaluate(beyond) <= 0, f"{path} is wider than {WIDTHS[width]} px"
            backgrounds.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
        page.goto(f"{deployment.url}/docs")  # the console, too, must stay empty: the policy allows all that it loads
        page.get_by_text("/v1/jobs", exact=True).first.click()
        expect(page.locator(".opblock-body").first).to_be_visible()
    assert len(backgrounds) == 2  # one for each scheme, the same on all pages


def test_a_chosen_theme_stays(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name=re.compile("Menu of")).click()
    page.get_by_role("button", name="dark", exact=True).click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.reload()
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_the_keyboard_reaches_a_job(deployment: Deployment, open_page: OpenPage) -> None:
    deployment.submit(name="reachable")
    page = open_page("/")
    expect(page.get_by_role("link", name="reachable")).to_be_visible()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "reachable":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("reachable")

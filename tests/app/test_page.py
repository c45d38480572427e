"""Tests of the page in a browser, which need playwright and Chromium, and of its HTTP interface. All need gradio."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from browser import chromium, required

from twostage import __version__
from twostage.app import service as service_module
from twostage.app.limits import Limits
from twostage.app.results import ResultFolders
from twostage.app.service import Service
from twostage.app.work import sample
from twostage.audio import sound_files
from twostage.cli import main
from twostage.data.sensors import PRESETS
from twostage.utils.errors import AudioError, Cancelled

required("gradio")
from twostage.app.page import SENSORS, Address, serving  # noqa: E402 - only where gradio is installed

ROOT = Path(__file__).parents[2]
THROAT = sample("throat")


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    root = tmp_path_factory.mktemp("scores")
    (root / "one").mkdir()
    (root / "one" / "table.md").write_text("# One\n\n| system | STOI |\n| --- | ---: |\n| raw input | 0.674 |\n")
    picture = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63")
    (root / "one" / "bands.png").write_bytes(
        picture + bytes.fromhex("f8cfc0000003010100c9fe92ef0000000049454e44ae426082")
    )
    return root


@pytest.fixture(scope="module")
def page(tiny_path, scores):
    """The address of a page with a tiny model and low limits; fails if its server connects to another machine."""
    remote_connections, listening = [], True

    def record_connections(event, details):
        if listening and event == "socket.connect" and not is_local(details[1]):
            remote_connections.append(details[1])

    sys.addaudithook(record_connections)
    limits = Limits(mb=1, seconds=20, files=3)
    with serving(Address(port=0), {"tiny": [str(tiny_path)]}, ["cpu"], limits, results=ResultFolders(scores)) as url:
        yield url
    listening = False  # an audit hook cannot be removed
    assert remote_connections == []


def is_local(address):
    return not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, page):
    """visit(width, scheme) -> a tab with the page; fails if it requests anything else or if a script has an error."""
    contexts, problems = [], []

    def block_other_servers(route):
        if not route.request.url.startswith((page, "data:", "blob:")):
            problems.append(route.request.url)
            return route.abort()
        return route.continue_()

    def open_page(width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(60000)
        tab.route("**/*", block_other_servers)
        tab.on("websocket", lambda socket: problems.append(socket.url))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
        tab.goto(page)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def upload_in(tab, selector, *files):
    """Upload files with the input below ``selector``, and wait until their names are shown."""
    tab.set_input_files(f"{selector} input[type=file]", [str(file) for file in files])
    stem = Path(files[-1]).stem
    tab.wait_for_function("([p, s]) => document.querySelector(p).innerText.includes(s)", arg=[selector, stem])


def wait_for_text(tab, selector, words):
    """Wait until the text is visible: the progress bar, which covers it, disappears after the player appears."""
    tab.wait_for_function("([p, w]) => document.querySelector(p)?.innerText.includes(w)", arg=[selector, words])


def downloaded(tab, label):
    """Click a link, and return (name, content) of the file that is downloaded."""
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name=label, exact=True).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def playback_states(tab):
    """(seconds, muted, paused) of each track."""
    script = "[...document.querySelectorAll('audio')].map(a => [a.currentTime, a.muted, a.paused])"
    return tab.evaluate(script)


def scrolls_sideways(tab):
    return tab.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_a_recording_is_restored_played_compared_and_downloaded(visit, tiny_path, tmp_path):
    tab = visit()
    upload_in(tab, "#recordings", THROAT)
    tab.click("#restore")
    tab.wait_for_selector("#restored-player .ts-play")
    wait_for_text(tab, "#restored", "1 restored; 7.0 s of sound")

    tab.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState > 2)")
    tab.click(".ts-play")
    tab.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.currentTime > 0.5)")
    assert [(muted, paused) for _, muted, paused in playback_states(tab)] == [(True, False), (False, False)]
    switch = """() => { const [a, b] = document.querySelectorAll('audio'); const was = b.currentTime;
        document.querySelector('.ts-swap').click(); return [was, a.currentTime, a.muted, b.muted, a.paused]; }"""
    position_before, position_after, *states = tab.evaluate(switch)
    assert position_after == pytest.approx(position_before, abs=0.05)
    assert states == [False, True, False]
    tab.click(".ts-play")
    paused_states = playback_states(tab)
    assert all(paused for _, _, paused in paused_states)
    tab.click(".ts-track >> nth=1")
    assert playback_states(tab)[1][0] == pytest.approx(paused_states[0][0], abs=0.05)

    picture = tab.locator(".ts-picture img").first
    assert picture.evaluate("image => image.complete && image.naturalHeight") == 257
    box = tab.locator(".ts-picture").first.bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    assert playback_states(tab)[1][0] == pytest.approx(7.046875 / 2, abs=0.05)

    lowest = tab.locator(".ts-levels text[text-anchor=end]").last.text_content()
    highest = tab.locator(".ts-levels text[text-anchor=end]").first.text_content()
    assert 0 < float(highest) - float(lowest) <= 60  # dB: the audible range

    name, content = downloaded(tab, "Download")
    assert main(["restore", str(THROAT), "-o", str(tmp_path), "--model", str(tiny_path)]) == 0
    assert (name, content) == ("throat-restored.flac", (tmp_path / "throat.flac").read_bytes())


@pytest.mark.slow
def test_readable_and_unreadable_files_are_restored_and_reported_together(visit, tmp_path, speech, tiny_path):
    sound_files.write(tmp_path / "one.wav", speech(8000), 16000)
    sound_files.write(tmp_path / "<b>two.wav", speech(9000), 16000)
    (tmp_path / "bad.wav").write_text("not a sound" * 30)
    tab = visit(width=390, scheme="dark")
    upload_in(tab, "#recordings", tmp_path / "one.wav", tmp_path / "<b>two.wav", tmp_path / "bad.wav")
    tab.click("#restore")
    tab.wait_for_selector(".ts-play")
    assert not scrolls_sideways(tab)
    wait_for_text(tab, "#restored", "2 restored, 1 failed")
    wait_for_text(tab, "#restored .ts-bad", "bad.wav: not a sound file that can be read")
    assert "Traceback" not in tab.content()
    tab.select_option("select[aria-label=Recording]", "1")
    assert "two.wav" in tab.locator("select[aria-label=Recording] option:checked").inner_text()
    name, packed = downloaded(tab, "Download all")
    with ZipFile(io.BytesIO(packed)) as archive:
        assert name == "restored.zip"
        assert main(["restore", str(tmp_path / "one.wav"), "-o", str(tmp_path / "out"), "--model", str(tiny_path)]) == 0
        assert archive.read("one-restored.wav") == (tmp_path / "out" / "one.wav").read_bytes()
        assert len(archive.namelist()) == 2


def test_the_page_states_what_to_upload_its_limits_and_that_the_result_is_a_guess(visit):
    tab = visit(width=390)
    title = tab.locator(".ts-title").first.inner_text()
    assert "Drop recordings of a bone-conduction or throat microphone, at most 3 files of 1 MB, 20 s in all" in title
    assert "it is a guess" in title
    assert f"twostage {__version__}" in title
    tab.get_by_role("tab", name="Simulate").click()
    assert "eben: a low-pass at 600 Hz" in tab.locator("body").inner_text()
    assert set(SENSORS) == set(PRESETS)
    assert not scrolls_sideways(tab)


def test_a_missing_file_and_a_file_that_is_too_large_are_reported(visit, tmp_path):
    tab = visit()
    tab.click("#restore")
    tab.wait_for_selector("#restored .ts-bad")
    wait_for_text(tab, "#restored", "Nothing to restore")
    (tmp_path / "big.wav").write_bytes(bytes(2 << 20))
    tab.set_input_files("#recordings input[type=file]", str(tmp_path / "big.wav"))
    tab.wait_for_selector("text=/exceed the maximum allowed size of 1.0 Mb/")


@pytest.mark.slow
def test_a_sensor_is_simulated_from_the_sample(visit):
    tab = visit(width=390)
    tab.get_by_role("tab", name="Simulate").click()
    tab.click("#sample-clean")
    tab.wait_for_function("document.querySelector('#clean').innerText.includes('clean')")
    tab.get_by_label("in-ear").check()
    tab.click("#simulate")
    tab.wait_for_selector("#simulated-player .ts-play")
    assert tab.locator("#simulated-player .ts-track").all_inner_texts() == ["clean", "in-ear", "restored"]
    assert not scrolls_sideways(tab)


@pytest.mark.slow
def test_a_recording_from_the_microphone_is_restored_and_replaced_by_an_upload(visit):
    tab = visit()
    tab.context.grant_permissions(["microphone"])
    tab.get_by_role("button", name="Record").first.click()
    time.sleep(1.2)
    tab.get_by_role("button", name="Stop").first.click()
    tab.wait_for_selector("[data-testid=waveform-Microphone], audio, #waveform", state="attached")
    tab.wait_for_load_state("networkidle")
    tab.click("#restore")
    tab.wait_for_selector("#restored-player .ts-play")
    wait_for_text(tab, "#restored", "1 restored")
    upload_in(tab, "#recordings", THROAT)  # replaces the recording
    tab.wait_for_selector("role=button[name=Record]")
    tab.click("#restore")
    wait_for_text(tab, "#restored", "1 restored; 7.0 s of sound")


def test_evaluation_results_are_shown_with_table_and_picture(visit):
    tab = visit()
    tab.get_by_role("tab", name="Results").click()
    tab.click("#folder input")
    tab.get_by_role("option", name="one").click()
    assert tab.wait_for_selector("td:has-text('0.674')")
    picture = tab.wait_for_selector("figure img[alt=bands]")
    tab.wait_for_function("image => image.complete && image.naturalWidth", arg=picture)


def status(request):
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def upload(url, content):
    """The request that uploads a file of this content."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return urllib.request.Request(f"{url}gradio_api/upload", head + content + b"\r\n--x--\r\n", headers)


def button_request(url, data, session):
    """The request that a button sends with ``data``, of the button that takes as many inputs."""
    events = json.load(urllib.request.urlopen(f"{url}config", timeout=60))["dependencies"]
    number = next(event["id"] for event in events if len(event["inputs"]) == len(data))
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    return urllib.request.Request(f"{url}gradio_api/queue/join", body, {"Content-Type": "application/json"})


def restore_answer(url, files, session, model="tiny"):
    """All events that the page answers to a request to restore ``files``."""
    inputs = [files, None, model, "cpu", "model", "wav", "input", 0, "restore"]
    assert status(button_request(url, inputs, session)) == 200
    events = urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={session}", timeout=60)
    return events.read().decode()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("place", ["secret.wav", "link.wav", "files/../secret.wav"])
def test_a_request_for_a_file_that_was_not_uploaded_is_refused(page, tmp_path, speech, marked, place):
    sound_files.write(tmp_path / "secret.wav", speech(4000), 16000)
    (tmp_path / "link.wav").symlink_to("secret.wav")
    meta = {"meta": {"_type": "gradio.FileData"}} if marked else {}
    named = {"path": f"{tmp_path}/{place}", "orig_name": "secret.wav", **meta}
    for files in ([named], [named["path"]]):
        answers = restore_answer(page, files, f"{marked}-{place}-{len(str(files))}".replace("/", ""))
        assert '"success":false' in answers
        assert "1 restored" not in answers


def test_a_request_for_an_uploaded_file_is_answered(page):
    uploaded = urllib.request.urlopen(upload(page, THROAT.read_bytes()), timeout=60).read().decode().strip('[]"\n')
    file = {"path": uploaded, "orig_name": "a.wav", "meta": {"_type": "gradio.FileData"}}
    answers = restore_answer(page, [file], "uploaded")
    assert '"success":true' in answers
    assert "1 restored" in answers


def test_the_server_itself_limits_the_size_of_an_upload(page):
    assert status(upload(page, bytes(1000))) == 200
    assert status(upload(page, bytes(2 << 20))) == 413


def test_the_server_serves_only_files_that_it_published(page, scores):
    for path in (
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        str(ROOT / "README.md"),
        "README.md",
        str(scores / "one" / "table.md"),
        "http://127.0.0.1/",
        "file:///etc/passwd",
    ):
        assert status(f"{page}gradio_api/file={path}") == 403, path
    home = Path(os.environ["GRADIO_TEMP_DIR"]).parent
    assert home.name.startswith("twostage-app-")
    assert status(f"{page}gradio_api/file={home}/samples/throat.flac") == 403
    assert status(page) == 200


def test_a_request_to_a_full_queue_is_answered_with_503(tiny_path, monkeypatch):
    started, may_finish = threading.Event(), threading.Event()

    def slow(self, *arguments):
        started.set()
        may_finish.wait(60)
        raise AudioError("enough")

    monkeypatch.setattr(Service, "simulate", slow)
    with serving(Address(port=0), {"tiny": [str(tiny_path)]}, ["cpu"], Limits(queue=1, jobs=1)) as url:
        request = button_request(url, [None, None, "throat", 0, "tiny", "cpu"], "x")
        answers = [status(request)]
        assert started.wait(60)
        answers += [status(request) for _ in range(3)]  # one runs beside it, one waits in gradio, one is refused
        may_finish.set()
    assert answers == [200, 200, 200, 503]


@pytest.mark.slow
def test_a_click_right_after_an_upload_is_kept_and_a_waiting_visitor_reads_for_how_many(visit, monkeypatch):
    may_finish, restore_all = threading.Event(), service_module.restore_all

    def slow(*arguments, **options):
        may_finish.wait(60)
        return restore_all(*arguments, **options)

    monkeypatch.setattr(service_module, "restore_all", slow)
    tabs = [visit(), visit(), visit()]
    for tab, text in zip(
        tabs, ("loading tiny", "waiting for 1 earlier request", "waiting for 2 earlier requests"), strict=True
    ):
        upload_in(tab, "#recordings", THROAT)
        tab.click("#restore")
        wait_for_text(tab, "#restored", text)
    may_finish.set()
    for tab in tabs:
        wait_for_text(tab, "#restored", "1 restored")


def test_only_long_work_takes_gradios_queue_because_the_end_of_an_event_there_can_lose_a_click(page):
    events = json.load(urllib.request.urlopen(f"{page}config", timeout=60))["dependencies"]
    targets = {
        queued: [event["targets"][0][1] for event in events if event["queue"] is queued] for queued in (True, False)
    }
    assert sorted(targets[True]) == ["change", "click", "click"]  # show results; restore, simulate
    assert sorted(targets[False]) == ["click"] * 3 + ["load"] + ["stop_recording"] * 2 + ["upload"] * 2


@pytest.mark.slow
def test_a_job_is_canceled_when_its_visitor_leaves(tiny_path, monkeypatch):
    started, ended = threading.Event(), threading.Event()

    def slow(self, file, sensor, seed, request, progress, check):
        started.set()
        try:
            while not ended.wait(0.1):
                check()
        except Cancelled:
            ended.set()
            raise AudioError("left") from None

    monkeypatch.setattr(Service, "simulate", slow)
    with serving(Address(port=0), {"tiny": [str(tiny_path)]}, ["cpu"]) as url:
        assert status(button_request(url, [None, None, "throat", 0, "tiny", "cpu"], "y")) == 200
        event_stream = urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash=y", timeout=60)
        assert started.wait(60)
        assert not ended.wait(4)  # longer than a job runs for a visitor who has left
        event_stream.close()
        assert ended.wait(60)


def test_uploads_beyond_the_total_limit_are_refused(tiny_path):
    limits = Limits(mb=1, total_mb=1)
    with serving(Address(port=0), {"tiny": [str(tiny_path)]}, ["cpu"], limits) as url:
        assert [status(upload(url, bytes(size))) for size in (600_000, 600_000, 100_000)] == [200, 507, 200]


def test_requests_for_other_hosts_and_from_other_origins_are_refused(page):
    for name, value in (("Host", "evil.example"), ("Origin", "http://evil.example")):
        for path in ("", "config", "gradio_api/upload", "gradio_api/startup-events"):
            assert status(urllib.request.Request(f"{page}{path}", headers={name: value})) in (403, 421)
    answer = urllib.request.urlopen(page, timeout=60)
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert json.load(urllib.request.urlopen(f"{page}v1/models", timeout=60))["models"][0]["name"] == "tiny"


@pytest.mark.slow
def test_uploads_are_deleted_after_their_time_and_all_files_when_the_server_stops(tiny_path):
    with serving(Address(port=0), {"tiny": [str(tiny_path)]}, ["cpu"], Limits(keep=1)) as url:
        home = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        uploaded = urllib.request.urlopen(upload(url, b"sound"), timeout=60).read().decode().strip('[]"\n')
        assert Path(uploaded).read_bytes() == b"sound"
        assert status(f"{url}gradio_api/file={uploaded}") == 200
        deadline = time.monotonic() + 60
        while Path(uploaded).exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not Path(uploaded).exists()
        assert home.is_dir()
    assert not home.exists()


@pytest.mark.slow
def test_the_command_prints_the_address_serves_the_page_and_leaves_no_files(tiny_path, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    arguments = [sys.executable, "-m", "twostage", "app", "--port", str(port), "--model", f"mine={tiny_path}"]
    process = subprocess.Popen(
        arguments, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line.startswith(f"twostage: http://127.0.0.1:{port}/ ")
    assert main(["app", "--port", str(port), "--model", f"mine={tiny_path}"]) == 1  # the port is taken
    url = f"http://127.0.0.1:{port}/"
    assert b"mine" in urllib.request.urlopen(url, timeout=60).read()
    uploaded = urllib.request.urlopen(upload(url, THROAT.read_bytes()), timeout=60).read().decode().strip('[]"\n')
    file = {"path": uploaded, "orig_name": "a.wav", "meta": {"_type": "gradio.FileData"}}
    assert "1 restored" in restore_answer(url, [file], "command", model="mine")
    assert {path.name[:13] for path in tmp_path.iterdir()} == {"twostage-app-"}
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--max-seconds", "0"], "limit seconds is 0"),
        (["--results", "nowhere"], "--results nowhere: no such folder"),
        (["--seconds", "-1"], "seconds is -1.0"),
        (["--model", "nothing"], "nothing: no such file, folder or shipped model"),
    ],
)
def test_invalid_options_are_errors_that_name_them(options, error, capsys):
    assert main(["app", *options]) == 1
    assert error in capsys.readouterr().err


def test_the_sample_of_the_page_is_the_one_of_the_repository():
    assert np.array_equal(sound_files.read(THROAT)[0], sound_files.read(ROOT / "samples" / "throat.flac")[0])

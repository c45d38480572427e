"""Tests of the HTTP interface and of its access control. They need starlette and uvicorn."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import required

from twostage.app import api
from twostage.app.access import Access, is_loopback
from twostage.app.limits import Limits
from twostage.app.private_folder import LOCK, PREFIX, private_folder, sweep_abandoned
from twostage.app.storage import Storage, StorageFull
from twostage.app.visitors import Visitors
from twostage.app.work_queue import Closing, WorkQueue
from twostage.audio import sound_files
from twostage.cli import main
from twostage.utils.errors import Cancelled, ConfigError

required("starlette")
required("uvicorn")
from twostage.app import server  # noqa: E402 - only where both are installed
from twostage.app.server import Address, serving  # noqa: E402

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-some-length"
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def tiny_server(tiny_path: Path, limits: Limits | None = None, access: Access | None = None) -> Iterator[str]:
    models = {"tiny": [str(tiny_path)], "again": [str(tiny_path)]}
    with serving(Address(port=0), models, ["cpu"], limits or Limits(mb=1, seconds=20), access=access) as url:
        yield url


@pytest.fixture(scope="module")
def url(tiny_path: Path) -> Iterator[str]:
    with tiny_server(tiny_path) as address:
        yield address


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, speech: Any) -> Path:
    path = tmp_path_factory.mktemp("take") / "take.flac"
    sound_files.write(path, np.stack([speech(9000, 44100), speech(9000, 44100, seed=1)]), 44100, subtype="PCM_24")
    return path


def ask(url: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Return (status, headers, body) of a GET, or of a POST of ``body``."""
    http_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url + path, body, http_headers), timeout=60)
    except urllib.error.HTTPError as error:
        answer = error  # type: ignore[assignment]
    return answer.status, dict(answer.headers.items()), answer.read()


def multipart_form(content: bytes, name: str = "take.flac") -> dict[str, Any]:
    """The arguments of ``ask`` that send the content as the file of a form."""
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return {"body": head + content + b"\r\n--x--\r\n", "Content_Type": "multipart/form-data; boundary=x"}


def error_message(answer: Answer) -> str:
    return str(json.loads(answer[2])["error"])


@pytest.mark.parametrize("raw", [True, False])
def test_the_server_restores_a_file_exactly_as_the_command_does(
    url: str, recording: Path, tiny_path: Path, tmp_path: Path, raw: bool
) -> None:
    inputs = (
        {"body": recording.read_bytes(), "Content_Type": "audio/x-flac"}
        if raw
        else multipart_form(recording.read_bytes())
    )
    status, headers, body = ask(url, "v1/restore?level=model&sample_rate=input", **inputs)
    options = ["--model", str(tiny_path), "--level", "model", "--sample-rate", "input"]
    assert main(["restore", str(recording), "-o", str(tmp_path), *options]) == 0
    assert (status, headers["content-type"], body) == (200, "audio/flac", (tmp_path / "take.flac").read_bytes())
    report = json.loads(headers["x-twostage-report"])
    assert report["source"] == ("recording.flac" if raw else "take.flac")
    assert (report["channels"], report["sample_rate"], report["status"]) == (2, 44100, "restored")
    assert str(Path(report["source"]).stem) + "-restored.flac" in headers["content-disposition"]


def test_a_request_that_accepts_json_gets_report_and_audio_in_one_document(url: str, recording: Path) -> None:
    _, headers, body = ask(url, "v1/restore?format=wav&name=x/y.flac", recording.read_bytes())
    status, json_headers, document = ask(
        url, "v1/restore?format=wav&name=x/y.flac", recording.read_bytes(), Accept="application/json"
    )
    assert (status, json_headers["content-type"]) == (200, "application/json")
    answer = json.loads(document)
    assert base64.b64decode(answer["audio"]) == body
    assert (answer["media_type"], headers["content-type"]) == ("audio/wav", "audio/wav")
    assert (answer["report"]["source"], answer["report"]["target"]) == ("y.flac", "y.wav")


def test_models_and_health_are_listed(url: str) -> None:
    models = json.loads(ask(url, "v1/models")[2])["models"]
    assert [(model["name"], model["kind"], model["sample_rate"]) for model in models] == [
        ("tiny", "two-stage", 16000),
        ("again", "two-stage", 16000),
    ]
    assert json.loads(ask(url, "v1/health")[2]) == {"status": "ok", "version": "0.1.0", "waiting": 0}


def test_the_openapi_document_describes_the_actual_answers(url: str, recording: Path) -> None:
    document = json.loads(ask(url, "openapi.json")[2])
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        assert [ask(url, path[1:])[0] == 405] == ["post" in methods]
    parameters = document["paths"]["/v1/restore"]["post"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == list(api.PARAMETERS)
    assert parameters[1]["schema"]["enum"] == ["tiny", "again"]
    schemas = document["components"]["schemas"]
    references = {part.split('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]}
    assert references == {f"#/components/schemas/{name}" for name in schemas}
    answer = json.loads(ask(url, "v1/restore", recording.read_bytes(), Accept="application/json")[2])
    assert answer.keys() == schemas["Restored"]["properties"].keys()
    assert answer["report"].keys() == schemas["Report"]["properties"].keys()
    (model, _) = json.loads(ask(url, "v1/models")[2])["models"]
    assert model.keys() == schemas["Model"]["properties"].keys()


def test_every_invalid_request_is_answered_with_a_message_in_json(url: str, recording: Path, speech: Any) -> None:
    sound = recording.read_bytes()
    long = io.BytesIO()
    sound_files.soundfile.write(long, np.zeros(21 * 16000), 16000, format="FLAC")
    for path, body, status, words in [
        ("?model=none", sound, 400, "none: no such model; there are tiny, again"),
        ("?modle=tiny", sound, 400, "modle: no such parameter; there are name, model"),
        ("?level=loud", sound, 400, "level is 'loud'"),
        ("?format=doc", sound, 400, "format doc: none of wav, flac"),
        ("?keep_low_band=x", sound, 400, "keep_low_band is 'x', must be a number of Hz"),
        ("?keep_low_band=9000", sound, 400, "must be below 8000"),
        ("?if_full_band=no", sound, 400, "if_full_band is 'no', must be 'restore', 'copy' or 'error'"),
        ("?device=cuda", sound, 400, "device cuda: none of cpu"),
        ("?name=a.txt", b"no sound" * 99, 422, "a.txt: not a sound file that can be read"),
        ("?name=a.wav", b"", 422, "a.wav: is empty"),
        ("?name=cut.flac", sound[: len(sound) // 2], 422, "cut.flac: "),
        ("?name=long.flac", long.getvalue(), 413, "long.flac: too long, the channels so far have 21 s"),
        ("?name=a.wav", bytes(1_200_000), 413, "1.2 MB are"),
    ]:
        answer = ask(url, f"v1/restore{path}", body)
        assert (answer[0], words in error_message(answer)) == (status, True), (path, answer)
        assert "/tmp" not in error_message(answer)
    assert ask(url, "v1/restore", b"--x--\r\n", Content_Type="multipart/form-data; boundary=x")[0] == 400
    assert ask(url, "v1/restore", **multipart_form(b""))[0] == 422


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff"])
def test_the_format_of_a_file_without_a_name_is_recognized(tmp_path: Path, speech: Any, suffix: str) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", speech(48000, 48000)[None], 48000)
    (tmp_path / "recording").write_bytes((tmp_path / f"a.{suffix}").read_bytes())
    assert api.named_by_content(tmp_path / "recording").suffix[1:4] == suffix[:3]


def test_a_file_name_cannot_lead_out_of_its_folder() -> None:
    for name in ("../../a.wav", "/etc/a.wav", "..\\..\\a.wav", "a.wav\0", "\n a.wav", "...a.wav"):
        assert api.file_name(name) == "a.wav"
    assert api.file_name("..", "audio/mpeg; codecs=x") == "recording.mp3"
    assert api.file_name("가" * 200 + ".wav").encode()[-4:] == b".wav"
    assert len(api.file_name("가" * 200 + ".wav").encode()) <= 100


def ask_directly(url: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Like `ask`, but with any Host header and without following redirections."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    result = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return result


def test_a_request_for_another_host_is_refused(url: str) -> None:
    for host, status in (("localhost", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200), ("LOCALHOST:99", 200)):
        assert ask_directly(url, "/v1/health", Host=host)[0] == status
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "192.168.0.7", ""):
        answer = ask_directly(url, "/v1/health", Host=host)
        assert (answer[0], "--allow-host" in error_message(answer)) == (421, True)


def test_a_request_from_another_origin_is_refused(url: str) -> None:
    own = url.rstrip("/")
    assert ask_directly(url, "/v1/health", Origin=own)[0] == 200
    for origin in ("http://evil.example", "null", own + "1", "http://localhost:1"):
        assert ask_directly(url, "/v1/health", Origin=origin)[0] == 403


def test_answers_cannot_be_embedded_in_other_pages(url: str) -> None:
    headers = ask_directly(url, "/v1/health")[1]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers


def test_allowed_hosts_and_loopback_addresses() -> None:
    access = Access("127.0.0.1", ("speech.example.org",))
    assert access.names("speech.example.org:443")
    assert access.is_own("https://speech.example.org", "127.0.0.1:7860")
    assert not access.is_own("https://evil.example", "127.0.0.1:7860")
    everywhere = Access("0.0.0.0")
    assert everywhere.names("192.168.0.7:7860")
    assert not everywhere.names("evil.example")
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.9.9.9")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", "")] == [False] * 5


def test_only_the_token_grants_access(tiny_path: Path, recording: Path) -> None:
    with tiny_server(tiny_path, access=Access("127.0.0.1", token=TOKEN)) as url:
        assert ask_directly(url, "/v1/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": "x=y"}):
            answer = ask_directly(url, "/v1/models", **headers)
            assert (answer[0], answer[1]["www-authenticate"]) == (401, "Bearer")
        assert ask_directly(url, "/v1/models?token=wrong")[0] == 401
        assert ask(url, "v1/restore", recording.read_bytes())[0] == 401
        assert ask_directly(url, "/v1/models", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(url, "v1/restore", recording.read_bytes(), Authorization=f"bearer {TOKEN}")[0] == 200
        status, headers, _ = ask_directly(url, f"/v1/models?token={TOKEN}&a=b")
        assert (status, headers["location"]) == (303, "/v1/models?a=b")
        cookie, *attributes = headers["set-cookie"].split("; ")
        assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
        assert ask_directly(url, "/v1/models", Cookie=f"other=1; {cookie}")[0] == 200
        assert ask_directly(url, f"//evil.example/%0d%0ax?token={TOKEN}")[1]["location"] == "/evil.example/%0D%0Ax"
        assert b"<form" in ask_directly(url, "/", Accept="text/html")[2]


def test_a_refusal_is_sent_after_the_request_has_been_read(tiny_path: Path) -> None:
    """Otherwise the connection is reset while a client is still sending, and it never reads why."""
    with tiny_server(tiny_path, access=Access("127.0.0.1", token=TOKEN)) as url:
        for headers in ({}, {"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            address = urlsplit(url)
            with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
                lines = {"Host": "localhost", "Content-Length": "800000"} | headers
                head = "POST /v1/restore HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items())
                connection.sendall(head.encode() + b"\r\n" + bytes(400_000))
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(30)
                connection.sendall(bytes(400_000))
                assert connection.recv(12) in (b"HTTP/1.1 401", b"HTTP/1.1 421", b"HTTP/1.1 403")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event, list[str]]]:
    """(started, may_finish, outcomes) of restorations that wait until they may finish or are canceled."""
    started, may_finish, outcomes = threading.Event(), threading.Event(), list[str]()
    original = api.restore_file

    def restore_file(*arguments: Any, cancel: Any, **options: Any) -> Any:
        started.set()
        while not may_finish.wait(0.05):
            if cancel():
                outcomes.append("cancelled")
                raise Cancelled("x")
        outcomes.append("done")
        return original(*arguments, cancel=cancel, **options)

    monkeypatch.setattr(api, "restore_file", restore_file)
    yield started, may_finish, outcomes
    may_finish.set()


def send_request(url: str, body: bytes) -> HTTPConnection:
    """Send a request without waiting for the answer."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/restore?name=a.flac", body)
    return connection


def queue_length(url: str) -> int:
    return int(json.loads(ask(url, "v1/health")[2])["waiting"])


def wait_for(done: Any) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def file_names(folder: Path) -> list[str]:
    """Names of all files in ``folder``, which may be deleted in the meantime: `os.walk` passes over what is gone."""
    return [name for _, _, names in os.walk(folder) for name in names]


def running_and_waiting_request(url: str, recording: Path, started: Any) -> tuple[HTTPConnection, HTTPConnection]:
    first = send_request(url, recording.read_bytes())
    assert started.wait(30)
    second = send_request(url, recording.read_bytes())
    wait_for(lambda: queue_length(url) == 1)
    return first, second


def test_a_request_to_a_full_queue_is_refused_with_a_time_to_retry(tiny_path: Path, recording: Path, slow: Any) -> None:
    started, may_finish, outcomes = slow
    with tiny_server(tiny_path, Limits(queue=1, jobs=1)) as url:
        first, second = running_and_waiting_request(url, recording, started)
        status, headers, body = ask(url, "v1/restore", recording.read_bytes())
        assert (status, headers["retry-after"]) == (503, "5")
        assert "The queue is full (1 waiting)" in body.decode()
        may_finish.set()
        assert [first.getresponse().status, second.getresponse().status] == [200, 200]
        assert outcomes == ["done", "done"]


def test_the_job_of_a_closed_connection_is_canceled(tiny_path: Path, recording: Path, slow: Any) -> None:
    started, may_finish, outcomes = slow
    with tiny_server(tiny_path, Limits(queue=2, jobs=1)) as url:
        first, second = running_and_waiting_request(url, recording, started)
        second.close()  # the job was waiting
        wait_for(lambda: queue_length(url) == 0)
        first.close()  # the job was running
        wait_for(lambda: outcomes == ["cancelled"])
        may_finish.set()
        assert ask(url, "v1/restore", recording.read_bytes())[0] == 200
        assert outcomes == ["cancelled", "done"]


def test_stopping_the_server_cancels_the_running_job(tiny_path: Path, recording: Path, slow: Any) -> None:
    started, _, outcomes = slow
    began = time.monotonic()
    with tiny_server(tiny_path, Limits(jobs=1)) as url:
        first = send_request(url, recording.read_bytes())
        assert started.wait(30)
        threading.Timer(0.5, first.close).start()
    assert outcomes == ["cancelled"]
    assert time.monotonic() - began < 30


def test_files_on_the_server_have_a_total_limit(
    tiny_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = []

    class RecordingStorage(Storage):
        def __init__(self, home: Path, mb: int) -> None:
            super().__init__(home, mb)
            homes.append(home)

    monkeypatch.setattr("twostage.app.service.Storage", RecordingStorage)
    with tiny_server(tiny_path, Limits(total_mb=1)) as url:
        assert ask(url, "v1/restore", recording.read_bytes())[0] == 200
        wait_for(lambda: file_names(homes[0]) == [LOCK])  # upload and output are deleted
        (homes[0] / "others").write_bytes(bytes(999_000))
        answer = ask(url, "v1/restore", recording.read_bytes())
        assert (answer[0], "of 1 MB are used on this server" in error_message(answer)) == (507, True)
        (homes[0] / "others").unlink()
        assert ask(url, "v1/restore", recording.read_bytes())[0] == 200


def test_the_output_counts_toward_the_total_limit(tiny_path: Path, tmp_path: Path) -> None:
    sound_files.write(tmp_path / "silence.flac", np.zeros((1, 16000 * 20)), 16000)  # some hundred bytes
    with tiny_server(tiny_path, Limits(total_mb=1)) as url:
        answer = ask(url, "v1/restore", (tmp_path / "silence.flac").read_bytes())
        assert (answer[0], "No room: 7.7 MB are needed" in error_message(answer)) == (507, True)


def test_an_upload_without_a_length_is_refused(url: str) -> None:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/restore", iter([b"x"]), encode_chunked=True)
    assert connection.getresponse().status == 411


def test_reserved_storage_counts_until_the_file_is_stored(tmp_path: Path) -> None:
    storage = Storage(tmp_path, 1)
    with storage.reserve(600_000) as reservation:
        with pytest.raises(StorageFull, match=r"0\.5 MB are needed, 0\.6 of 1 MB are used"), storage.reserve(500_000):
            pass
        (tmp_path / "a").write_bytes(bytes(600_000))
        reservation.arrived(600_000)
        with storage.reserve(400_000):
            pass
    with pytest.raises(StorageFull), storage.reserve(400_001):
        pass
    (tmp_path / "a").unlink()
    with storage.reserve(1_000_000):
        pass


def test_jobs_start_in_order_of_arrival_and_none_starts_after_closing() -> None:
    queue, events, may_finish = WorkQueue(jobs=1), list[Any](), threading.Event()

    def work(number: int) -> None:
        try:
            with queue.work():
                events.append(number)
                may_finish.wait(30)
        except Closing:
            events.append("closed")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for count, thread in enumerate(threads):
        thread.start()
        wait_for(lambda count=count: queue.waiting + len(events) == count + 1)
    assert (events, queue.waiting) == ([0], 3)
    may_finish.set()
    for thread in threads:
        thread.join(30)
    assert events == [0, 1, 2, 3]
    queue.close()
    work(4)
    assert events[4:] == ["closed"]


def test_a_canceled_request_leaves_the_queue() -> None:
    queue = WorkQueue(jobs=1)

    def gone() -> None:
        raise Cancelled("gone")

    with queue.work(), pytest.raises(Cancelled), queue.work(gone):
        pass
    assert queue.waiting == 0
    with queue.work():
        pass


def test_a_visitor_has_left_when_all_its_streams_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostage.app.visitors.GRACE", 0.05)
    visitors = Visitors()
    check, check_without_session = visitors.check("me"), visitors.check(None)
    check()  # a stream may be opened a moment after the request
    visitors.came("me")
    visitors.came("me")
    visitors.went("me")
    time.sleep(0.1)
    check()
    visitors.went("me")
    check()
    time.sleep(0.1)
    with pytest.raises(Cancelled):
        check()
    check_without_session()


HOLDS_A_FOLDER = """
import sys, time
from twostage.app.private_folder import private_folder
with private_folder(sys.argv[1]) as home:
    (home / "upload.wav").write_bytes(b"x")
    print(home, flush=True)
    time.sleep(60)
"""


def test_the_folder_of_a_killed_server_is_deleted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS_A_FOLDER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        abandoned = Path(process.stdout.readline().strip())
        assert sweep_abandoned(tmp_path) == 0  # the process is running
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert (abandoned / "upload.wav").exists()
    with private_folder(tmp_path) as home:
        assert [path for path in tmp_path.iterdir() if path != home] == []
    assert list(tmp_path.iterdir()) == []


def test_without_file_locks_a_folder_is_abandoned_if_its_lock_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twostage.app.private_folder.fcntl", None)
    unlink = Path.unlink

    def refused_for_open_files(path: Path, missing_ok: bool = False) -> None:  # as on Windows
        if path.parent.name.endswith("running"):
            raise PermissionError(13, "The process cannot access the file")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused_for_open_files)
    for name in ("killed", "running"):
        (tmp_path / f"{PREFIX}{name}").mkdir()
        (tmp_path / f"{PREFIX}{name}" / LOCK).touch()
    assert sweep_abandoned(tmp_path) == 1
    assert [folder.name for folder in tmp_path.iterdir()] == [f"{PREFIX}running"]


def test_only_abandoned_folders_of_servers_are_deleted(tmp_path: Path) -> None:
    young, old, link = (tmp_path / f"{PREFIX}{name}" for name in ("young", "old", "link"))
    other = tmp_path / "other"
    for folder in (young, old, other):
        folder.mkdir()
    (other / LOCK).touch()
    link.symlink_to(other)
    (tmp_path / f"{PREFIX}file").touch()
    os.utime(old, (0, 0))
    assert sweep_abandoned(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other",
        f"{PREFIX}file",
        f"{PREFIX}link",
        f"{PREFIX}young",
    ]


@pytest.mark.parametrize("token", ["short", "with a space in it", "semi;colon;semi;colon", "ümlaut-ümlaut-ümlaut"])
def test_an_unsuitable_token_is_refused(token: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--token", token]) == 1
    assert "--token: must have at least 16 letters" in capsys.readouterr().err


def test_the_command_serves_other_machines_only_with_a_token_and_warns(
    tiny_path: Path, tmp_path: Path, recording: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    arguments = ["serve", "--host", "0.0.0.0", "--port", "0", "--model", f"mine={tiny_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "twostage", *arguments],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    url, token = line.split("twostage: ")[1].split("v1/")[0], line.split("token ")[1].split(" ")[0]
    assert ask_directly(url, "/v1/models")[0] == 401
    assert ask_directly(url, "/v1/models", Host="evil.example", Authorization=f"Bearer {token}")[0] == 421
    status, _, body = ask(url, "v1/restore?model=mine", recording.read_bytes(), Authorization=f"Bearer {token}")
    assert (status, body[:4]) == (200, b"fLaC")
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert errors.startswith("twostage: warning: --host 0.0.0.0: other machines with the token can send requests")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # HOME and TMPDIR are here too


def test_an_address_that_cannot_be_bound_is_named(tiny_path: Path, url: str, capsys: Any) -> None:
    port = str(urlsplit(url).port)
    assert main(["serve", "--port", port, "--model", f"x={tiny_path}"]) == 1
    assert f"127.0.0.1:{port}: cannot be served there (Address already in use)" in capsys.readouterr().err
    assert main(["serve", "--host", "192.0.2.1", "--port", "0", "--model", f"x={tiny_path}"]) == 1
    assert "192.0.2.1:0: cannot be served there" in capsys.readouterr().err
    assert server.warning_for("127.0.0.1") == ""
    with pytest.raises(ConfigError, match="limit total_mb is 0"):
        Limits(total_mb=0)
